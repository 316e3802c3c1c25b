"""What a ladder has found, in sentences: what inheritance saved, and how sure that is.

The sentences come from the records alone. A run has one seed, so none of them gives an interval.
"""

import math
from collections.abc import Sequence

from hf_progressive.records.family import FamilyCost
from hf_progressive.records.ladder import Run
from hf_progressive.records.matching import crossing_interval
from hf_progressive.records.rung import RungRecord
from hf_progressive.report.findings import Findings, Tile
from hf_progressive.report.formatting import NOTHING, FlopUnit, decimals, join_names, percent, span
from hf_progressive.report.ladder_tables import data_repetition, flop_unit

_LONGEST_LIST = 4  # a tile holds so many values of η


def find_in_run(run: Run) -> Findings:
    """Put a run's results, finished or not, into sentences."""
    grown = [rung for rung in run.rungs if rung.grown]
    unfinished = _unfinished(run)
    if not grown:
        done = f"only the first rung, {run.rungs[0].name}, is finished" if run.rungs else "no rung is finished"
        return Findings(
            headline="Nothing to compare yet.",
            explanation=f"What inheritance saves shows on a grown rung and its baseline; {done}.",
            unfinished=unfinished,
        )
    totals, unit = FamilyCost(rungs=run.rungs), flop_unit(run.rungs)
    headline, explanation = _answer(grown, totals, unit)
    return Findings(
        headline=headline,
        explanation=explanation,
        tiles=_tiles(totals, unit),
        certainty=_certainty(run, grown),
        unfinished=unfinished,
    )


def _unfinished(run: Run) -> str | None:
    parts = []
    if run.missing:
        parts.append(
            f"{len(run.rungs)} of {len(run.ladder.rungs)} rungs are finished, {join_names(run.missing)} not yet"
        )
    if run.pending_baselines:
        parts.append(f"still to be trained from scratch: {join_names(run.pending_baselines)}")
    return f"This run is not finished: {'; '.join(parts)}." if parts else None


def _answer(grown: Sequence[RungRecord], totals: FamilyCost, unit: FlopUnit) -> tuple[str, str]:
    compared = [rung for rung in grown if rung.cold is not None]
    if totals.inherited_to_match is not None and totals.family_cost is not None:
        return _family_answer(totals, totals.inherited_to_match, totals.family_cost, unit)
    bound = "at least " * bool(totals.unknown)
    took = f"As trained, the family took {bound}{unit.text(totals.inherited_as_trained)}"
    spent = f"{took}; {_from_scratch(totals, unit)}"
    if not compared:
        return "What inheritance saves was not measured.", f"No grown model has a baseline. {spent}"
    matched = sum(rung.flops_to_match is not None for rung in compared)
    if len(compared) == 1:
        headline = f"The one grown model that has a baseline {'matched' if matched else 'did not match'} it."
    else:
        headline = f"{matched or 'None'} of the {len(compared)} grown models that have a baseline matched it."
    if totals.last_model_cost is not None:
        headline = f"{_last_model(totals.last_model_cost)}. {headline}"
    sentences = _outcomes(compared)
    without = [rung.name for rung in grown if rung.cold is None]
    if without:
        sentences.append(f"No baseline of {join_names(without)} has been trained.")
    if totals.unknown:
        sentences.append(f"All that went into {join_names(totals.unknown)} is not recorded.")
    return headline, " ".join([*sentences, "So no saving can be stated for the family.", spent])


def _family_answer(totals: FamilyCost, to_match: float, family_cost: float, unit: FlopUnit) -> tuple[str, str]:
    last, cost, grown = totals.names[-1], totals.last_model_cost, totals.last_grown
    models = "both models" if len(totals.names) == 2 else f"all {len(totals.names)} models"
    if cost is None:
        headline = f"{models.capitalize()} for {percent(family_cost)} of their price from scratch."
    else:
        headline = f"{_last_model(cost)}, {models} for {percent(family_cost)} of theirs."
    part = "" if grown is None or math.isclose(grown, to_match) else f", {unit.text(grown)} of it for {last}"
    pays = "growing pays too" if (grown or to_match) < totals.last_alone else "growing does not pay"
    return headline, (
        f"Every grown model matched its baseline. Up to the last match the family took {unit.text(to_match)}{part}; "
        f"{_from_scratch(totals, unit)} For whoever wants only {last}, {pays}."
    )


def _last_model(cost: float) -> str:
    return f"The last model for {cost:.2f} times its price from scratch"


def _from_scratch(totals: FamilyCost, unit: FlopUnit) -> str:
    bound, planned = "at least " * totals.cold_is_bound, " (partly as planned, not as trained)"
    return (
        f"from scratch it takes {bound}{unit.text(totals.all_cold)}{planned * bool(totals.planned_cold)}, and "
        f"{totals.names[-1]} alone {unit.text(totals.last_alone)}."
    )


