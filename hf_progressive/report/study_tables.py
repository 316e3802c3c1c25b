"""A study's results as tables."""

import itertools
from typing import Any

from hf_progressive.report.formatting import NOTHING, count, percent
from hf_progressive.report.study_findings import Record, signed, study_unit, two_ends, value_or_nothing
from hf_progressive.report.table import Table


def steps_table(study: Record) -> Table:
    """Return the headline recipe's steps.

    Args:
        study: The record.

    Returns:
        A row per grown rung.
    """
    rows = tuple(
        (
            rung["child"],
            f"{rung['c_parent_over_c_cold']:.2f}",
            _bounded(rung, "saving"),
            _bounded(rung, "eta"),
            NOTHING if rung["eta"] is None else two_ends(rung["eta_low"], rung["eta_high"]),
            f"{rung['matched']}/{rung['seeds']}",
        )
        for rung in study["headline"]["rungs"]
    )
    return Table(groups=(), header=("child", "parent/cold", "saving", "η", "95 %", "seeds matched"), rows=rows)


def _bounded(rung: Record, key: str) -> str:
    value = rung[key]
    if value is None:
        return NOTHING
    text = percent(value) if key == "saving" else f"{value:.2f}"
    return f"≥ {text}" if rung["at_least"] else text


def models_table(study: Record) -> Table:
    """Return the models.

    Args:
        study: The record.

    Returns:
        A row per rung.
    """
    unit = study_unit(study)
    rows = tuple(
        (
            rung["name"],
            count(rung["parameters"]),
            count(rung["cold_tokens"]),
            unit.number(rung["cold_flops"]),
            value_or_nothing(rung["c_parent_over_c_cold"]),
        )
        for rung in study["rungs"]
    )
    return Table(
        groups=(), header=("rung", "parameters", "tokens cold", f"{unit.name} cold", "parent/cold"), rows=rows
    )


def recipes_table(study: Record) -> Table:
    """Return all recipes on all steps.

    Args:
        study: The record.

    Returns:
        A row per recipe and step.
    """
    rows = []
    for recipe in study["recipes"]:
        for rung in recipe["rungs"]:
            rows.append(
                (
                    recipe["name"],
                    rung["child"],
                    str(rung["seeds"]),
                    _bounded(rung, "eta"),
                    NOTHING if rung["eta"] is None else two_ends(rung["eta_low"], rung["eta_high"]),
                    signed(rung["gap_bits_per_byte"]),
                )
            )
    header = ("recipe", "child", "seeds", "η", "95 %", "longest child − baseline")
    return Table(groups=(), header=header, rows=tuple(rows))


def phi_table(study: Record) -> Table | None:
    """Return Φ against its absence.

    Args:
        study: The record.

    Returns:
        A row per recipe with Φ and step, two columns per budget: at equal FLOPs, and at equal tokens, where the
        estimates cost nothing; None where nothing was compared.
    """
    recipes = study["headline"]["phi_effect"]["recipes"]
    fractions = sorted(
        {point["fraction"] for recipe in recipes for rung in recipe["rungs"] for point in rung["points"]}
    )
    if not fractions:
        return None
    rows = []
    for recipe in recipes:
        for rung in recipe["rungs"]:
            by_fraction = {point["fraction"]: point for point in rung["points"]}
            points = (by_fraction.get(fraction) for fraction in fractions)
            cells = ((_difference(point), _difference(point and point.get("at_equal_tokens"))) for point in points)
            rows.append((recipe["recipe"], rung["rung"], *itertools.chain.from_iterable(cells)))
    columns = ((percent(fraction), f"{percent(fraction)}, equal tokens") for fraction in fractions)
    header = ("recipe", "child", *itertools.chain.from_iterable(columns))
    return Table(groups=(), header=header, rows=tuple(rows))


def _difference(point: dict[str, Any] | None) -> str:
    if point is None:
        return NOTHING
    ends = "" if point["low"] is None else f" ({signed(point['low'])} to {signed(point['high'])})"
    return signed(point["difference"]) + ends


def rates_table(study: Record) -> Table | None:
    """Return the sweep of learning rates.

    Args:
        study: The record.

    Returns:
        A row per run; None where there was no sweep.
    """
    rows = tuple(
        (
            f"{row['kind']} {row['rung']}",
            f"{row['learning_rate']:g}",
            value_or_nothing(row["point"].get("bits_per_byte"), 4),
        )
        for row in study["learning_rates"]
        if row["point"] is not None
    )
    return Table(groups=(), header=("model", "peak rate", "bits per byte"), rows=rows) if rows else None
