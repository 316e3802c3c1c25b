"""The whole of a study, laid out before any compute: who needs which models, and in which order they are trained."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from hf_progressive.config import LadderConfig, RecipeConfig, StudyConfig
from hf_progressive.planning.ladder_plan import LadderPlan, RungPlan, plan_ladder
from hf_progressive.planning.preflight import find_problems, frozen_without_moment
from hf_progressive.study.members import Members, members_of
from hf_progressive.study.model_tasks import model_tasks
from hf_progressive.study.models import FinishedModel, InitialModel, TrainingSetup
from hf_progressive.study.rates import TriedRate, at_rate
from hf_progressive.study.tasks import Task
from hf_progressive.study.trunks import peak_learning_rate, trunk_end
from hf_progressive.training.arguments import check_arguments

_SEED_STRIDE = 1000  # between the seeds of two studies' seeds, so that no two rungs share a draw


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """Every task of a study, and what each is for."""

    config: StudyConfig
    """The study."""

    ladder: LadderPlan
    """The ladder as it stands, with the sizes of all rungs."""

    cold: dict[tuple[str, int], list[FinishedModel]]
    """The baselines by rung and seed; the first rung's model is there as well."""

    children: dict[tuple[str, str, int], list[FinishedModel]]
    """The children that a recipe is measured by, by recipe, rung and seed."""

    trunks: dict[tuple[str, str], LadderPlan]
    """The sizes of a trunk, by recipe and the rung that it ends in."""

    members: list[Members]
    """Stages that are measured as finished models."""

    swept: list[tuple[Literal["cold", "child"], float, FinishedModel]]
    """Models of the sweep: `cold` or `child`, peak learning rate, model."""

    tried: list[TriedRate]
    """Rates of `learning_rates.rates`."""

    rate_tasks: list[Task]
    """The tasks of these alone."""

    tasks: list[Task]
    """All tasks in the order in which to take them; a task stands after those it needs."""

    @property
    def rungs(self) -> list[str]:
        """Names of the rungs, from the smallest."""
        return [rung.name for rung in self.ladder.rungs]

    @property
    def models(self) -> list[FinishedModel]:
        """All finished models, in the order of their tasks."""
        return [task.work for task in self.tasks if isinstance(task.work, FinishedModel)]


def plan_study(config: StudyConfig, fingerprint: str) -> StudyPlan:
    """Lay out a study on a corpus of a fingerprint.

    Raises:
        ValueError: A rung cannot be built or grown as a recipe says; the message names the recipe.
    """
    check_arguments(config.ladder.training.arguments)
    return _Planner(config, fingerprint).plan()


