"""A priced plan on one screen: `hf-progressive plan` prints it, and with `--full` the whole of `price_table`."""

import textwrap
from collections.abc import Mapping
from typing import Any

from hf_progressive.planning.evidence import AS_GIVEN
from hf_progressive.report.formatting import (
    NOTHING,
    FlopUnit,
    count,
    counted,
    decimals,
    duration,
    join_names,
    percent,
)
from hf_progressive.report.price_table import (
    budget_lines,
    misfit_lines,
    nothing_alike,
    span_of,
    starved_lines,
    two_costs,
    unmatched_lines,
)
from hf_progressive.report.table import Table

SCREEN_LINES, SCREEN_COLUMNS = 40, 100
"""What the summary keeps within."""

_FEWEST_ROWS = 4  # of rungs, where notes leave no space for more
_MOST_NOTES = 14  # where rungs take the rest of the screen
_MUCH_VALIDATION = 0.2  # of training, above which the keys are named that make it less
_WIDEST_NAME = 14
_MORE = "--full shows the rest: exact counts, validation by rung, sharded memory, both ends of intervals."


def price_summary(record: Mapping[str, Any]) -> str:
    """Return the prices of a ladder, as `LadderPrice.to_dict` returns them, on 40 lines of 100 columns at the most."""
    family = _family_table(record).plain().splitlines()
    notes = [line for note in _notes(record) for line in _wrapped(note)]
    around = len(family) + 6  # two lines of titles, two blank ones, a gap in the rows, the last line
    most = max(_MOST_NOTES, SCREEN_LINES - around - len(record["rungs"]))
    if len(notes) > most:
        notes = [*notes[: most - 1], "  … (--full shows all)"]
    around += len(notes)
    rungs = _rung_table(record, max(_FEWEST_ROWS, SCREEN_LINES - around)).plain().splitlines()
    return "\n".join([*rungs, "", *family, "", *notes, _MORE])


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, SCREEN_COLUMNS, subsequent_indent="  ", break_on_hyphens=False)


def _rung_table(record: Mapping[str, Any], most: int) -> Table:
    rungs, priced = record["rungs"], record["cluster"]["price"] is not None
    unit = FlopUnit.for_values([rung["cold"]["flops"] for rung in rungs])
    trunk, sparse = rungs[0]["trunk"] is not None, any(_active(rung) for rung in rungs)
    costs = ("tokens", unit.name, "hours", *(("$",) if priced else ()))
    header = ("rung", *(("until",) if trunk else ()), "params", *(("active",) if sparse else ()))
    rows = [
        (
            rung["name"] if len(rung["name"]) <= _WIDEST_NAME else f"{rung['name'][: _WIDEST_NAME - 1]}…",
            *((f"{rung['trunk']['until']:g}",) if trunk else ()),
            count(rung["parameters"]["total"]),
            *((count(rung["parameters"]["active"]),) if sparse else ()),
            *_cost(rung["cold_tokens"], rung["cold"], unit, priced, shown=rung["origin"] is None),
            *_grown(rung, unit, priced),
            _least(rung["memory"]["replicated_bytes"] / 1e9),
            _least(rung["disk_bytes"] / 1e9),
        )
        for rung in rungs
    ]
    if len(rows) > most:
        first, last = most // 2, most - most // 2
        rows = [*rows[:first], ("…", *[""] * (len(rows[0]) - 1)), *rows[-last:]]
    return Table(
        groups=(
            *(("", 1) for _ in header),
            *(("from scratch", len(costs)), ("in the trunk" if trunk else "grown", len(costs)), ("GB", 2)),
        ),
        header=(*header, *costs, *costs, "per GPU", "disk"),
        rows=tuple(rows),
    )


def _active(rung: Mapping[str, Any]) -> bool:
    parameters = rung["parameters"]
    return bool(parameters["active"] != parameters["total"])


