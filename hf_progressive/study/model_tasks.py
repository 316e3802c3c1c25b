"""The tasks that make a study's models; what a branch and a longest run are is known here alone.

One task makes an initial model, one finishes a model. Of the models of one setup the longest leaves a checkpoint where
the decay of each shorter one begins, and the shorter ones branch off there. Since all their schedules are equal up to
that step, a branch ends with the weights that it would have had by itself.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable

from hf_progressive.growth.grow import OPTIMIZER_NAME
from hf_progressive.study.models import AveragedModel, FinishedModel, InitialModel
from hf_progressive.study.tasks import Task, connected


def model_tasks(
    asked: Iterable[FinishedModel],
    title: Callable[[FinishedModel], str],
    averages: Iterable[AveragedModel] = (),
    held: Collection[str] = (),
) -> list[Task]:
    """Return the tasks that make models, with all that these come from: each once and after those that it needs.

    The setup of the first model that is asked for is trained first. In a setup the initial model comes first, the
    longest run, and then the branches: those that something is grown from, and the others from the shortest. Averages
    are along stages that are asked for, or that what is asked for comes from. Those named in `held` are for later.
    """
    setups: dict[str, dict[str, FinishedModel]] = {}
    for model in asked:
        for member in [*model.initial.lineage, model]:
            setups.setdefault(member.setup.name, {}).setdefault(member.name, member)
    grown_from = [model.initial.parent for models in setups.values() for model in models.values()]
    parents = {parent.name for parent in grown_from if parent is not None}
    tasks: dict[str, Task] = {}
    longest_of: dict[str, FinishedModel] = {}
    for models in setups.values():
        longest = max(models.values(), key=lambda model: (model.constant_until, model.steps))
        longest_of[longest.setup.name] = longest
        tasks.setdefault(longest.initial.name, _initial_task(longest.initial))
        tasks[longest.name] = _task(longest, title(longest))
        branches = (model for model in models.values() if model is not longest)
        for model in sorted(branches, key=lambda model: (model.name not in parents, model.steps)):
            tasks[model.name] = _task(model, title(model), branches_off=longest)
    for average in averages:
        longest = longest_of[average.stage.setup.name]
        needs = tuple(longest.checkpoint(step) for step in average.steps)
        tasks[average.name] = Task(name=average.name, needs=needs, work=average)
    return connected(dataclasses.replace(task, held=task.name in held) for task in tasks.values())


def _initial_task(initial: InitialModel) -> Task:
    needs = [] if initial.parent is None else [initial.source]
    if initial.carry_moments or (initial.estimates_inheritance and initial.phi.reads_optimizer):
        needs.append(f"{initial.source}/{OPTIMIZER_NAME}")
    return Task(name=initial.name, needs=tuple(needs), only_if_needed=True, work=initial)


def _task(model: FinishedModel, title: str, branches_off: FinishedModel | None = None) -> Task:
    needs = [model.initial.init] + ([] if model.setup.phi is None else [model.initial.estimated_parent])
    shared = 0 if branches_off is None else model.shared_steps
    uses = [branches_off.checkpoint(shared)] if branches_off is not None and shared else []
    return Task(
        name=model.name,
        needs=tuple(needs),
        uses=tuple(uses),
        title=title,
        flops=(model.steps - shared) / model.steps * model.flops,
        work=model,
    )