def _outcomes(compared: Sequence[RungRecord]) -> list[str]:
    sentences = []
    matched = [rung for rung in compared if rung.saving is not None]
    short = [rung for rung in compared if rung.flops_to_match is None]
    if matched:
        shares = span([1 - rung.saving for rung in matched if rung.saving is not None], percent)
        names = join_names([rung.name for rung in matched])
        sentences.append(f"{names} matched at {shares} of the baseline's FLOPs.")
    if short:
        missing = [rung.gap_bits_per_byte for rung in short if rung.gap_bits_per_byte is not None]
        gaps = span(missing, lambda gap: decimals(gap, 4))
        shares = span([rung.flops.spent / rung.cold_cost for rung in short], percent)
        names = join_names([rung.name for rung in short])
        sentences.append(f"{names} ended {gaps} bits per byte short, after {shares} of the baseline's FLOPs.")
    return sentences


def _tiles(totals: FamilyCost, unit: FlopUnit) -> tuple[Tile, ...]:
    cost, last, family = NOTHING, totals.names[-1], NOTHING
    last_note, family_note = f"{last} was not seen to match", "not every grown model was seen to match"
    if totals.last_as_trained is not None:
        last_note += f"; it took {totals.last_as_trained / totals.last_alone:.2f} × with all that it inherits"
    if totals.unknown:
        last_note = family_note = f"what went into {join_names(totals.unknown)} is not known"
    if totals.last_model_cost is not None and totals.last_grown is not None:
        cost = f"{totals.last_model_cost:.2f} ×"
        last_note = f"{unit.number(totals.last_grown)} with all that {last} inherits, "
        last_note += f"{unit.text(totals.last_alone)} from scratch"
    if totals.inherited_to_match is not None and totals.family_cost is not None:
        family = percent(totals.family_cost)
        family_note = f"{unit.number(totals.inherited_to_match)} of {unit.text(totals.all_cold)} from scratch"
    known = {name: eta for name, eta in totals.eta.items() if eta is not None}
    of_models = f", {len(known)} of {len(totals.eta)} models" if len(known) < len(totals.eta) else ""
    ceilings = [ceiling for ceiling in totals.eta_ceiling.values() if ceiling is not None]
    at_most = f"; at most {_listed(ceilings)}" if ceilings else ""
    return (
        Tile(title="last-model cost", value=cost, note=last_note),
        Tile(title="family cost", value=family, note=family_note),
        Tile(
            title="transfer efficiency η",
            value=_listed(list(known.values())),
            note=f"of what was spent before carried over{of_models}{at_most}",
        ),
        Tile(title="seeds", value="1", note="no interval can be given"),
    )


def _listed(values: Sequence[float]) -> str:
    return span(values, decimals) if len(values) > _LONGEST_LIST else ", ".join(map(decimals, values)) or NOTHING


def _certainty(run: Run, grown: Sequence[RungRecord]) -> tuple[str, ...]:
    sentences = [f"One seed ({run.ladder.seed}): each figure is a single measurement, and no interval is given."]
    grid = [share for rung in grown if (share := _grid(rung)) is not None]
    if grid:
        sentences.append(
            f"A match is read between two validation points, at most {percent(max(grid))} of the baseline's FLOPs "
            f"apart."
        )
    left = [rung for rung in grown if rung.flops_to_match is not None and (rung.gap_bits_per_byte or 0) > 0]
    if left:
        gaps = span([rung.gap_bits_per_byte or 0 for rung in left], lambda gap: decimals(gap, 4))
        ended = "matched its baseline and ended" if len(left) == 1 else "matched their baselines and ended"
        sentences.append(
            f"{join_names([rung.name for rung in left])} {ended} {gaps} bits per byte above: what is said of a match "
            "does not hold of the finished model."
        )
    rates = _learning_rates(run)
    if rates and any(rung.cold is not None for rung in grown):
        sentences.append(rates)
    if any(rung.phi is not None for rung in grown):
        sentences.append("Φ was on, and no model here trained without it: what Φ contributed is not known.")
    if any(rung.data.repeats_from_token is not None for rung in run.rungs):
        sentences.append(data_repetition(run.rungs))
    return tuple(sentences)


def _grid(rung: RungRecord) -> float | None:
    # The distance of the two evaluations around a crossing, as a share of the baseline's FLOPs.
    if rung.cold is None or rung.flops_to_match is None:
        return None
    interval = crossing_interval(rung.curve, rung.cold.bits_per_byte)
    return None if interval is None else (interval[1].flops - interval[0].flops) / rung.cold.flops


def _learning_rates(run: Run) -> str | None:
    grown = {rung.name: rung.learning_rate for rung in run.rungs if rung.grown and rung.learning_rate is not None}
    baselines = {rung.name: rung.cold.learning_rate for rung in run.rungs if rung.cold and rung.cold.learning_rate}
    if len({*grown.values()}) > 1 or len({*baselines.values()}) > 1:
        sides = ((side, rates) for side, rates in (("grown", grown), ("from scratch", baselines)) if rates)
        listed = "; ".join(
            f"{side}, {', '.join(f'{name} at {rate:.3g}' for name, rate in rates.items())}" for side, rates in sides
        )
        return f"Peak learning rates go by the model: {listed}; this run tried no others."
    training = run.ladder.config.get("training", {})  # of a record that does not say
    cold = next(iter(baselines.values()), training.get("learning_rate"))
    if cold is None:
        return None
    inherited = next(iter(grown.values()), training.get("inherited_learning_rate"))
    shared = "as grown models do" if inherited in (None, cold) else f"grown models at {inherited:g}"
    return f"Baselines train at a peak learning rate of {cold:g}, {shared}; this run tried no other."