class _Planner:
    def __init__(self, config: StudyConfig, fingerprint: str) -> None:
        self.config, self.fingerprint = config, fingerprint
        self.ladder = _rungs_alone(config.ladder) if config.of_trunks else plan_ladder(config.ladder)
        self.indices = {rung.name: rung.index for rung in self.ladder.rungs}
        self.width = self.ladder.rungs[-1].size.config.hidden_size
        chains = [recipe for recipe in config.recipes if not recipe.trunk]
        self.ladders = {recipe.name: config.ladder_of(recipe) for recipe in chains}
        self.plans = {recipe.name: self._planned(recipe) for recipe in chains}
        self.trunks = {
            (recipe.name, end): self._planned_trunk(recipe, end)
            for recipe in config.recipes
            if recipe.trunk
            for end in config.rungs_of(recipe)
        }
        self.first_blocks = self._first_blocks()

    def _planned(self, recipe: RecipeConfig) -> LadderPlan:
        ladder = self.ladders[recipe.name]
        try:
            if all(key.startswith("phi.") or key == "training.inherited_learning_rate" for key in recipe.set):
                if problems := find_problems(ladder):
                    raise ValueError("; ".join(problems))
                return self.ladder  # neither changes sizes or growth
            return plan_ladder(ladder)
        except ValueError as error:
            raise ValueError(f"recipe {recipe.name!r}: {error}") from None

    def _planned_trunk(self, recipe: RecipeConfig, end: str) -> LadderPlan:
        try:
            return plan_ladder(self.config.trunk_of(recipe, end))
        except ValueError as error:
            raise ValueError(f"recipe {recipe.name!r}: {error}") from None

    def _first_blocks(self) -> list[int]:
        # Where each rung begins to read: behind all that any rung below may have read, whatever its recipe or length,
        # so that a recipe added later changes nothing of what is there. Child and baseline begin at the same block.
        # In a study of trunks alone no rung comes from another, and all read from the first block on.
        if self.config.of_trunks:
            return [0] * len(self.ladder.rungs)
        recipes = [self.config.fractions_of(recipe)[-1] for recipe in self.config.recipes]
        share = max(1.0, *self.config.cold_fractions, *self.config.child_fractions, *recipes)
        blocks, first = [], 0
        for rung in self.ladder.rungs:
            blocks.append(first)
            first += -(-round(share * rung.size.tokens) // self.config.ladder.model.context)
        return blocks

    def cold(self, index: int, seed: int, learning_rate: float | None = None) -> TrainingSetup:
        rung, ladder = self.ladder.rungs[index], self.config.ladder
        if self.config.of_trunks:
            ladder = at_rate(ladder, learning_rate)
            return self._setup(rung, seed, ladder, peak_learning_rate(ladder, rung.name, rung.size.config, self.width))
        rate = learning_rate or peak_learning_rate(ladder, rung.name, rung.size.config, self.width)
        return self._setup(rung, seed, ladder, rate)

    def child(self, recipe: RecipeConfig, index: int, seed: int, learning_rate: float | None = None) -> TrainingSetup:
        if recipe.trunk:
            return self._trunk(recipe, index, seed, learning_rate)
        rung, ladder = self.plans[recipe.name].rungs[index], self.ladders[recipe.name]
        rate = learning_rate or peak_learning_rate(ladder, rung.name, rung.size.config, self.width, grown=True)
        return self._setup(rung, seed, ladder, rate, self._parent(recipe, index - 1, seed), recipe.carry_moments)

    def _trunk(self, recipe: RecipeConfig, index: int, seed: int, learning_rate: float | None) -> TrainingSetup:
        plan = self.trunks[recipe.name, self.ladder.rungs[index].name]
        return trunk_end(
            dataclasses.replace(plan, config=at_rate(plan.config, learning_rate)),
            seed=seed,
            draw=self._draw(index, seed),
            fingerprint=self.fingerprint,
            first_block=self.first_blocks[index],
            order=self._order(seed),
            width=self.width,
        )

    def _draw(self, index: int, seed: int) -> int:
        return self.config.ladder.seed + _SEED_STRIDE * seed + index

    def _order(self, seed: int) -> int | None:
        shuffle_seed = self.config.ladder.data.shuffle_seed
        return None if shuffle_seed is None else shuffle_seed + seed

    def _parent(self, recipe: RecipeConfig, index: int, seed: int) -> FinishedModel:
        # What a recipe's children on the next rung grow from.
        if index == 0:
            return self.cold(0, seed).finished(1.0)
        source = recipe if recipe.parent_recipe is None else self.config.recipe(recipe.parent_recipe)
        return self.child(source, index, seed).finished(recipe.parent_fraction)

    def _setup(
        self,
        rung: RungPlan,
        seed: int,
        ladder: LadderConfig,
        learning_rate: float,
        parent: FinishedModel | None = None,
        carry_moments: bool = False,
    ) -> TrainingSetup:
        initial = InitialModel(
            rung=rung,
            seed=seed,
            draw=self._draw(rung.index, seed),
            fingerprint=self.fingerprint,
            ladder=ladder,
            parent=parent,
            carry_moments=carry_moments,
        )
        reads = initial.estimates_inheritance and initial.phi.reads_optimizer
        if parent is not None and reads and parent.initial.parent and parent.setup.training.trainable != "all":
            raise ValueError(frozen_without_moment(parent.initial.rung.name, rung.name))
        return TrainingSetup(
            initial=initial,
            training=ladder.training_of(rung.name),
            phi=initial.phi if initial.estimates_inheritance else None,
            learning_rate=learning_rate,
            cold_steps=rung.size.steps,
            first_block=self.first_blocks[rung.index],
            order=self._order(seed),
        )

    def plan(self) -> StudyPlan:
        config = self.config
        cold: dict[tuple[str, int], list[FinishedModel]] = {}
        children: dict[tuple[str, str, int], list[FinishedModel]] = {}
        asked: list[FinishedModel] = []
        members: list[Members] = []
        for seed in config.seeds:
            for index, rung in enumerate(self.ladder.rungs):  # a step is measured before the next one begins
                fractions = config.cold_fractions if rung.name in config.measured_rungs else (1.0,)
                cold[rung.name, seed] = _finished(self.cold(index, seed), fractions, "cold_fractions")
                asked += cold[rung.name, seed]
                for recipe in config.recipes:
                    if rung.name in config.rungs_of(recipe) and (recipe.seeds is None or seed in recipe.seeds):
                        setup, key = self.child(recipe, index, seed), (recipe.name, rung.name, seed)
                        children[key] = _finished(setup, config.fractions_of(recipe), "child_fractions")
                        asked += children[key]
                        if recipe.members:
                            members += self._members(recipe, rung.name, setup)
        swept, tried = list(self._swept()), list(self._tried())
        trials = [model for rate in tried for model in rate.models]
        tried_members = list(self._members_of(trials))
        # The longest run tells which rate is best; the shorter ones, at the best alone, branch off what it left.
        deciding = [rate.deciding for rate in tried]
        later = {model.name for model in trials} - {model.name for model in deciding}
        labels = {models[0].setup.name: recipe for (recipe, _, _), models in reversed(children.items())}
        rates = {model.name: f"rate {rate:g}" for _, rate, model in swept}
        rates |= {
            model.name: f"{rate.recipe or 'cold'}, rate {rate.learning_rate:g}"
            for rate in tried
            for model in rate.models
        }

        def title(model: FinishedModel) -> str:
            made_as = "cold" if model.initial.parent is None else labels.get(model.setup.name, "parent")
            rung, seed = model.initial.rung.name, model.initial.seed
            made_as = "trunk" if not model.decays else made_as if model.decay is None else "member"
            return f"{rung} {rates.get(model.name, made_as)}, seed {seed}, {model.fraction:g}"

        return StudyPlan(
            config=config,
            ladder=self.ladder,
            cold=cold,
            children=children,
            trunks=self.trunks,
            members=members,
            swept=swept,
            tried=tried,
            rate_tasks=model_tasks(
                [*trials, *(entry.decayed for entry in tried_members)],
                title,
                [entry.averaged for entry in tried_members],
                held=later,
            ),
            tasks=model_tasks(
                [
                    *deciding,
                    *asked,
                    *(entry.decayed for entry in (*tried_members, *members)),
                    *(model for _, _, model in swept),
                ],
                title,
                [entry.averaged for entry in (*tried_members, *members)],
            ),
        )

    def _swept(self) -> Iterator[tuple[Literal["cold", "child"], float, FinishedModel]]:
        rates, seed, recipe = self.config.learning_rates, self.config.seeds[0], self.config.headline_recipe
        index = self.indices[rates.rung or self.config.rungs_of(recipe)[0]]
        for rate in rates.cold:
            yield "cold", rate, self.cold(index, seed, rate).finished(1.0)
        share = self.config.fractions_of(recipe)[-1] if recipe.trunk else recipe.parent_fraction
        for rate in rates.child:
            yield "child", rate, self.child(recipe, index, seed, rate).finished(share)

    def _tried(self) -> Iterator[TriedRate]:
        config, sweep = self.config, self.config.learning_rates
        recipes = [recipe for recipe in config.recipes if sweep.recipes is None or recipe.name in sweep.recipes]
        for seed in config.seeds_of_rates:
            for rate in sweep.rates:
                index = self.indices[sweep.rung or config.measured_rungs[0]]
                models = [self.cold(index, seed, rate).finished(fraction) for fraction in config.cold_fractions]
                models = models[: config.cold_fractions.index(1.0) + 1]
                yield TriedRate(recipe=None, learning_rate=rate, seed=seed, models=models)
            for recipe in recipes:
                index = self.indices[sweep.rung or config.rungs_of(recipe)[0]]
                for rate in sweep.rates:
                    setup = self.child(recipe, index, seed, rate)
                    models = [setup.finished(fraction) for fraction in config.fractions_of(recipe)]
                    yield TriedRate(recipe=recipe.name, learning_rate=rate, seed=seed, models=models)

    def _members_of(self, trials: list[FinishedModel]) -> Iterator[Members]:
        # The members of stages at every rate that is tried: a stage whose members came later would be trained again.
        config = self.config
        stages = {stage.name for model in trials for stage in model.initial.lineage}
        with_members = [recipe for recipe in config.recipes if recipe.members]
        for recipe, seed in itertools.product(with_members, config.seeds_of_rates):
            if recipe.seeds is not None and seed not in recipe.seeds:
                continue
            for end, rate in itertools.product(config.rungs_of(recipe), config.learning_rates.rates):
                setup = self.child(recipe, self.indices[end], seed, rate)
                found = self._members(recipe, end, setup)
                yield from (entry for entry in found if entry.stage.name in stages)

    def _members(self, recipe: RecipeConfig, end: str, setup: TrainingSetup) -> list[Members]:
        try:
            return list(members_of(recipe.name, setup, self.trunks[recipe.name, end]))
        except ValueError as error:
            raise ValueError(f"recipe {recipe.name!r}: {error}") from None


def _finished(setup: TrainingSetup, fractions: Sequence[float], key: str) -> list[FinishedModel]:
    models = [setup.finished(fraction) for fraction in fractions]
    steps = [model.steps for model in models]
    if len(set(steps)) < len(steps):
        raise ValueError(
            f"{key}: {list(fractions)} of {setup.initial.rung.name}'s {setup.cold_steps} steps are {steps} steps"
            f"{' of its own' * bool(setup.initial.lineage)}, some of them the same; take them farther apart, or train"
            " on more tokens"
        )
    return models


def _rungs_alone(config: LadderConfig) -> LadderPlan:
    # The rungs by themselves: none is grown from another.
    alone = (plan_ladder(dataclasses.replace(config, rungs=(rung,), cold="none")).rungs[0] for rung in config.rungs)
    rungs = tuple(dataclasses.replace(rung, index=index) for index, rung in enumerate(alone))
    return LadderPlan(config=config, rungs=rungs)
