"""What a trunk achieved: the last-model cost of the rung that it ends in, read on the baselines' own curve."""

from statistics import fmean

from hf_progressive.config import RecipeConfig
from hf_progressive.records.last_model import LastModelCost, SeedCost, cost_on_baselines, over_seeds
from hf_progressive.records.study_outcome import FamilyOutcome, MeanGap, RecipeStep, SeedOutcome, ShareCost
from hf_progressive.study.points import Point, target_of
from hf_progressive.study.results import StudyResults, complete_seeds, named, with_ends


def trunk_outcome(results: StudyResults, recipe: RecipeConfig, rung: str) -> RecipeStep | None:
    """Compare a trunk that ends in a rung with the rung's baselines, over all seeds that are complete.

    Everything is at equal bits per byte: a trunk's C_scratch is the budget at which the finished baselines of its seed
    have what it ended with. The recipe's figures are those of its longest trunk.

    Returns:
        What was saved; None where no seed is complete.
    """
    seeds = list(complete_seeds(results, recipe, rung))
    if not seeds:
        return None
    by_share: list[tuple[float, list[SeedCost]]] = []
    for place, fraction in enumerate(results.plan.config.fractions_of(recipe)):
        found = (
            cost_on_baselines(
                seed=seed, lineage_flops=results.lineage_flops(parent), child=trunk[place], baselines=baselines
            )
            for seed, trunk, baselines, parent in seeds
        )
        by_share.append((fraction, [cost for cost in found if cost is not None]))
    costs = by_share[-1][1]
    complete = len(costs) == len(seeds)
    gaps = [trunk[-1].bits_per_byte - target_of(baselines).bits_per_byte for _, trunk, baselines, _ in seeds]
    sizes = [rung_plan.size for rung_plan in results.plan.trunks[recipe.name, rung].rungs]
    return RecipeStep(
        parent=sizes[-2].name,
        child=rung,
        c_parent_over_c_cold=sizes[-2].flops / sizes[-1].flops,
        **named("saving", [1 - cost.c_child / cost.c_scratch for cost in costs] if complete else None),
        **named("eta", [cost.eta for cost in costs] if complete else None),
        at_least=False,
        matched=len(costs),
        seeds=len(seeds),
        gap_bits_per_byte=fmean(gaps),
        gap_as_trained=MeanGap(**with_ends("mean", gaps)),
        c_cold=sizes[-1].flops,
        c_parent=fmean(results.lineage_flops(parent) for _, _, _, parent in seeds),
        c_child=fmean(trunk[-1].flops for _, trunk, _, _ in seeds),
        by_seed=tuple(
            _seed_outcome(seed, trunk[-1], gap, results.lineage_flops(parent), costs)
            for (seed, trunk, _, parent), gap in zip(seeds, gaps, strict=True)
        ),
        advantage=(),
        last_model_cost=_complete(costs, len(seeds)),
        by_share=tuple(
            ShareCost(fraction=fraction, last_model_cost=cost)
            for fraction, found in by_share
            if (cost := _complete(found, len(seeds))) is not None
        ),
    )


def _complete(costs: list[SeedCost], seeds: int) -> LastModelCost | None:
    return over_seeds(costs) if len(costs) == seeds else None


def _seed_outcome(seed: int, end: Point, gap: float, lineage_flops: float, costs: list[SeedCost]) -> SeedOutcome:
    cost = next((cost for cost in costs if cost.seed == seed), None)
    return SeedOutcome(
        seed=seed,
        c_child=end.flops if cost else None,
        reached="between" if cost else "no",
        gap_bits_per_byte=gap,
        c_parent=lineage_flops,
        saving=1 - cost.c_child / cost.c_scratch if cost else None,
        eta=cost.eta if cost else None,
    )


def trunk_alone(results: StudyResults, recipe: RecipeConfig) -> FamilyOutcome:
    """State the budget of a trunk's last rung; its smaller stages are no members that a family would be summed of."""
    last = results.plan.config.rungs_of(recipe)[-1]
    flops = float(results.plan.trunks[recipe.name, last].rungs[-1].size.flops)
    return FamilyOutcome(
        cold=flops, inherited=None, last_alone=flops, **named("over_last_alone", None), at_most=False, seeds=0
    )
