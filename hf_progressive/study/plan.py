"""The whole of a study, laid out before any compute: who needs which models, and in which order they are trained."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from hf_progressive.config import LadderConfig, RecipeConfig, StudyConfig
from hf_progressive.planning.ladder_plan import LadderPlan, RungPlan, plan_ladder
from hf_progressive.study.model_tasks import model_tasks
from hf_progressive.study.models import FinishedModel, InitialModel, TrainingSetup
from hf_progressive.study.tasks import Task
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

    swept: list[tuple[Literal["cold", "child"], float, FinishedModel]]
    """Models of the sweep: `cold` or `child`, peak learning rate, model."""

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
        self.ladder = plan_ladder(config.ladder)
        self.ladders = {recipe.name: config.ladder_of(recipe) for recipe in config.recipes}
        self.plans = {recipe.name: self._planned(recipe) for recipe in config.recipes}
        self.first_blocks = self._first_blocks()

    def _planned(self, recipe: RecipeConfig) -> LadderPlan:
        if all(key.startswith("phi.") for key in recipe.set):
            return self.ladder  # Φ changes neither sizes nor growth
        try:
            return plan_ladder(self.ladders[recipe.name])
        except ValueError as error:
            raise ValueError(f"recipe {recipe.name!r}: {error}") from None

    def _first_blocks(self) -> list[int]:
        # Where each rung begins to read: behind all that any rung below may have read, whatever its recipe or length,
        # so that a recipe added later changes nothing of what is there. Child and baseline begin at the same block.
        recipes = [self.config.fractions_of(recipe)[-1] for recipe in self.config.recipes]
        share = max(1.0, *self.config.cold_fractions, *self.config.child_fractions, *recipes)
        blocks, first = [], 0
        for rung in self.ladder.rungs:
            blocks.append(first)
            first += -(-round(share * rung.size.tokens) // self.config.ladder.model.context)
        return blocks

    def cold(self, index: int, seed: int, learning_rate: float | None = None) -> TrainingSetup:
        rung, ladder = self.ladder.rungs[index], self.config.ladder
        return self._setup(rung, seed, ladder, learning_rate or ladder.training.learning_rate)

    def child(self, recipe: RecipeConfig, index: int, seed: int, learning_rate: float | None = None) -> TrainingSetup:
        rung, ladder = self.plans[recipe.name].rungs[index], self.ladders[recipe.name]
        rate = learning_rate or ladder.training.inherited_learning_rate or ladder.training.learning_rate
        return self._setup(rung, seed, ladder, rate, self._parent(recipe, index - 1, seed), recipe.carry_moments)

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
        study, shuffle_seed = self.config.ladder, self.config.ladder.data.shuffle_seed
        initial = InitialModel(
            rung=rung,
            seed=seed,
            draw=study.seed + _SEED_STRIDE * seed + rung.index,
            fingerprint=self.fingerprint,
            ladder=ladder,
            parent=parent,
            carry_moments=carry_moments,
        )
        return TrainingSetup(
            initial=initial,
            training=ladder.training,
            phi=ladder.phi if initial.estimates_inheritance else None,
            learning_rate=learning_rate,
            cold_steps=rung.size.steps,
            first_block=self.first_blocks[rung.index],
            order=None if shuffle_seed is None else shuffle_seed + seed,
        )

    def plan(self) -> StudyPlan:
        config = self.config
        cold: dict[tuple[str, int], list[FinishedModel]] = {}
        children: dict[tuple[str, str, int], list[FinishedModel]] = {}
        asked: list[FinishedModel] = []
        for seed in config.seeds:
            for index, rung in enumerate(self.ladder.rungs):  # a step is measured before the next one begins
                fractions = config.cold_fractions if index else (1.0,)
                setup = self.cold(index, seed)
                cold[rung.name, seed] = [setup.finished(fraction) for fraction in fractions]
                asked += cold[rung.name, seed]
                for recipe in config.recipes if index else ():
                    if _measures(recipe, rung.name, seed):
                        setup, key = self.child(recipe, index, seed), (recipe.name, rung.name, seed)
                        children[key] = [setup.finished(fraction) for fraction in config.fractions_of(recipe)]
                        asked += children[key]
        swept = list(self._swept())
        labels = {models[0].setup.name: recipe for (recipe, _, _), models in reversed(children.items())}
        rates = {model.name: f"rate {rate:g}" for _, rate, model in swept}

        def title(model: FinishedModel) -> str:
            made_as = "cold" if model.initial.parent is None else labels.get(model.setup.name, "parent")
            rung, seed = model.initial.rung.name, model.initial.seed
            return f"{rung} {rates.get(model.name, made_as)}, seed {seed}, {model.fraction:g}"

        tasks = model_tasks([*asked, *(model for _, _, model in swept)], title)
        return StudyPlan(config=config, ladder=self.ladder, cold=cold, children=children, swept=swept, tasks=tasks)

    def _swept(self) -> Iterator[tuple[Literal["cold", "child"], float, FinishedModel]]:
        rates, seed, recipe = self.config.learning_rates, self.config.seeds[0], self.config.headline_recipe
        index = 1 if rates.rung is None else [rung.name for rung in self.ladder.rungs].index(rates.rung)
        for rate in rates.cold:
            yield "cold", rate, self.cold(index, seed, rate).finished(1.0)
        for rate in rates.child:
            yield "child", rate, self.child(recipe, index, seed, rate).finished(recipe.parent_fraction)


def _measures(recipe: RecipeConfig, rung: str, seed: int) -> bool:
    return (recipe.rungs is None or rung in recipe.rungs) and (recipe.seeds is None or seed in recipe.seeds)
