"""A priced plan as a table of plain text."""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_progressive.report.formatting import NOTHING
from hf_progressive.report.table import Table

_HEADER = (
    "rung", "cold: FLOPs", "hours", "dollars", "inherited: FLOPs", "hours", "dollars", "validation", "tokens : params",
    "effective", "GB per GPU", "sharded", "GB on disk",
)  # fmt: skip


def price_table(record: Mapping[str, Any]) -> str:
    """Return the prices of a ladder, as `LadderPrice.to_dict` returns them, in plain text.

    A line per rung, the family's prices, and what does not fit.
    """
    rungs = Table(header=_HEADER, rows=tuple(_row(rung) for rung in record["rungs"]))
    prices = (_family, unmatched_lines, _last_model, _search, _beside)
    parts = (*prices, budget_lines, _measured, misfit_lines, starved_lines)
    return "\n".join([rungs.plain(), "", *(line for part in parts for line in part(record))])


def _row(rung: Mapping[str, Any]) -> tuple[str, ...]:
    memory, tokens = rung["memory"], rung["tokens_per_parameter"]
    grown = rung["parent"] is not None or rung["trunk"] is not None
    inherited = rung["to_match"]["expected"] if rung["to_match"] else rung["as_configured"]
    sizes = (memory["replicated_bytes"], memory["sharded_bytes"], rung["disk_bytes"])
    return (
        rung["name"],
        *_cells(rung["cold"]),
        *(_cells(inherited) if grown else (NOTHING,) * 3),
        _percent(rung["validation"]["share"]),
        f"{tokens['spent' if grown else 'cold']:.2f}",
        NOTHING if tokens["effective"] is None else f"{tokens['effective']:.2f}",
        *(f"{size / 1e9:.3g}" for size in sizes),
    )


def _percent(share: float | None) -> str:
    return NOTHING if share is None else f"+{100 * share:.1f} %"


def _cells(cost: Mapping[str, Any]) -> tuple[str, str, str]:
    dollars = NOTHING if cost["dollars"] is None else f"{cost['dollars']:.2f}"
    return f"{cost['flops']:.3g}", f"{cost['hours']:.3g}", dollars


def _family(record: Mapping[str, Any]) -> list[str]:
    family, evidence = record["family"], record["evidence"]
    entries = [("every rung cold", family["cold"])]
    if evidence is not None and family["to_match"]:
        entries += [(f"every rung inherited, to match at {_described(evidence)}", family["to_match"]["expected"])]
        for key, text in (("at_best", "  at the upper end"), ("at_worst", "  at the lower end")):
            entries += [(text, family["to_match"][key])] if key in family["to_match"] else []
    fraction, trunk = record["inherited_fraction"], record["rungs"][0]["trunk"] is not None
    share = "each its own share" if fraction is None else f"{fraction:g} of its cold budget each"
    entries += [
        (
            f"every rung inherited, {'the trunk and its members' if trunk else share}, as configured",
            family["as_configured"],
        ),
        *([("the last rung by way of its stages, as configured", family["last_grown"])] if trunk else []),
        ("the last rung alone, cold", family["last_alone"]),
        *_last_model_entries(record),
        ("this run, its baselines included", family["this_run"]),
    ]
    cluster = record["cluster"]
    speed = f" at {cluster['mfu']:.0%} MFU" if record["measurement"] is None else ", measured"
    price = "" if cluster["price"] is None else f" at ${cluster['price']:g} per GPU-hour"
    machine = f"{cluster['count']} × {cluster['gpu']['name']}{speed}{price}"
    return [f"{machine}; training alone:", *(f"  {_priced(cost)}  {text}" for text, cost in entries)]


