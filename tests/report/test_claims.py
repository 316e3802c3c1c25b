"""Every sentence with a figure in a report, against the records, for ladders whose first rung is from anywhere."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from claims import DEFINITIONS, SCALES, Claim, cell_fault, faults, reads_as, split_sentences, take_apart
from family_facts import family_facts, rung_facts
from family_records import ORIGINS, Record, family, write_family
from matplotlib.text import Text

from hf_progressive.records.ladder import read_run
from hf_progressive.report import write_report
from hf_progressive.report.figures import style
from hf_progressive.report.ladder_findings import find_in_run

PHI = {"ewc_lambda": 0.25, "gamma": 0.001, "schedule": "linear", "until": 0.5}
CASES = {
    **{f"{length} rungs": family(length, phi=PHI) for length in range(1, 6)},
    **{origin: family(4, origin=origin) for origin in ORIGINS[1:]},
    **{f"{origin}, one grown": family(2, origin=origin) for origin in ORIGINS[1:]},
    **{f"{origin} alone": family(1, origin=origin) for origin in ORIGINS[1:]},
    "one not matched": family(3, unmatched=(1,)),
    "two not matched": family(3, unmatched=(1, 2)),
    "one baseline, not matched": family(3, unmatched=(2,), without_baseline=(1,)),
    "one baseline, matched": family(3, without_baseline=(1,)),
    "no baseline": family(3, without_baseline=(1, 2)),
    "dearer than their baselines": family(3, dearer=True),
    "trunk": family(4, branches=True),
    "trunk, its end not matched": family(3, branches=True, unmatched=(2,)),
    "timed": family(3, phi=PHI, timed=True),
    "timed, the first alone": family(1, timed=True),
    "timed, taken grown": family(3, origin="taken grown", timed=True, without_baseline=(1, 2)),
    "timed, taken unknown": family(3, origin="taken unknown", timed=True),
    "data repeat": family(3, repeats={1: 40_960, 2: 0}),
    "data repeat from the start": family(3, repeats={1: 0}),
}


def planned(facts: dict[str, Any]) -> bool:
    return bool(facts["is_planned"])


SCRATCH = "; from scratch it takes {all_cold}, and {last:s} alone {last_cold}."
MATCHED, SPENT = (
    "Up to the last match the family took {to_match}" + SCRATCH,
    "As trained, the family took {trained}" + SCRATCH,
)
LAST = "The last model for {last_model_cost} times its price from scratch"
PART = " (partly as planned, not as trained)"
AT_LEAST = SPENT.replace("took {", "took at least {")

VALIDATION = "Validation, {validation_share} on top of all training"

FAMILY_CLAIMS = [
    Claim("No later model inherits what that cost, {branch_flops} in all.", lambda f: f["branches"]),
    Claim(LAST + ", all {rungs} models for {family_cost} of theirs.", lambda f: f["rungs"] > 2),
    Claim(LAST + ", both models for {family_cost} of theirs.", lambda f: f["rungs"] == 2),
    Claim(LAST + ".", lambda f: f["family_cost"] is None),
    Claim("{matched} of the {compared} grown models that have a baseline matched it.", lambda f: f["compared"] > 1),
    Claim("None of the {compared} grown models that have a baseline matched it.", lambda f: f["matched"] == 0),
    Claim("The one grown model that has a baseline matched it.", lambda f: (f["compared"], f["matched"]) == (1, 1)),
    Claim(
        "The one grown model that has a baseline did not match it.",
        lambda f: (f["compared"], f["matched"]) == (1, 0),
    ),
    Claim(MATCHED, lambda f: not planned(f) and f["known"] and not f["branches"]),
    Claim(MATCHED.replace("{all_cold}", "{all_cold}" + PART), lambda f: planned(f) and f["known"]),
    Claim("For whoever wants only {last:s}, growing does not pay.", lambda f: f["last_model_cost"] >= 1),
    Claim("For whoever wants only {last:s}, growing pays too.", lambda f: f["last_model_cost"] < 1),
    Claim(MATCHED.replace("{to_match}", "{to_match}, {last_grown} of it for {last:s}"), lambda f: f["branches"]),
    Claim(SPENT, lambda f: f["known"] and not planned(f)),
    Claim(SPENT.replace("{all_cold}", "{all_cold}" + PART), lambda f: f["known"] and planned(f)),
    Claim(AT_LEAST, lambda f: not f["known"] and f["cold_is_known"] and not planned(f)),
    Claim(
        AT_LEAST.replace("{all_cold}", "{all_cold}" + PART),
        lambda f: not f["known"] and f["cold_is_known"] and planned(f),
    ),
    Claim(
        AT_LEAST.replace("takes {", "takes at least {"),
        lambda f: not f["known"] and not f["cold_is_known"] and not planned(f),
    ),
    Claim(
        "{matched_names:s} matched at {least_share} of the baseline's FLOPs.",
        lambda f: f"{f['least_share']:.2f}" == f"{f['most_share']:.2f}",
    ),
    Claim("{matched_names:s} matched at {least_share} to {most_share} of the baseline's FLOPs."),
    Claim("{short_names:s} ended {least_gap} bits per byte short, after {least_spent} of the baseline's FLOPs."),
    Claim(
        "{short_names:s} ended {least_gap} to {most_gap} bits per byte short, after {least_spent} of the baseline's"
        " FLOPs."
    ),
    Claim("One seed ({seed}): each figure is a single measurement, and no interval is given."),
    Claim("A match is read between two validation points, at most {grid} of the baseline's FLOPs apart."),
    Claim("Baselines train at a peak learning rate of {rate}, as grown models do; this run tried no other."),
    Claim("sums: gpt2, {rungs} rungs on {source:s}, one seed"),
    Claim("{one} {unit_name:s} is {unit_size:s} floating-point operations; those of Fisher and subspace are counted."),
    *(
        Claim(
            f"Validation, {{validation_share}} on top of all training ({sides}), is not counted on either side.", when
        )
        for sides, when in (
            ("{validation_grown} on models grown, {validation_scratch} on models from scratch", lambda f: True),
            ("{validation_grown} on models grown", lambda f: f["validation_scratch"] is None),
            ("{validation_scratch} on models from scratch", lambda f: f["validation_grown"] is None),
        )
    ),
    *DEFINITIONS,
    # Tiles: title, value and note.
    Claim(
        "last-model cost: {last_model_cost}; {last_grown@unit} with all that {last:s} inherits, {last_cold} from"
        " scratch"
    ),
    Claim("last-model cost: –; {last:s} was not seen to match; it took {last_as_trained} with all that it inherits"),
    Claim("family cost: {family_cost}; {to_match@unit} of {all_cold} from scratch"),
    *(
        Claim(f"transfer efficiency η: {values}; of what was spent before carried over{count}{ceiling}", when)
        for values, ceiling in (
            ("{etas:s}", "; at most {ceilings:s}"),
            ("{least_eta} to {most_eta}", "; at most {least_ceiling} to {most_ceiling}"),
            ("–", ""),
        )
        for count, when in (
            ("", lambda f: f["known_etas"] == f["grown"]),
            (", {known_etas} of {grown} models", lambda f: f["known_etas"] < f["grown"]),
        )
    ),
    Claim("seeds: {one}; no interval can be given"),
    # In figures.
    Claim("{all_cold}", lambda f: f["cold_is_known"]),
    Claim("≥ {all_cold}", lambda f: not f["cold_is_known"]),
    Claim("{trained}", lambda f: f["known"]),
    Claim("≥ {trained}", lambda f: not f["known"]),
    Claim("{to_match}", lambda f: f["known"]),
    Claim("{last_grown}"),
    Claim("≥ {to_match}", lambda f: not f["known"]),
    Claim("{last_cold}"),
]
RUNG_CLAIMS = [
    Claim("{name:s} was not trained here but taken from {origin:s} at {commit:s}."),
    Claim(
        "What went into it is not recorded: its FLOPs count as {origin_flops}, and no η can be stated on top of it."
    ),
    Claim(
        "{origin_flops} that went into it are recorded; what its first ancestor took is not.",
        lambda f: not f["is_known"],
    ),
    Claim(
        "{name:s} was not trained here but taken from {origin:s} at {commit:s}; all {origin_flops} that went into it"
        " count as its cost.",
        lambda f: f["is_known"],
    ),
    Claim("Data repeat from token {repeats} of {name:s} on, in epoch {second} of the corpus."),
    Claim(
        "Data repeat from the first token of {name:s} on, in epoch {second} of the corpus.",
        lambda f: f["repeats"] == 0,
    ),
    # In figures.
    Claim("saves {saving}", lambda f: f["eta"] is None),
    Claim("saves {saving}, η {eta}"),
    Claim("costs {extra} more, η {eta}"),
    Claim("not matched, {gap} bits per byte short", lambda f: f["match"] is None),
    Claim("cold\n{cold_bits}"),
    Claim("cold\n{bits}", lambda f: not f["is_grown"]),
    Claim("inherited\n{bits}", lambda f: f["is_grown"]),
    Claim("{match@unit}"),
    Claim("{cold@unit}", lambda f: not f["cold_is_planned"]),
    Claim("{cold@unit} planned", lambda f: f["cold_is_planned"]),
    Claim("{spent@unit}", lambda f: not f["has_baseline"]),
    Claim("{spent@unit}, matches at {match@unit}"),
    Claim("{spent@unit}, not matched", lambda f: f["has_baseline"] and f["match"] is None),
    Claim("λ, of {ewc_lambda}"),
    Claim("γ, of {gamma}"),
]
COLUMNS = {
    "params": "parameters",
    "tokens : params": "tokens_per_parameter",
    "max |Δlogit|": "logit_change",
    "bits per byte: own": "bits",
    "bits per byte: cold": "cold_bits",
    "bits per byte: gap": "gap",
    "spent": "spent",
    "to match": "match",
    "cold": "cold",
    "saving": "saving",
    "η": "eta",
    "parent / cold": "parent_over_cold",
}
UNITS = {"M": "10⁶", "G": "10⁹", "T": "10¹²"}
SETTINGS = {"family": "gpt2", "seed": "3", "tokens per parameter, cold": "6", "peak learning rate": "0.004"}
SETTINGS |= {"growth": "–", "python": "3.11.9", "penalty Φ": "λ 0.25, γ 0.001, linear, until 0.5 of the steps"}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts of all figures of a report, which are not rendered."""
    texts: list[str] = []
    monkeypatch.setattr(style, "settle", lambda figure: texts.extend(figure_texts(figure)))
    monkeypatch.setattr(style, "write_png", lambda figure, path: None)
    monkeypatch.setattr(style, "svg", lambda figure, name: "")
    return texts


