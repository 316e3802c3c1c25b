"""A study's results as tables."""

import itertools
from typing import Literal

from hf_progressive.records.study import FinishedRun, StudyRecord
from hf_progressive.records.study_outcome import Difference, RecipeStep, StepOutcome
from hf_progressive.records.tried_rates import tried_sides
from hf_progressive.report.formatting import NOTHING, count, decimals, percent, signed, signed_ends, two_ends
from hf_progressive.report.study_findings import study_unit
from hf_progressive.report.table import Table


def steps_table(study: StudyRecord) -> Table:
    """Lay out the headline recipe's steps, a row per grown rung."""
    rows = tuple(
        (
            rung.child,
            *_cost_cells(rung),
            _bounded(rung, "eta"),
            _interval(rung),
            decimals(None if rung.eta is None else rung.eta_ceiling),
            _bounded(rung, "saving"),
            f"{rung.matched}/{rung.seeds}",
        )
        for rung in _headline_steps(study)
    )
    return Table(header=("child", "last-model cost", "95 %", "η", "95 %", "at most", "saving", "seeds"), rows=rows)


def _headline_steps(study: StudyRecord) -> list[RecipeStep]:
    steps = {step.child: step for step in study.headline_recipe.rungs}
    return [steps[step.child] for step in study.headline.rungs]


def _cost_cells(rung: RecipeStep) -> tuple[str, str]:
    cost = rung.known_cost
    if cost is None:
        return NOTHING, NOTHING
    return "≤ " * cost.at_most + f"{cost.value:.2f}" + "*" * (cost.extrapolated > 0), two_ends(cost.low, cost.high)


def _bounded(rung: StepOutcome, key: Literal["saving", "eta"]) -> str:
    value: float | None = getattr(rung, key)
    if value is None:
        return NOTHING
    return ("≥ " if rung.at_least else "") + (percent(value) if key == "saving" else f"{value:.2f}")


def _interval(rung: StepOutcome) -> str:
    return NOTHING if rung.eta is None else two_ends(rung.eta_low, rung.eta_high)


def models_table(study: StudyRecord) -> Table:
    """Lay out the models, a row per rung."""
    unit = study_unit(study)
    rows = tuple(
        (
            rung.name,
            count(rung.parameters),
            count(rung.cold_tokens),
            unit.number(rung.cold_flops),
            decimals(rung.c_parent_over_c_cold),
        )
        for rung in study.rungs
    )
    return Table(header=("rung", "parameters", "tokens cold", f"{unit.name} cold", "parent/cold"), rows=rows)


def recipes_table(study: StudyRecord) -> Table:
    """Lay out all recipes on all steps, a row each."""
    rows = tuple(
        (
            recipe.name,
            rung.child,
            str(rung.seeds),
            _bounded(rung, "eta"),
            _interval(rung),
            *_cost_cells(rung),
            signed(rung.gap_bits_per_byte),
        )
        for recipe in study.recipes
        for rung in recipe.rungs
    )
    header = ("recipe", "child", "seeds", "η", "95 %", "last-model cost", "95 %", "longest child − baseline")
    return Table(header=header, rows=rows)


def phi_table(study: StudyRecord) -> Table | None:
    """Lay out Φ against its absence, a row per recipe with Φ and step; None where nothing was compared.

    A budget has two columns: at equal FLOPs, and at equal tokens, where the estimates cost nothing.
    """
    rungs = [
        (recipe.recipe, rung.rung, {point.fraction: point for point in rung.points})
        for recipe in study.headline.phi_effect.recipes
        for rung in recipe.rungs
    ]
    fractions = sorted({fraction for _, _, points in rungs for fraction in points})
    if not fractions:
        return None
    columns = ((percent(fraction), f"{percent(fraction)}, equal tokens") for fraction in fractions)
    rows = []
    for recipe, rung, by_fraction in rungs:
        points = [by_fraction.get(fraction) for fraction in fractions]
        cells = ((_difference(point), _difference(point and point.at_equal_tokens)) for point in points)
        rows.append((recipe, rung, *itertools.chain.from_iterable(cells)))
    return Table(header=("recipe", "child", *itertools.chain.from_iterable(columns)), rows=tuple(rows))


def _difference(point: Difference | None) -> str:
    if point is None:
        return NOTHING
    return signed(point.difference) + (f" ({signed_ends(*point.ends)})" if point.ends else "")


def rates_table(study: StudyRecord) -> Table:
    """Lay out the sweep of learning rates, a row per training run."""
    best = {side.recipe: side.best for side in tried_sides(study) if not side.pending}
    several = len(study.seeds_of_rates) > 1
    rows = tuple(
        (
            f"{row.recipe or row.kind} {row.rung}",
            f"{row.learning_rate:g}",
            *((str(row.seed),) if several else ()),
            f"{row.point.bits_per_byte:.4f}" if isinstance(row.point, FinishedRun) else "training failed",
            *(("best",) if best.get(row.recipe) == row.learning_rate else ("",) if study.rates_tried else ()),
        )
        for row in study.learning_rates
        if row.point is not None
    )
    header = ("model", "peak rate", *(("seed",) if several else ()), "bits per byte")
    return Table(header=(*header, *(("",) if study.rates_tried else ())), rows=rows)