def _last_model_entries(record: Mapping[str, Any]) -> list[tuple[str, Any]]:
    cost, prices = record["last_model"], record["family"]["last_model"]
    if cost is None:
        return []
    basis = "by that η" if cost["basis"] == "eta" else f"by {' and '.join(cost['law']['studies'])}"
    entries = [(f"the last rung by way of the others, {cost['value']:.2f} × that, {basis}", prices["expected"])]
    for key, end, text in (("at_best", "low", "  at the least"), ("at_worst", "high", "  at the most")):
        if prices[key] is not None:
            entries.append((f"{text}, {cost[end]:.3g} ×", prices[key]))
    return entries


def _last_model(record: Mapping[str, Any]) -> list[str]:
    # How far the last model's price is from what was measured.
    cost = record["last_model"]
    if cost is None or cost["basis"] != "law":
        return []
    law = cost["law"]
    lines = [f"the last rung's price by way of the others is from {law['observations']} runs; {law['form']}:"]
    lines += [f"  {note}" for note in cost["notes"]]
    held_out = law["held_out"]
    if held_out is not None and held_out["low"] is not None:
        lines.append(
            f"  the largest size that was measured, held out: {held_out['predicted']:.2f} predicted"
            f" ({held_out['low']:.2f} to {held_out['high']:.2f}), {held_out['measured']:.2f} measured"
        )
    return lines


def unmatched_lines(record: Mapping[str, Any]) -> list[str]:
    """Say which studies that were named price nothing."""
    return list(record["unmatched"])


def _search(record: Mapping[str, Any]) -> list[str]:
    found = record.get("search")
    if found is None:
        return []
    trunk = "the trunk" if found["as_configured"] else "a trunk of these rungs"
    measured = f"{len(found['measured'])} measured trunks ({', '.join(found['families'])})"
    lines = [f"where {trunk} would grow, by {measured}:"]
    entries = [("as configured", found["as_configured"])] if found["as_configured"] else []
    for title, proposal in [*entries, *(("proposed", proposal) for proposal in found["best"])]:
        stages = ", ".join(f"{name} until {until:.2g}" for name, until in proposal["until"].items())
        cost = "no evidence: outside of what was measured"
        if proposal["last_model_cost"] is not None:
            ends = [NOTHING if proposal[end] is None else f"{proposal[end]:.2f}" for end in ("low", "high")]
            cost = (
                f"last-model cost {proposal['last_model_cost']:.2f} ({' to '.join(ends)}; like {proposal['nearest']})"
            )
        changes = ", ".join(f"{key}={value}" for key, value in proposal["changes"].items())
        stages += f"; {changes}" if changes else ""
        lines.append(f"  {title}: {stages}: takes {proposal['takes']:.2f} of the last alone, {cost}")
    if not found["best"]:
        lines.append(f"  no evidence for any shares of these rungs: {nothing_alike(found)}")
    return [*lines, *(f"  {line}" for line in two_costs(record))]


def two_costs(record: Mapping[str, Any]) -> list[str]:
    """Say what the search's cost of the last model rests on, and the law's: a sentence each, none without a cost."""
    found, law = record["search"], record["last_model"]
    costs = [*found["best"], *([found["as_configured"]] if found["as_configured"] else [])]
    known = next((proposal for proposal in costs if proposal["last_model_cost"] is not None), None)
    if known is None:
        return []
    own = found["as_configured"]
    is_own = own is not None and (known["until"], known["changes"]) == (own["until"], {})
    whose = "this" if is_own else "that"
    lines = [
        f"{known['last_model_cost']:.2f}, of the search, is {whose} trunk's own FLOPs, {known['takes']:.2f} of the"
        f" last alone, over what {' and '.join(found['families'])} trunks that grew alike were worth,"
        f" {known['worth']:.2f} of a budget from scratch; the models' size is not in it."
    ]
    if law is None or law["basis"] != "law":
        return lines
    named = law["law"]["studies"]
    studies = f"the {'study' if len(named) == 1 else 'studies'} {' and '.join(named)}"
    place = "where a trunk grows" if "trunk" in law["law"]["schedules"] else "a trunk"
    return [
        *lines,
        f"{law['value']:.2f}, of the law, is what the runs of {studies} cost in all, carried to this size and budget;"
        f" {place} is not in it. Compare ways to grow by the search, and doubt both costs as far as the law's interval"
        " is wide.",
    ]