def figure_texts(figure: Any) -> Iterator[str]:
    """Everything written in a figure but for the marks of its axes."""
    marks = {label for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for label in axis.findobj(Text)}
    labels = {axis.label for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)}
    yield from (text.get_text() for text in figure.findobj(Text) if text not in marks - labels)


@pytest.mark.parametrize("case", CASES)
def test_every_figure_in_a_report_is_what_the_records_say(case: str, tmp_path: Path, drawn: list[str]) -> None:
    records = CASES[case]
    assert problems(records, tmp_path / "run", drawn) == []


def problems(records: list[Record], folder: Path, drawn: list[str]) -> list[str]:
    run = write_family(folder, records)
    if "throughput" in records[-1]:
        priced = [{"name": record["name"], "as_configured": {"flops": 2e12, "hours": 0.5}} for record in records]
        (run / "plan.json").write_text(json.dumps({"cluster": {"mfu": 0.4}, "rungs": priced}))
    text = write_report(run).markdown.read_text()
    prefix = re.search(r"1 ([kMGTPE]?)FLOP is", text)
    assert prefix is not None
    words = {"unit": SCALES[prefix[1]], "unit_name": f"{prefix[1]}FLOP", "unit_size": UNITS.get(prefix[1], "10⁰")}
    rungs = [rung_facts(records, place) | words | {"second": 2} for place in range(len(records))]
    family = family_facts(records) | words | {"source": records[0]["data"]["source"]}
    document = take_apart(text)
    tiles = [f"{tile.title}: {tile.value}; {tile.note}" for tile in find_in_run(read_run(run)).tiles]
    sentences = [*document.sentences, *tiles, *(part for text in drawn for part in split_sentences(text))]
    found = [*faults(sentences, (FAMILY_CLAIMS, [family]), (RUNG_CLAIMS, rungs))]
    for header, *rows in document.tables:
        found += table_faults(header, rows, records, rungs, family)
    return found