def _grown(rung: Mapping[str, Any], unit: FlopUnit, priced: bool) -> tuple[str, ...]:
    matched = rung["to_match"]
    cost = matched["expected"] if matched else rung["handed_on" if rung["trunk"] else "as_configured"]
    tokens = cost["flops"] / rung["flops_per_token"]
    is_shown = rung["origin"] is None and (rung["parent"] is not None or rung["trunk"] is not None)
    return _cost(tokens, cost, unit, priced, shown=is_shown)


def _cost(tokens: float, cost: Mapping[str, Any], unit: FlopUnit, priced: bool, *, shown: bool) -> tuple[str, ...]:
    if not shown:
        return (NOTHING,) * (4 if priced else 3)
    dollars = (decimals(cost["dollars"]),) if priced else ()
    return (count(tokens), unit.number(cost["flops"]), _least(cost["hours"]), *dollars)


def _least(value: float) -> str:
    """Write hours or GB: without an exponent, however many or few they are.

    >>> _least(12_345.6), _least(7.25), _least(0.0002)
    ('12,346', '7.25', '< .001')
    """
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" if value >= 1e-3 else "< .001"


def _family_table(record: Mapping[str, Any]) -> Table:
    family, cluster = record["family"], record["cluster"]
    alone, priced = family["last_alone"]["flops"], cluster["price"] is not None
    unit = FlopUnit.for_values([family["in_all"]["flops"]])
    rows = [
        (
            title,
            unit.number(cost["flops"]),
            duration(3600 * cost["hours"]),
            *((decimals(cost["dollars"]),) if priced else ()),
            f"{cost['flops'] / alone:.2f} ×",
        )
        for title, cost in _family_costs(record)
    ]
    speed = "speed as measured" if record["measurement"] is not None else f"{percent(cluster['mfu'])} MFU"
    machine = f"{cluster['count']} × {cluster['gpu']['name']}, {speed}"
    if priced:
        machine += f", ${cluster['price']:g} a GPU and hour"
    return Table(
        header=(machine, unit.name, "time", *(("$",) if priced else ()), "of the last alone"), rows=tuple(rows)
    )


