"""The whole of a study, laid out before any compute: who needs which models, and in which order they are trained."""

from dataclasses import dataclass

from hf_progressive.config import LadderConfig, RecipeConfig, StudyConfig
from hf_progressive.planning.ladder_plan import LadderPlan, RungPlan, plan_ladder
from hf_progressive.study.tasks import Group, Run, Start, Task, TaskGraph
from hf_progressive.training.arguments import check_arguments

_SEED_STRIDE = 1000  # between the seeds of two studies' seeds, so that no two rungs share a draw


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """Every task of a study, and what each is for."""

    config: StudyConfig
    """The study."""

    ladder: LadderPlan
    """The ladder as it stands, with the sizes of all rungs."""

    graph: TaskGraph
    """The tasks."""

    cold: dict[tuple[str, int], list[Run]]
    """The baseline's runs by rung and seed; the first rung's model is there as well."""

    children: dict[tuple[str, str, int], list[Run]]
    """The children's runs that a recipe is measured by, by recipe, rung and seed."""

    swept: list[tuple[str, float, Run]]
    """Runs of the sweep: `cold` or `child`, peak learning rate, run."""

    tasks: list[Task]
    """All tasks in the order in which to take them; a task stands after those it needs."""

    @property
    def rungs(self) -> list[str]:
        """Names of the rungs, from the smallest."""
        return [rung.name for rung in self.ladder.rungs]


class _Builder:
    def __init__(self, config: StudyConfig, fingerprint: str) -> None:
        self.config = config
        self.ladder = plan_ladder(config.ladder)
        self.graph = TaskGraph(fingerprint, config.ladder.data.shuffle_seed)
        self.ladders = {recipe.name: config.recipe_ladder(recipe.name) for recipe in config.recipes}
        self.plans = {recipe.name: _planned(recipe, self.ladders[recipe.name]) for recipe in config.recipes}
        self.first_blocks = self._first_blocks()

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

    def draw(self, index: int, seed: int) -> int:
        return self.config.ladder.seed + _SEED_STRIDE * seed + index

    def cold_group(self, index: int, seed: int, learning_rate: float | None = None) -> Group:
        rung = self.ladder.rungs[index]
        start = self.graph.fresh(rung, seed, self.draw(index, seed))
        return self._group(start, rung, self.config.ladder, learning_rate)

    def child_group(self, recipe: RecipeConfig, index: int, seed: int, learning_rate: float | None = None) -> Group:
        ladder, rung = self.ladders[recipe.name], self.plans[recipe.name].rungs[index]
        parent = self.parent(recipe, index - 1, seed)
        start = self.graph.grown(rung, parent, self.draw(index, seed), ladder, recipe.carry_moments)
        return self._group(start, rung, ladder, learning_rate or ladder.training.inherited_learning_rate)

    def _group(self, start: Start, rung: RungPlan, ladder: LadderConfig, learning_rate: float | None) -> Group:
        # Everything is the recipe's own, nothing the start's: recipes that differ in this alone share the start.
        return self.graph.group(
            start,
            ladder.training,
            phi=ladder.phi if start.estimates_inheritance else None,
            cold_steps=rung.size.steps,
            learning_rate=learning_rate or ladder.training.learning_rate,
            first_block=self.first_blocks[rung.index],
        )

    def parent(self, recipe: RecipeConfig, index: int, seed: int) -> Run:
        # The finished run that a recipe's children on the next rung grow from.
        if index == 0:
            return self.graph.run(self.cold_group(0, seed), 1.0)
        source = recipe if recipe.parent_recipe is None else self.config.recipe(recipe.parent_recipe)
        return self.graph.run(self.child_group(source, index, seed), recipe.parent_fraction)

    def build(self) -> StudyPlan:
        config, graph = self.config, self.graph
        cold: dict[tuple[str, int], list[Run]] = {}
        children: dict[tuple[str, str, int], list[Run]] = {}
        for seed in config.seeds:
            for index, rung in enumerate(self.ladder.rungs):  # a step is measured before the next one begins
                fractions = config.cold_fractions if index else (1.0,)
                group = self.cold_group(index, seed)
                cold[rung.name, seed] = [graph.run(group, fraction) for fraction in fractions]
                for recipe in config.recipes if index else ():
                    if _measures(recipe, rung.name, seed):
                        group = self.child_group(recipe, index, seed)
                        runs = [graph.run(group, fraction) for fraction in config.fractions_of(recipe)]
                        children[recipe.name, rung.name, seed] = runs
        swept = self._swept()
        return StudyPlan(
            config=config,
            ladder=self.ladder,
            graph=graph,
            cold=cold,
            children=children,
            swept=swept,
            tasks=_ordered(graph),
        )

    def _swept(self) -> list[tuple[str, float, Run]]:
        rates, seed, recipe = self.config.learning_rates, self.config.seeds[0], self.config.headline_recipe
        names = [rung.name for rung in self.ladder.rungs]
        index = 1 if rates.rung is None else names.index(rates.rung)
        cold = [("cold", rate, self.graph.run(self.cold_group(index, seed, rate), 1.0)) for rate in rates.cold]
        child = [
            ("child", rate, self.graph.run(self.child_group(recipe, index, seed, rate), recipe.parent_fraction))
            for rate in rates.child
        ]
        return cold + child


def _planned(recipe: RecipeConfig, ladder: LadderConfig) -> LadderPlan:
    try:
        return plan_ladder(ladder)
    except ValueError as error:
        raise ValueError(f"recipe {recipe.name!r}: {error}") from None


def _measures(recipe: RecipeConfig, rung: str, seed: int) -> bool:
    return (recipe.rungs is None or rung in recipe.rungs) and (recipe.seeds is None or seed in recipe.seeds)


def _ordered(graph: TaskGraph) -> list[Task]:
    # Groups in the order in which they were asked for, which puts parents before children, one step before the next
    # and one seed before the next; in a group the start, the trunk, and the others, parents first, then the shortest.
    parents = {start.parent.name for start in graph.starts.values() if start.parent is not None}
    tasks: list[Task] = []
    for group in graph.groups.values():
        if group.start not in tasks:
            tasks.append(group.start)
        trunk = group.trunk
        branches = [run for run in group.runs if run is not trunk]
        tasks += [trunk, *sorted(branches, key=lambda run: (run.name not in parents, run.steps))]
    return tasks


def plan_study(config: StudyConfig, fingerprint: str) -> StudyPlan:
    """Lay out a study.

    Args:
        config: The study.
        fingerprint: The corpus's.

    Returns:
        The plan.

    Raises:
        ValueError: A rung cannot be built or grown as a recipe says; the message names the recipe.
    """
    check_arguments(config.ladder.training.arguments)
    return _Builder(config, fingerprint).build()