def table_faults(
    header: list[str], rows: list[list[str]], records: list[Record], rungs: Any, family: Any
) -> list[str]:
    """Compare a table cell by cell; one that is not known fails."""
    if header[0] == "the family":
        return [*family_table_faults(header, rows, family)]
    if header[:2] == ["rung", "parent"]:
        return [*rung_table_faults(header, rows, rungs)]
    if header == ["rung", "tokens per second", "of the peak (MFU)", "training", "evaluation", "saving", "on"]:
        timed = [facts for facts in rungs if "mfu" in facts]
        return [*speed_table_faults(rows, timed)]
    if header[:3] == ["rung", "TFLOP: priced", "TFLOP: real"]:
        return [*priced_table_faults(rows, [facts for facts in rungs if "mfu" in facts])]
    if header == ["setting", "value"]:
        known = SETTINGS | {"corpus": records[0]["data"]["source"]}
        known |= {} if any(record["phi"] for record in records) else {"penalty Φ": "none"}
        return [f"{name}: {value}" for name, value in rows if known[name] != value]
    assert header == ["rung", "grow", "train"]
    return [str(row) for row in rows if row[1:] != ["0.4 s", "12.3 s"]]


def speed_table_faults(rows: list[list[str]], rungs: list[Any]) -> Iterator[str]:
    """Compare the table of how fast rungs trained; the seconds are the builder's."""
    for row, facts in zip(rows, rungs, strict=True):
        yield from filter(None, (cell_fault(row[1], facts["tokens_per_second"]), cell_fault(row[2], facts["mfu"])))
        machine = f"{facts['processes']:.0f} × {facts['device']}"
        if row[3:] != [f"{3.6 + facts['ordinal'] - 1:.1f} s", "1 min 11 s", "0.3 s", machine]:
            yield f"{row[0]}: {row[3:]}"


