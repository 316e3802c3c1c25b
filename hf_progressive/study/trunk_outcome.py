"""What a trunk achieved: the last-model cost of the rung that it ends in, read on the baselines' own curve."""

from collections.abc import Sequence
from statistics import fmean

from hf_progressive.config import RecipeConfig
from hf_progressive.planning.sizing import RungSize
from hf_progressive.records.last_model import LastModelCost, SeedCost, cost_on_baselines, over_seeds
from hf_progressive.records.stages import StageMember
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


def trunk_family(step: RecipeStep | None, sizes: Sequence[RungSize], members: Sequence[StageMember]) -> FamilyOutcome:
    """Add up what a trunk and its members by decay cost, and what all these models cost from scratch.

    From scratch each model is trained to the bits per byte that it has here, by its own size's baselines; a member
    that is worth more than its whole budget counts as that, so that nothing is extrapolated for it.

    Args:
        step: The trunk's outcome; None where no seed is complete.
        sizes: The stages and the last rung.
        members: The members of all stages and seeds, of the trunks that end in the last rung.

    Returns:
        The costs; without one member of every stage and seed, of known worth, the last rung's budget alone.
    """
    cost = None if step is None else step.last_model_cost
    budgets = {size.name: size.flops for size in sizes[:-1]}
    grown, scratch, alone = [], [], []
    for seed in () if cost is None else cost.by_seed:
        found = [member for member in members if (member.seed, member.kind) == (seed.seed, "decay")]
        worths = [min(member.worth, 1.0) * budgets[member.stage] for member in found if member.worth is not None]
        if sorted(member.stage for member in found) == sorted(budgets) and len(worths) == len(budgets):
            grown.append(seed.c_lineage + seed.c_child + sum(member.flops for member in found))
            scratch.append(seed.c_scratch + sum(worths))
            alone.append(seed.c_scratch)
    if cost is None or not grown or len(grown) < len(cost.by_seed):
        last = float(sizes[-1].flops)
        nothing = named("over_last_alone", None)
        return FamilyOutcome(cold=last, inherited=None, last_alone=last, **nothing, at_most=False, seeds=0)
    ratios = [family / last for family, last in zip(grown, alone, strict=True)]
    return FamilyOutcome(
        cold=fmean(scratch),
        inherited=fmean(grown),
        last_alone=fmean(alone),
        **named("over_last_alone", ratios, at_most=cost.at_most),
        at_most=cost.at_most,
        seeds=len(grown),
    )
