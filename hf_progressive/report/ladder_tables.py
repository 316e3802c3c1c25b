"""A ladder's results as tables, and what must be said under them."""

from collections.abc import Sequence

from hf_progressive.records.family import Count, FamilyCost, Part
from hf_progressive.records.rung import RungRecord
from hf_progressive.report.formatting import (
    NOTHING,
    FlopUnit,
    count,
    decimals,
    join_names,
    minus,
    percent,
    signed,
    small,
)
from hf_progressive.report.table import Table

PLANNED = "*"
"""Marks a cold cost that no run has measured."""

AT_LEAST = "≥ "
"""Marks a sum that lacks what is not known of a model trained elsewhere."""


def flop_unit(rungs: Sequence[RungRecord]) -> FlopUnit:
    """Return the unit for all FLOPs of a run, which suits its dearest rung."""
    return FlopUnit.for_values(max(rung.cold_cost, rung.flops.spent) for rung in rungs)


def rung_table(rungs: Sequence[RungRecord]) -> Table:
    """Lay out what was measured on every rung, a row each."""
    unit = flop_unit(rungs)
    return Table(
        groups=(
            *(("", 2), ("layers", 1), ("", 1), ("tokens", 1), ("max", 1)),
            *(("bits per byte", 3), (unit.name, 3), ("", 2), ("parent", 1)),
        ),
        header=(
            *("rung", "parent", "×width", "params", ": params", "|Δlogit|"),
            *("own", "cold", "gap", "spent", "to match", "cold", "saving", "η", "/ cold"),
        ),
        rows=tuple(_rung_row(rung, unit) for rung in rungs),
    )


def _rung_row(rung: RungRecord, unit: FlopUnit) -> tuple[str, ...]:
    return (
        rung.name,
        rung.parent or NOTHING,
        f"{rung.layers or '?'}×{rung.width or '?'}",
        count(rung.parameters.total),
        f"{rung.tokens_per_parameter:.2f}" if rung.tokens else NOTHING,
        NOTHING if rung.max_abs_logit_diff is None else small(rung.max_abs_logit_diff),
        f"{rung.bits_per_byte:.4f}",
        decimals(None if rung.cold is None else rung.cold.bits_per_byte, 4),
        NOTHING if rung.gap_bits_per_byte is None else signed(rung.gap_bits_per_byte),
        spent(rung, unit),
        _to_match(rung, unit),
        unit.number(rung.cold_cost) + PLANNED * rung.cold_is_planned if rung.cold_is_known else NOTHING,
        NOTHING if rung.saving is None else percent(rung.saving),
        decimals(rung.eta),
        decimals(rung.c_parent_over_c_cold),
    )


def spent(rung: RungRecord, unit: FlopUnit) -> str:
    """Write what was spent on a rung, as a lower bound where it was trained elsewhere and not all is known."""
    if rung.origin is None or rung.origin.is_complete:
        return unit.number(rung.flops.spent)
    return AT_LEAST + unit.number(rung.flops.spent) if rung.flops.spent else NOTHING


def _to_match(rung: RungRecord, unit: FlopUnit) -> str:
    if rung.flops_to_match is not None:
        return unit.number(rung.flops_to_match)
    return NOTHING if rung.cold is None else "not matched"


def totals_table(rungs: Sequence[RungRecord]) -> Table:
    """Lay out what the family of one rung or more costs, a row for each way of counting."""
    counts, unit, spent = FamilyCost(rungs=tuple(rungs)).counts, flop_unit(rungs), validation_flops(rungs)
    all_cold, last_alone = counts[0], counts[3]
    shown = counts if any(rung.grown for rung in rungs) else counts[:-1]
    rows = [_totals_row(count, all_cold, last_alone, unit) for count in shown]
    if spent is not None:
        parts = (Part(name="validation", flops=sum(flops for flops, _ in spent.values()), kind="cold"),)
        title = "validation on top, counted in none of these"
        rows.append(_totals_row(Count(title=title, parts=parts), all_cold, last_alone, unit))
    return Table(header=("the family", unit.name, "of all cold", "of the last alone"), rows=tuple(rows))


def _totals_row(count: Count, all_cold: Count, last_alone: Count, unit: FlopUnit) -> tuple[str, ...]:
    if count.flops is None or not all_cold.flops or not last_alone.flops:
        return (count.title, NOTHING, NOTHING, NOTHING)
    bound = AT_LEAST * count.at_least
    share = bound + percent(count.flops / all_cold.flops) + PLANNED * all_cold.planned
    return (
        count.title,
        bound + unit.number(count.flops) + PLANNED * count.planned,
        NOTHING if all_cold.at_least else share,
        bound + f"{count.flops / last_alone.flops:.2f} ×" + PLANNED * (count.planned or last_alone.planned),
    )


def validation_flops(rungs: Sequence[RungRecord]) -> dict[str, tuple[float, float]] | None:
    """Add up FLOPs of validation and of the training along which it was done, `grown` and `from scratch` apart.

    None where a record, being older, does not say.
    """
    sums = {"grown": (0.0, 0.0), "from scratch": (0.0, 0.0)}
    for rung in rungs:
        side = "grown" if rung.grown else "from scratch"
        runs = [] if rung.origin is not None else [(side, rung.flops.evaluation, rung.flops.train)]
        if rung.cold is not None:
            runs.append(("from scratch", rung.cold.evaluation_flops, rung.cold.flops))
        for name, validating, training in runs:
            if validating is None:
                return None
            sums[name] = (sums[name][0] + validating, sums[name][1] + training)
    return {name: pair for name, pair in sums.items() if pair[1]}