def priced_table_faults(rows: list[list[str]], rungs: list[Any]) -> Iterator[str]:
    """Compare what rungs were priced at, which is 2 TFLOP in half an hour each, with what they took."""
    for row, facts in zip(rows, rungs, strict=True):
        hours = facts["tokens"] / facts["tokens_per_second"] / 3600
        true = ((2e12, 1e12), (facts["train"], 1e12), (0.5, 1.0), (hours, 1.0), (0.4, 1.0), (facts["mfu"], 1.0))
        cells = (*row[1:7], row[7].removesuffix(" ×"))
        checked = zip(cells, (*true, (hours / 0.5, 1.0)), strict=True)
        yield from filter(None, (cell_fault(cell, value, scale) for cell, (value, scale) in checked))


def family_table_faults(header: list[str], rows: list[list[str]], facts: Any) -> Iterator[str]:
    """Compare the table of the ways to count."""
    names = ["all_cold", "trained", "to_match", "last_cold"]
    bounds = [not facts["cold_is_known"], not facts["known"], not facts["known"], False]
    if facts["grown"]:
        names, bounds = [*names, "last_grown"], [*bounds, False]
    last_planned = facts["last_is_planned"]
    if facts["validation"] is not None:
        names, bounds = [*names, "validation"], [*bounds, False]
    for row, name, bound in zip(rows, names, bounds, strict=True):
        flops, own_plan = facts[name], {"all_cold": facts["is_planned"], "last_cold": last_planned}.get(name, False)
        share = flops and None if not facts["cold_is_known"] else flops and flops / facts["all_cold"]
        if not facts["last_cold"]:
            flops = share = None
        times = flops and facts["last_cold"] and flops / facts["last_cold"]
        scale = SCALES[header[1].removesuffix("FLOP")]
        faults_of_row = [
            cell_fault(row[1], flops, scale, bound=bound, mark=own_plan),
            cell_fault(row[2], share, bound=bound, mark=facts["is_planned"]),
            cell_fault(row[3], times, bound=bound, mark=own_plan or last_planned),
        ]
        yield from (f"{row}: {fault}" for fault in faults_of_row if fault)


def rung_table_faults(header: list[str], rows: list[list[str]], rungs: Any) -> Iterator[str]:
    """Compare the table of the rungs."""
    for row, facts in zip(rows, rungs, strict=True):
        in_part = "origin" in facts and not facts["is_known"]
        assert row[:2] == [facts["name"], facts["parent"] or "–"]
        assert [reads_as(part, facts[key]) for part, key in zip(row[2].split("×"), ("layers", "width"), strict=True)]
        for title, cell in zip(header[3:], row[3:], strict=True):
            unit, _, rest = title.partition("FLOP: ")
            name = COLUMNS[rest or title]
            true = facts.get(name)
            if title.endswith("to match") and facts["has_baseline"] and true is None:
                true = 0.0 if cell != "not matched" else None
                cell = cell.replace("not matched", "–")
            if (name == "spent" and in_part and not true) or (name == "tokens_per_parameter" and not facts["tokens"]):
                true = None
            mark = name == "cold" and facts["cold_is_planned"]
            scale = SCALES[unit] if rest else 1.0
            fault = cell_fault(cell, true, scale, bound=name == "spent" and in_part, mark=mark)
            if fault:
                yield f"{facts['name']}, {title}: {fault}"


def test_another_figure_is_noticed(tmp_path: Path, drawn: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that says something else than its FLOPs do is noticed wherever its figures stand."""
    records = family(3)
    records[2] = {**records[2], "eta": records[2]["eta"] * 1.1}
    found = problems(records, tmp_path / "run", drawn)
    assert any("η" in line and line.startswith("l5w56, η") for line in found)
    assert any("saves" in line for line in found)
