"""What recipes achieved: per rung over the seeds, for the family, and for Φ against its absence."""

import dataclasses
from collections.abc import Iterator, Sequence
from statistics import fmean

from hf_progressive.config import RecipeConfig
from hf_progressive.records.last_model import LastModelCost, cost_at_match, over_seeds
from hf_progressive.records.study_outcome import (
    Advantage,
    Difference,
    FamilyOutcome,
    MeanGap,
    PenaltyEffect,
    PenaltyPoint,
    PenaltyRecipe,
    PenaltyStep,
    RecipeStep,
    SeedOutcome,
)
from hf_progressive.study.points import Point, Transfer, bits_per_byte_at, crossing, target_of, transfer
from hf_progressive.study.results import StudyResults, complete_seeds, named, with_ends
from hf_progressive.study.trunk_outcome import trunk_outcome

_BEYOND = 0.05  # of FLOPs: how far Φ's estimates may carry a point beyond the reference's last


def rung_outcome(results: StudyResults, recipe: RecipeConfig, rung: str) -> RecipeStep | None:
    """Compare a recipe's children on a grown rung with their baselines, over all seeds that are complete.

    Returns:
        What was saved; None where no seed is complete. Where a seed did not match, η and saving are None and
        `gap_bits_per_byte` says how much is missing; where one matched at its smallest budget already, they are lower
        bounds (`at_least`), and their intervals have no upper end.
    """
    if recipe.trunk:
        return trunk_outcome(results, recipe, rung)
    plan = results.plan
    index = plan.rungs.index(rung)
    seeds, transfers, pairs, as_trained = [], [], [], []
    for seed, child, cold, parent in complete_seeds(results, recipe, rung):
        seeds.append(seed)
        pairs.append((child, cold))
        transfers.append(transfer(child, cold, results.lineage_flops(parent)))
        as_trained.append(_bits_per_byte_after(child, recipe.parent_fraction) - target_of(cold).bits_per_byte)
    if not seeds:
        return None
    sizes = [plan.ladder.rungs[i].size.flops for i in (index - 1, index)]
    matched = all(item.eta is not None for item in transfers)
    eta = [item.eta for item in transfers if item.eta is not None] if matched else None
    saving = [item.saving for item in transfers if item.saving is not None] if matched else None
    at_least = any(item.crossing.reached == "at_most" for item in transfers)
    return RecipeStep(
        parent=plan.rungs[index - 1],
        child=rung,
        c_parent_over_c_cold=sizes[0] / sizes[1],
        **named("saving", saving, at_least=at_least),
        **named("eta", eta, at_least=at_least),
        at_least=at_least,
        matched=sum(item.eta is not None for item in transfers),
        seeds=len(seeds),
        gap_bits_per_byte=fmean(item.crossing.gap_bits_per_byte for item in transfers),
        gap_as_trained=MeanGap(**with_ends("mean", as_trained)),
        c_cold=sizes[1],
        c_parent=_mean([item.parent_flops for item in transfers]),
        c_child=_mean([item.crossing.flops for item in transfers if item.crossing.flops]) if matched else None,
        by_seed=tuple(_seed_outcome(seed, item) for seed, item in zip(seeds, transfers, strict=True)),
        advantage=tuple(_advantages(pairs)),
        last_model_cost=_last_model_cost(seeds, transfers, pairs) if matched else None,
    )


def _last_model_cost(
    seeds: Sequence[int], transfers: Sequence[Transfer], pairs: Sequence[tuple[list[Point], list[Point]]]
) -> LastModelCost:
    costs = []
    for seed, item, (_, cold) in zip(seeds, transfers, pairs, strict=True):
        assert item.crossing.flops is not None
        at_most = item.crossing.reached == "at_most"
        costs.append(
            cost_at_match(
                seed=seed,
                lineage_flops=item.parent_flops,
                match_flops=item.crossing.flops,
                baseline=target_of(cold),
                at_most=at_most,
            )
        )
    return over_seeds(costs)


def _bits_per_byte_after(child: Sequence[Point], fraction: float) -> float:
    """Return a child's bits per byte at a share of the budget: between its lengths, outside the nearest one's.

    >>> child = [Point(fraction=f, flops=100 * f + 50, bits_per_byte=b) for f, b in ((0.25, 4.0), (1.0, 2.0))]
    >>> _bits_per_byte_after(child, 0.5), _bits_per_byte_after(child, 1.5)
    (3.0, 2.0)
    """
    by_share = [dataclasses.replace(point, flops=point.fraction) for point in child]  # estimates are no share of it
    between = bits_per_byte_at(by_share, fraction)
    nearest = min(child, key=lambda point: abs(point.fraction - fraction))
    return nearest.bits_per_byte if between is None else between


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _seed_outcome(seed: int, item: Transfer) -> SeedOutcome:
    return SeedOutcome(
        seed=seed,
        c_child=item.crossing.flops,
        reached=item.crossing.reached,
        gap_bits_per_byte=item.crossing.gap_bits_per_byte,
        c_parent=item.parent_flops,
        saving=item.saving,
        eta=item.eta,
    )