def _family_costs(record: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    family, evidence, last = record["family"], record["evidence"], record["last_model"]
    trunk = record["rungs"][0]["trunk"] is not None
    costs = [("every rung from scratch", family["cold"])]
    if evidence is not None and family["to_match"]:
        costs.append((f"every rung grown, to match at η = {evidence['eta']:.3g}", family["to_match"]["expected"]))
    share = record["inherited_fraction"]
    how = "each its own share" if share is None else f"{share:g} of its budget"
    how = "the trunk and its members" if trunk else f"every rung grown, {how}"
    costs += [
        (f"{how}, as configured", family["as_configured"]),
        *([("the last by way of its stages, as configured", family["last_grown"])] if trunk else []),
        ("the last alone from scratch", family["last_alone"]),
    ]
    if last is not None:
        basis = "the law" if last["basis"] == "law" else "that η"
        costs.append((f"the last by way of the others, by {basis}", family["last_model"]["expected"]))
    return [
        *costs,
        ("this run, with its baselines", family["this_run"]),
        ("with all that it does beside training", family["in_all"]),
    ]


def _notes(record: Mapping[str, Any]) -> list[str]:
    fitting, priced = (_budget, misfit_lines, starved_lines), (unmatched_lines, _search, _last_model, _evidence)
    return [note for kind in (*fitting, *priced, _measured, _beside) for note in kind(record)]


def _budget(record: Mapping[str, Any]) -> list[str]:
    return [line.strip().replace("this run", "This run") + "." for line in budget_lines(record)]


def _beside(record: Mapping[str, Any]) -> list[str]:
    family, measured = record["family"], record["measurement"] is not None
    written = sum(rung["saving"]["bytes"] for rung in record["rungs"]) / 1e9
    keys = ", less by data.max_validation_tokens and training.evaluations"
    much = keys if family["validation_share"] > _MUCH_VALIDATION else ""
    parts = [f"validation ({percent(family['validation_share'], 1)} of training{much})"]
    if family["estimates"]["flops"]:
        parts.append("estimates for Φ")
    if record["rungs"][0]["core"] is not None:
        parts.append("CORE")
    saving = f"saving {written:,.1f} GB"
    counted = ", ".join([*parts, saving] if measured else parts)
    left_out = "" if measured else f"; {saving} takes time that is not counted (--measure finds it)"
    return [f"Beside training: {counted}{left_out}."]


def _evidence(record: Mapping[str, Any]) -> list[str]:
    evidence = record["evidence"]
    if evidence is None:
        return ["Grown rungs are priced as configured; whether they then match their baselines, studies measure."]
    interval = "" if (ends := span_of(evidence["low"], evidence["high"])) is None else f" ({ends})"
    what = f"η = {evidence['eta']:.3g}{interval}"
    source = ", as given" if evidence["source"] == AS_GIVEN else f" is from {evidence['source']}"
    if record["rungs"][0]["trunk"] is not None:
        return [f"{what}{source}, of a chain: it prices nothing of a trunk, which costs what is planned."]
    sentences = [f"{what}{source}."]
    grown = [rung for rung in record["rungs"] if rung["parent"] is not None and rung["to_match"]]
    free = [rung["name"] for rung in grown if not rung["to_match"]["expected"]["flops"]]
    if free:
        sentences.append(f"At this η {join_names(free)} would cost nothing on top, more than any growth can save.")
    return sentences


def _last_model(record: Mapping[str, Any]) -> list[str]:
    cost = record["last_model"]
    if cost is None:
        return []
    interval = "" if (ends := span_of(cost["low"], cost["high"])) is None else f", {ends}"
    said = f"The last by way of the others costs {cost['value']:.2f} times itself alone{interval}"
    if cost["basis"] != "law":
        return [f"{said}, by that η."]
    runs, names = cost["law"]["observations"], cost["law"]["studies"]
    studies = f"the {'study' if len(names) == 1 else 'studies'} {join_names(names)}"
    return [f"{said}, by a law of {counted(runs, 'run')} of {studies}:", *(f"- {note}" for note in cost["notes"])]


def _search(record: Mapping[str, Any]) -> list[str]:
    found = record.get("search")
    if found is None:
        return []
    own = found["as_configured"]
    if not found["best"]:
        begin = "Where to grow: no cost is known" if own else "No cost is known of a trunk of these rungs"
        return [f"{begin}: {nothing_alike(found)}.", *two_costs(record)]
    best = found["best"][0]
    stages = ", ".join(f"{name} until {until:.2g}" for name, until in best["until"].items())
    changes = "".join(f"; {key}={value}" for key, value in best["changes"].items())
    others = len(found["best"]) - 1
    more = f"--full shows {f'{others} more and where each' if others else 'where it'} was measured"
    cost = f"last-model cost {best['last_model_cost']:.2f}; {more}."
    left_out = ", the other rungs left out" if len(best["until"]) + 1 < len(record["rungs"]) else ""
    if own is None:
        last = record["rungs"][-1]["name"]
        way = f"{stages}, then {last}{left_out}{changes}"
        return [f"As a trunk (schedule: trunk) these rungs could be: {way}; {cost}", *two_costs(record)]
    same = ", as configured" if best["until"] == own["until"] and not best["changes"] else ""
    return [f"Where to grow: {stages}{same}{left_out}{changes}; {cost}", *two_costs(record)]


def _measured(record: Mapping[str, Any]) -> list[str]:
    measurement = record["measurement"]
    if measurement is None:
        return []
    speeds = ", ".join(
        f"{entry['name']} {entry['tokens_per_second']:,.0f} tokens/s"
        + ("" if entry["mfu"] is None else f" ({percent(entry['mfu'], 1)} MFU)")
        for entry in measurement["rungs"]
    )
    others = [rung["name"] for rung in record["rungs"] if rung["speed"]["basis"] != "measured"]
    rest = f"; extrapolated: {', '.join(others)}" if others else ""
    return [f"Measured on one {measurement['device']['name']}: {speeds}{rest}."]