def nothing_alike(found: Mapping[str, Any]) -> str:
    """Say how the trunks that a search could propose differ from those that were measured."""
    depths, widths = (_span(found["begins"][key]) for key in ("depth", "width"))
    measured = "; ".join(
        f"{shape['depth']:.2g} and {shape['width']:.2g}, grown at"
        f" {' and '.join(f'{share:.2g}' for share in sorted({shape['first'], shape['last']}))}"
        for shape in found["shapes"]
    )
    return (
        f"a trunk would begin at {depths} of the last rung's layers and {widths} of its width, and grow by"
        f" {found['latest']:.2g} at the latest; measured ones began at {measured}"
    )


def _span(shares: Sequence[float]) -> str:
    low, high = f"{min(shares):.2g}", f"{max(shares):.2g}"
    return low if low == high else f"{low} to {high}"


def _beside(record: Mapping[str, Any]) -> list[str]:
    # What this run does beside training, and all that it takes.
    family, first = record["family"], record["rungs"][-1]["validation"]
    tokens = f"up to {first['points']} × {first['tokens'] // first['points']:,} tokens a training run"
    share = _percent(family["validation_share"])
    entries = [(f"validation, {tokens}: {share} of this run's training", family["validation"])]
    if family["estimates"]["flops"]:
        entries.append(("estimates for Φ", family["estimates"]))
    if record["rungs"][0]["core"] is not None:
        entries.append((f"CORE, about {record['rungs'][0]['core']['tokens']:,} tokens a rung", family["core"]))
    written = sum(rung["saving"]["bytes"] for rung in record["rungs"]) / 1e9
    if record["measurement"] is not None:
        speed = record["measurement"]["saving_bytes_per_second"] / 1e9
        entries.append((f"saving {written:,.1f} GB at {speed:.2g} GB/s", family["saving"]))
    left_out = "" if record["measurement"] else f", without the time that saving {written:,.1f} GB takes"
    entries.append((f"this run in all{left_out}", family["in_all"]))
    return ["beside training:", *(f"  {_priced(cost)}  {text}" for text, cost in entries)]


def span_of(low: float | None, high: float | None) -> str | None:
    """Write an interval as people read it; None where there is none.

    >>> span_of(0.5, 2), span_of(-3.456, None), span_of(None, 2), span_of(None, None)
    ('0.5 to 2', '−3.46 or more', '2 or less', None)
    """
    ends = [None if end is None else f"{end:.3g}".replace("-", "−") for end in (low, high)]
    if ends[0] is None or ends[1] is None:
        return f"{ends[0]} or more" if ends[0] else f"{ends[1]} or less" if ends[1] else None
    return f"{ends[0]} to {ends[1]}"


def _described(evidence: Mapping[str, Any]) -> str:
    interval = "" if (ends := span_of(evidence["low"], evidence["high"])) is None else f", {ends}"
    return f"η = {evidence['eta']:.3g}{interval} ({evidence['source']})"


def _priced(cost: Mapping[str, Any]) -> str:
    dollars = "" if cost["dollars"] is None else f"  ${cost['dollars']:>8.2f}"
    return f"{cost['flops']:>9.3g} FLOPs  {cost['hours']:>7.3g} h{dollars}"


