"""What a run has found, in sentences: what inheritance saved, and how sure that is.

The sentences come from the records alone. A run has one seed, so none of them gives an interval.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hf_progressive.records.family import FamilyTotals, family_totals
from hf_progressive.records.matching import crossing_interval
from hf_progressive.records.rung import Run, Rung
from hf_progressive.report.formatting import NOTHING, FlopUnit, minus, percent, small
from hf_progressive.report.table import data_repetition, flop_unit

_LONGEST_LIST = 4  # a tile has room for so many values of η


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number to be seen first."""

    title: str
    """What it is."""

    value: str
    """The number."""

    note: str
    """What it is made of."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """The answer to "what does it save, and how sure are you?"."""

    headline: str
    """The answer in one sentence."""

    explanation: str
    """The numbers behind it, and what must not be read into them."""

    figures: tuple[Figure, ...]
    """The numbers to be seen first; none before a rung has been grown."""

    certainty: tuple[str, ...]
    """How sure: each thing that bears on it, in a sentence."""

    unfinished: str | None
    """What the run has yet to train; None if it is complete."""


def find(run: Run) -> Findings:
    """Put a run's results into sentences.

    Args:
        run: The run, finished or not.

    Returns:
        The findings.
    """
    grown = [rung for rung in run.rungs if rung.grown]
    unfinished = _unfinished(run)
    if not grown:
        done = f"only the first rung, {run.rungs[0].name}, is finished" if run.rungs else "no rung is finished"
        return Findings(
            headline="Nothing to compare yet.",
            explanation=f"What inheritance saves shows on a grown rung and its baseline; {done}.",
            figures=(),
            certainty=(),
            unfinished=unfinished,
        )
    totals, unit = family_totals(run.rungs), flop_unit(run.rungs)
    headline, explanation = _answer(grown, totals, unit)
    return Findings(
        headline=headline,
        explanation=explanation,
        figures=_figures(totals, unit),
        certainty=_certainty(run, grown),
        unfinished=unfinished,
    )


def _unfinished(run: Run) -> str | None:
    parts = []
    if run.missing:
        parts.append(f"{len(run.rungs)} of {len(run.planned)} rungs are finished, {_names(run.missing)} not yet")
    if run.pending_baselines:
        parts.append(f"still to be trained cold: {_names(run.pending_baselines)}")
    return f"This run is not finished: {'; '.join(parts)}. The figures cover what is." if parts else None


def _answer(grown: Sequence[Rung], totals: FamilyTotals, unit: FlopUnit) -> tuple[str, str]:
    compared = [rung for rung in grown if rung.cold is not None]
    if totals.inherited_to_match is not None and totals.saving is not None:
        return _family_answer(totals, totals.inherited_to_match, totals.saving, unit)
    if not compared:
        return (
            "What inheritance saves was not measured.",
            f"No grown model has a baseline to be compared with. {_spent(totals, unit)}",
        )
    matched = sum(rung.flops_to_match is not None for rung in compared)
    if len(compared) == 1:
        headline = f"The one grown model that has a baseline {'matched' if matched else 'did not match'} it."
    else:
        headline = f"{matched or 'None'} of the {len(compared)} grown models that have a baseline matched it."
    sentences = _outcomes(compared)
    without = [rung.name for rung in grown if rung.cold is None]
    if without:
        sentences.append(f"No baseline of {_names(without)} has been trained.")
    if totals.unknown:
        sentences.append(f"All that went into {_names(totals.unknown)} is not recorded.")
    sentences.append(f"So no saving can be stated for the family. {_spent(totals, unit)}")
    return headline, " ".join(sentences)


def _family_answer(totals: FamilyTotals, to_match: float, saving: float, unit: FlopUnit) -> tuple[str, str]:
    models, last = f"{len(totals.names)} models", totals.names[-1]
    if round(abs(saving), 2) == 0:
        headline = f"Inheritance saved nothing on these {models}."
    elif saving > 0:
        headline = f"Inheritance saved {percent(saving)} of the FLOPs that these {models} take cold."
    else:
        headline = f"Inheritance cost {percent(-saving)} more FLOPs than these {models} take cold."
    ratio = to_match / totals.last_alone
    cheaper = (
        "whoever wants that model alone does not get it cheaper."
        if ratio >= 1
        else "here even that model alone came cheaper by way of its family."
    )
    took, planned = ("takes", " (partly as planned, not as trained)") if totals.planned_cold else ("took", "")
    return headline, (
        f"Every grown model matched its baseline. With {last} counted up to where it reached its baseline's "
        f"validation bits per byte, and the models before it as they were trained, the family took "
        f"{unit.text(to_match)}; all of it cold {took} {unit.text(totals.all_cold)}{planned}."
        f"{' This is a saving on the family.' * (saving > 0)} "
        f"{last} alone and cold took {unit.text(totals.last_alone)}, and the family costs {ratio:.2f} times that: "
        f"{cheaper}"
    )


def _outcomes(compared: Sequence[Rung]) -> list[str]:
    sentences = []
    matched = [rung for rung in compared if rung.saving is not None]
    short = [rung for rung in compared if rung.flops_to_match is None]
    if matched:
        shares = _span([1 - rung.saving for rung in matched if rung.saving is not None], percent)
        sentences.append(f"{_names([rung.name for rung in matched])} matched at {shares} of the baseline's FLOPs.")
    if short:
        gaps = _span([rung.gap for rung in short if rung.gap is not None], lambda gap: f"{gap:.4f}")
        shares = _span([rung.flops / rung.cold_flops for rung in short], percent)
        names = _names([rung.name for rung in short])
        sentences.append(f"{names} ended {gaps} bits per byte short, after {shares} of the baseline's FLOPs.")
    return sentences


def _spent(totals: FamilyTotals, unit: FlopUnit) -> str:
    planned = " (partly as planned, not as trained)" if totals.planned_cold else ""
    bound = "at least " if totals.unknown else ""
    cold_bound = "at least " if totals.cold_is_bound else ""
    return (
        f"As trained, the family took {bound}{unit.text(totals.inherited_as_trained)}; all of it cold takes "
        f"{cold_bound}{unit.text(totals.all_cold)}{planned}, and {totals.names[-1]} alone "
        f"{unit.text(totals.last_alone)}."
    )


def _figures(totals: FamilyTotals, unit: FlopUnit) -> tuple[Figure, ...]:
    known = [eta for eta in totals.eta.values() if eta is not None]
    to_match, saving = totals.inherited_to_match, totals.saving
    family = over_last = NOTHING
    family_note = over_last_note = "not every grown model was seen to match"
    if totals.unknown:
        family_note = over_last_note = f"what went into {_names(totals.unknown)} is not known"
    if to_match is not None and saving is not None:
        family, family_note = (
            minus(f"{-100 * saving:+.0f} %"),
            f"{unit.number(to_match)} of {unit.text(totals.all_cold)}",
        )
        over_last, over_last_note = (
            f"{to_match / totals.last_alone:.2f} ×",
            f"{totals.names[-1]} alone and cold is 1 ×",
        )
    if len(known) > _LONGEST_LIST:
        etas = _span(known, _two_decimals)
    else:
        etas = ", ".join(_two_decimals(eta) for eta in known) or NOTHING
    return (
        Figure(title="family to match, against all cold", value=family, note=family_note),
        Figure(title="family to match, over its last model", value=over_last, note=over_last_note),
        Figure(
            title="transfer efficiency η",
            value=etas,
            note="of what was spent before carried over"
            + (f", {len(known)} of {len(totals.eta)} models" if len(known) < len(totals.eta) else ""),
        ),
        Figure(title="seeds", value="1", note="no interval can be given"),
    )


def _certainty(run: Run, grown: Sequence[Rung]) -> tuple[str, ...]:
    sentences = [
        f"One seed ({run.seed}): each figure is a single measurement. Its spread from seed to seed is not known, and "
        f"no interval is given."
    ]
    grid = [share for rung in grown if (share := _grid(rung)) is not None]
    if grid:
        sentences.append(
            f"A crossing is read between two validation points, at most {percent(max(grid))} of the baseline's FLOPs "
            f"apart. That is the grid of the measurement, not an error bar."
        )
    rates = _learning_rates(run)
    if rates and any(rung.cold is not None for rung in grown):
        sentences.append(rates)
    if any(rung.phi is not None for rung in grown):
        sentences.append("Φ was on; this run has no model without it, and cannot tell what Φ itself contributed.")
    checked = [rung.max_abs_logit_diff for rung in grown if rung.max_abs_logit_diff is not None]
    if checked:
        sentences.append(
            f"Each grown model was compared with its parent before it trained: max |Δlogit| {small(max(checked))}."
        )
    if any(rung.data.repeats_from_token is not None for rung in run.rungs):
        sentences.append(data_repetition(run.rungs))
    return tuple(sentences)


def _grid(rung: Rung) -> float | None:
    """Return the distance of the two evaluations around a crossing, as a share of the baseline's FLOPs."""
    if rung.cold is None or rung.flops_to_match is None:
        return None
    curve = [{"flops": point.flops, "bits_per_byte": point.bits_per_byte} for point in rung.curve]
    interval = crossing_interval(curve, rung.cold.bits_per_byte)
    return None if interval is None else (interval[1]["flops"] - interval[0]["flops"]) / rung.cold.flops


def _learning_rates(run: Run) -> str | None:
    training = run.config.get("training", {})
    cold = training.get("learning_rate")
    if cold is None:
        return None
    inherited = training.get("inherited_learning_rate")
    shared = "as grown models do" if inherited in (None, cold) else f"grown models at {inherited:g}"
    return f"Baselines train at a peak learning rate of {cold:g}, {shared}; this run tried no other on either."


def _names(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _span(values: Sequence[float], write: Callable[[float], str]) -> str:
    """Return the range of some numbers, or the one number where they read the same."""
    least, most = write(min(values)), write(max(values))
    return least if least == most else f"{least} to {most}"


def _two_decimals(value: float) -> str:
    return minus(f"{value:.2f}")