def core_table(rungs: Sequence[RungRecord]) -> Table | None:
    """Lay out what the rungs reach on CORE, with standard errors; None if no rung was evaluated.

    A row for the score, under the name that may be claimed for it, and one per task, both as centred accuracy.
    """
    scores = [rung.core for rung in rungs if rung.core is not None]
    if not scores:
        return None
    rows = []
    for name in dict.fromkeys(score.name for score in scores):
        known = [rung.core if rung.core and rung.core.name == name else None for rung in rungs]
        pairs = (None if core is None else (core.score, core.standard_error) for core in known)
        rows.append((name, *map(_with_error, pairs)))
    for label in dict.fromkeys(label for score in scores for label in score.by_task):
        found = (None if rung.core is None else rung.core.by_task.get(label) for rung in rungs)
        rows.append((label, *map(_with_error, found)))
    return Table(header=("centred accuracy", *(rung.name for rung in rungs)), rows=tuple(rows))


def _with_error(measured: tuple[float, float] | None) -> str:
    return NOTHING if measured is None else minus(f"{measured[0]:.3f} ± {measured[1]:.3f}")


def table_notes(rungs: Sequence[RungRecord]) -> list[str]:
    """Return what must be said under the table: the unit, what is planned, and from where on data repeat."""
    notes = [f"{flop_unit(rungs).definition}; those of Fisher and subspace are counted."]
    planned = [rung.name for rung in rungs if rung.cold_is_planned]
    if planned:
        notes.append(f"{PLANNED} planned: no baseline of {join_names(planned)} has been trained here.")
    spent = validation_flops(rungs)
    if spent:
        validating, training = map(sum, zip(*spent.values(), strict=True))
        sides = ", ".join(f"{percent(a / b, 1)} on models {name}" for name, (a, b) in spent.items())
        share = percent(validating / training, 1)
        notes.append(f"Validation, {share} on top of all training ({sides}), is not counted on either side.")
    branches = [(rung, rung.trunk.member) for rung in rungs if rung.trunk is not None and rung.trunk.member != "end"]
    if branches:
        notes.append(_branch_note(branches, flop_unit(rungs)))
    if rungs[0].trunk is not None and rungs[0].tokens != rungs[0].cold_tokens:
        notes.append(_first_note(rungs[0]))
    taken = [_origin_note(rung) for rung in rungs if rung.origin is not None]
    return [*notes, *taken, data_repetition(rungs)]


def _branch_note(branches: Sequence[tuple[RungRecord, str]], unit: FlopUnit) -> str:
    names = join_names([rung.name for rung, _ in branches])
    them = "is a branch" if len(branches) == 1 else "are branches"
    how = {
        "decay": "finished by a decay of its own",
        "average": "the average of the trunk's last weights at that size, which cost no training",
        "none": "the trunk's weights as they are",
    }
    text = f"{names} {them} off one constant-rate run, the trunk; each is {how[branches[0][1]]}"
    cost = sum(rung.flops.branch for rung, _ in branches)
    return f"{text}. No later model inherits what that cost, {unit.text(cost)} in all." if cost else f"{text}."


def _first_note(first: RungRecord) -> str:
    share = percent(first.tokens / first.cold_tokens)
    if first.cold_is_planned:
        return (
            f"{first.name}, with which the trunk begins, trained on {share} of its whole budget and has no baseline: "
            "from scratch it counts as its whole budget."
        )
    return (
        f"{first.name}, with which the trunk begins, has no baseline: from scratch it counts as it was trained, on "
        f"{share} of its whole budget, which makes the family cost a little higher."
    )


def _origin_note(rung: RungRecord) -> str:
    assert rung.origin is not None
    origin, unit = rung.origin, FlopUnit.for_values([rung.origin.flops])
    alike = "a checkpoint of that name" if origin.rung is None else "another ladder"
    name = alike if origin.name == rung.name else origin.name
    where = name if origin.commit is None else f"{name} at {origin.commit[:12]}"
    taken = f"{rung.name} was not trained here but taken from {where}"
    if not origin.flops:
        return (
            f"{taken}. What went into it is not recorded: its FLOPs count as 0, and no η can be stated on top of it."
        )
    if not origin.is_complete:
        return (
            f"{taken}. {unit.text(origin.flops)} that went into it are recorded; what its first ancestor took is not."
        )
    return f"{taken}; all {unit.text(origin.flops)} that went into it count as its cost."


def data_repetition(rungs: Sequence[RungRecord]) -> str:
    """Say from which epoch on data repeat."""
    for rung in rungs:
        token = rung.data.repeats_from_token
        if token is not None:
            epoch = max(rung.data.first_epoch, 1) + 1  # people count epochs from 1; data first repeat in the second
            where = "the first token" if token == 0 else f"token {count(token)}"
            return f"Data repeat from {where} of {rung.name} on, in epoch {epoch} of the corpus."
    unknown = [rung.name for rung in rungs if rung.origin is not None and rung.data.source == "unknown"]
    if unknown:
        return f"No rung trained on a block twice that was read here; what {unknown[0]} had read before is not known."
    if any(rung.flops.branch for rung in rungs):
        return (
            "The trunk trained on no block of the corpus twice; a member's decay reads the blocks with which the "
            "trunk itself goes on."
        )
    return "No rung trained on a block of the corpus that it or an earlier rung had read."