def _measured(record: Mapping[str, Any]) -> list[str]:
    measurement = record["measurement"]
    if measurement is None:
        return []
    device = measurement["device"]["name"]
    lines = [f"measured on one {device}, {measurement['seconds']:g} s a rung, random tokens:"]
    for entry in measurement["rungs"]:
        mfu = "" if entry["mfu"] is None else f", {entry['mfu']:.1%} MFU"
        peak, predicted = entry["peak_bytes"], f"{entry['predicted_bytes'] / 1e9:.3g} GB predicted"
        memory = f"memory {predicted}, not counted on this device"
        if peak is not None:
            memory = f"{peak / 1e9:.3g} GB of memory at the most, {predicted}"
        lines.append(
            f"  {entry['name']}: {entry['tokens_per_second']:,.0f} tokens/s{mfu}, validation"
            f" {entry['evaluation_tokens_per_second']:,.0f}; median of {entry['steps']} steps; {memory}"
        )
    if measurement["without"]:
        lines.append(f"  timed without {', '.join(measurement['without'])}")
    saving = measurement["saving_bytes_per_second"] / 1e9
    lines.append(f"  saving: {saving:.3g} GB/s written, made durable and digested in {measurement['folder']}")
    for rung in record["rungs"]:
        if rung["speed"]["basis"] != "measured":
            reason = measurement["skipped"].get(rung["name"])
            source = f"{rung['speed']['source']}'s FLOPs per second on the {device}"
            lines.append(
                f"  {rung['name']}: extrapolated from {source}{'' if reason is None else f', because {reason}'}"
            )
    if (count := record["cluster"]["count"]) > 1:
        lines.append(f"  extrapolated to {count}: taken as {count} times one, with nothing lost between them")
    return lines


def budget_lines(record: Mapping[str, Any]) -> list[str]:
    """Say how much of the budget the run takes."""
    run, lines = record["family"]["in_all"], []
    for unit, limit in record["budget"].items():
        if limit is None or run[unit] is None:
            continue
        verdict = "within" if run[unit] <= limit else "over"
        may = f"{limit:g} {unit.removesuffix('s') if limit == 1 else unit}"
        lines.append(f"  this run takes {run[unit] / limit:.0%} of the {may} it may: {verdict} the budget")
    return lines


def misfit_lines(record: Mapping[str, Any]) -> list[str]:
    """Say which micro-batches do not fit, or could be larger."""
    gpu = record["cluster"]["gpu"]
    shared = record["rungs"][-1]["memory"]
    size, blocks = shared["micro_batch_size"], shared["micro_batch_size"] * shared["accumulation_steps"]
    lines = []
    if 2 * size <= shared["largest_wanted"]:
        lines.append(
            f"micro-batches hold {size} of the {shared['largest_wanted']} blocks that they may, because no larger"
            f" number divides the {blocks} of a step and process; choose a training.batch_tokens with more divisors"
        )
    for rung in record["rungs"]:
        memory = rung["memory"]
        if rung["origin"] is None and not memory["fits"]:
            lines.append(
                f"{rung['name']}: micro-batches of {memory['micro_batch_size']} take"
                f" {memory['replicated_bytes'] / 1e9:.0f} GB of the {gpu['name']}'s {gpu['memory_gb']:g}; set"
                f" training.micro_batch_size to {memory['largest_micro_batch']} or less"
            )
    return lines


def starved_lines(record: Mapping[str, Any]) -> list[str]:
    """Say which rungs would wait for the tokenizer."""
    data = record["data"]
    hungry = [rung for rung in record["rungs"] if rung["data_supply"] is not None and rung["data_supply"] < 1]
    if not hungry:
        return []
    worst = min(hungry, key=lambda rung: rung["data_supply"])
    cores = f"{data['cores']} cores" if data["cores_given"] else f"{data['cores']} cores (assumed; --cores says)"
    return [
        f"data: tokenizing the stream on {cores} gives {data['tokens_per_second'] / 1e6:.1f} M tokens/s,"
        f" {worst['name']} eats {worst['tokens_per_second'] / 1e6:.1f} M, so that the GPUs would wait in"
        f" {', '.join(rung['name'] for rung in hungry)}; run `hf-progressive prepare` first"
    ]