def _advantages(pairs: Sequence[tuple[list[Point], list[Point]]]) -> Iterator[Advantage]:
    # At every budget of the baseline: the share of it that the child did not need, over the seeds that matched there.
    for position, baseline in enumerate(pairs[0][1]):
        found = [(crossing(child, cold[position].bits_per_byte), cold[position].flops) for child, cold in pairs]
        shares = [1 - cross.flops / flops for cross, flops in found if cross.flops is not None]
        yield Advantage(
            cold_fraction=baseline.fraction,
            matched=len(shares),
            saving=_mean(shares),
            at_least=any(cross.reached == "at_most" for cross, _ in found),
        )


def family_outcome(results: StudyResults, recipe: RecipeConfig) -> FamilyOutcome:
    """Add up what a whole family costs: all cold, by inheritance, and its last model alone.

    By inheritance, the first rung trains for its whole budget, each grown one as it was trained to be a parent, and
    the last one to its crossing.
    """
    sizes = [float(rung.size.flops) for rung in results.plan.ladder.rungs]
    last = results.plan.rungs[-1]
    totals: list[float | None] = []
    at_most = False
    for _, child, cold, parent in complete_seeds(results, recipe, last):
        found = crossing(child, target_of(cold).bits_per_byte)
        at_most |= found.reached == "at_most"
        totals.append(None if found.flops is None else results.lineage_flops(parent) + found.flops)
    known = [total for total in totals if total is not None]
    complete = bool(known) and len(known) == len(totals)
    ratio = [total / sizes[-1] for total in known] if complete else None
    return FamilyOutcome(
        cold=sum(sizes),
        inherited=_mean(known) if complete else None,
        last_alone=sizes[-1],
        **named("over_last_alone", ratio, at_most=at_most),
        at_most=at_most,
        seeds=len(totals),
    )


def phi_outcome(results: StudyResults) -> PenaltyEffect:
    """Compare every recipe with Φ with its reference without it, at equal total FLOPs and at equal tokens.

    A recipe's point has spent more than the reference's of the same length, by what the estimates cost. At equal FLOPs
    the reference is therefore interpolated at the recipe's, and its line goes on a little beyond its last point. At
    equal tokens the estimates are free, as they nearly are where a budget is much larger than the blocks they read.
    """
    config, recipes = results.plan.config, []
    for recipe in config.recipes:
        phi, reference = config.ladder_of(recipe).phi, recipe.reference or config.reference
        if reference is None or phi.is_off:
            continue
        steps = (
            PenaltyStep(rung=rung, points=tuple(_phi_points(results, recipe.name, reference, rung)))
            for rung in results.plan.rungs
        )
        recipes.append(
            PenaltyRecipe(
                recipe=recipe.name,
                reference=reference,
                ewc_lambda=phi.ewc_lambda,
                gamma=phi.gamma,
                schedule=phi.schedule,
                until=phi.until,
                rungs=tuple(step for step in steps if step.points),
            )
        )
    return PenaltyEffect(reference=config.reference, recipes=tuple(recipes))


def _phi_points(results: StudyResults, recipe: str, reference: str, rung: str) -> list[PenaltyPoint]:
    differences: dict[float, list[float]] = {}
    tokens: dict[float, list[float]] = {}  # at equal ones
    flops: dict[float, float] = {}
    for seed in results.plan.config.seeds:
        models = [results.plan.children.get((name, rung, seed)) for name in (recipe, reference)]
        with_phi, without = (results.points(found) if found else None for found in models)
        if with_phi is None or without is None:
            continue
        of_same_length = {point.fraction: point.bits_per_byte for point in without}
        for point in with_phi:
            expected = bits_per_byte_at(without, point.flops, beyond=_BEYOND)
            if expected is None:
                continue
            differences.setdefault(point.fraction, []).append(point.bits_per_byte - expected)
            flops[point.fraction] = point.flops
            if point.fraction in of_same_length:
                difference = point.bits_per_byte - of_same_length[point.fraction]
                tokens.setdefault(point.fraction, []).append(difference)
    return [
        PenaltyPoint(
            fraction=fraction,
            flops=flops[fraction],
            seeds=len(values),
            **with_ends("difference", values),
            at_equal_tokens=Difference(**with_ends("difference", tokens[fraction])) if fraction in tokens else None,
        )
        for fraction, values in sorted(differences.items())
    ]
