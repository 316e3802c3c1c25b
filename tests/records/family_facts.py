"""What is true of a ladder, worked out from the FLOPs and curves in its records, not from what is derived there."""

import itertools
from typing import Any

from family_records import crossing

Record = dict[str, Any]


def spent(record: Record) -> float:
    """Training and estimates of a rung; of one from elsewhere, all that is recorded."""
    return float(sum(record["flops"][key] for key in ("train", "fisher", "subspace")))


def cold_cost(record: Record) -> float | None:
    """What training it from scratch on its full budget took, or would take; None if its budget is not known."""
    if record["cold"]:
        return float(record["cold"]["flops"])
    return budget(record) or None


def budget(record: Record) -> float:
    """FLOPs of a full budget from scratch; 0 if it is not known."""
    return float(record["cold_tokens"] * record["flops"]["per_token"])


def match_flops(record: Record) -> float | None:
    """Its FLOPs where it came down to its baseline's final bits per byte."""
    baseline = record["cold"]
    if baseline is None or record["curve"][-1]["bits_per_byte"] > baseline["curve"][-1]["bits_per_byte"]:
        return None
    return crossing(record["curve"], baseline["curve"][-1]["bits_per_byte"])


def is_known(records: list[Record]) -> bool:
    """Whether everything that went into a family is recorded."""
    origin = records[0]["origin"]
    return origin is None or bool(origin["is_complete"])


def rung_facts(records: list[Record], place: int) -> dict[str, Any]:
    """What is true of one rung."""
    record, baseline, origin = records[place], records[place]["cold"], records[0]["origin"]
    parent = records[place - 1] if place else None
    known, cold, match = is_known(records), cold_cost(record), match_flops(record)
    lineage = sum(spent(ancestor) - ancestor["flops"].get("branch", 0.0) for ancestor in records[:place])
    measured = baseline is not None or (place == 0 and origin is None)
    saved = cold - match if cold is not None and match is not None else None
    facts = {
        "name": record["name"],
        "ordinal": place + 1,
        "rungs": len(records),
        "is_grown": place > 0,
        "is_known": known,
        "layers": record["config"]["n_layer"],
        "width": record["config"]["n_embd"],
        "context": record["config"]["n_positions"],
        "parameters": record["parameters"]["total"],
        "other_parameters": record["parameters"]["non_embedding"],
        "tokens": record["tokens"],
        "cold_tokens": record["cold_tokens"],
        "tokens_per_parameter": record["tokens"] / record["parameters"]["scaling"],
        "bits": record["curve"][-1]["bits_per_byte"],
        "train": record["flops"]["train"],
        "fisher": record["flops"]["fisher"],
        "subspace": record["flops"]["subspace"],
        "spent": spent(record),
        "lineage": lineage if place else None,
        "cold": cold,
        "cold_is_measured": measured,
        # What a model grown elsewhere would take from scratch is a plan as well.
        "cold_is_planned": not measured and cold not in {None, spent(record)},
        "has_baseline": baseline is not None,
        "match": match,
        "saving": saved / cold if saved is not None else None,
        "extra": -saved / cold if saved is not None else None,
        "eta": saved / lineage if saved is not None and known else None,
        "ceiling": cold / lineage if saved is not None and known else None,
        "grown": lineage + match if saved is not None and known else None,
        "as_trained": (lineage + spent(record)) / cold if cold and known else None,
        "last_model_cost": (lineage + match) / cold if saved is not None and known else None,
        "parent": parent and parent["name"],
        "parent_over_cold": budget(parent) / budget(record) if parent and budget(parent) else None,
        "blocks": record["data"]["blocks"],
        "first_block": record["data"]["first_block"],
        "corpus_blocks": record["data"]["corpus_blocks"],
        "block_tokens": record["data"]["block_tokens"],
        "repeats": record["data"]["repeats_from_token"],
        "logits": record["max_abs_logit"],
        "logit_change": record["max_abs_logit_diff"],
        "versions": "hf_progressive 0.1.0, torch 2.13.0, transformers 5.23.0",
    }
    if record["flops"].get("branch"):
        facts["branch"] = record["flops"]["branch"]
    if part := record.get("trunk"):
        facts |= {"decay_steps": part["decay_steps"], "trunk_tokens": part["tokens"]}
    if origin and place == 0:
        facts |= {"origin": origin["name"], "commit": origin["commit"][:12], "origin_flops": origin["flops"]}
    if baseline:
        facts |= {
            "cold_bits": baseline["curve"][-1]["bits_per_byte"],
            "gap": facts["bits"] - baseline["bits_per_byte"],
        }
        facts |= {"share_spent": facts["spent"] / cold, "share_matched": match / cold if match else None}
        facts |= {"grid": _grid(record, match) / cold if match else None}
    if "throughput" in record:
        speed = record["throughput"]
        facts |= {key: speed[key] for key in ("tokens_per_second", "mfu", "device", "processes")}
    if record["growth"]:
        check = record["growth"]["verification"]
        facts |= {"seed": record["growth"]["seed"], "parent_parameters": parent["parameters"]["total"]}
        facts |= {"sequences": check["sequences"], "check_length": check["length"], "kl": check["kl"]}
    if record["phi"]:
        phi, ratios = record["phi"], [entry["phi/grad_ratio"] for entry in record["training_log"]]
        facts |= {"ewc_lambda": phi["ewc_lambda"], "gamma": phi["gamma"], "until": phi["until"]}
        facts |= {"fisher_sequences": phi["fisher"]["sequences"], "energy": phi["subspace"]["energy"]}
        facts |= {"most_ratio": sorted(ratios)[-1], "last_ratio": ratios[-1]}
    return facts


def _grid(record: Record, match: float) -> float:
    return next(
        after["flops"] - before["flops"]
        for before, after in itertools.pairwise(record["curve"])
        if before["flops"] <= match <= after["flops"]
    )


def _validation(records: list[Record]) -> dict[str, float | None]:
    """What validating took beside the training that it went along with, where that was recorded."""
    pairs = {"grown": (0.0, 0.0), "scratch": (0.0, 0.0)}
    for record in records:
        found = [] if record["origin"] else [("grown" if record["parent"] else "scratch", record["flops"])]
        if record["cold"]:
            baseline = record["cold"]
            found.append(("scratch", {"evaluation": baseline.get("evaluation_flops"), "train": baseline["flops"]}))
        for side, flops in found:
            if flops.get("evaluation") is None:
                return {"validation": None}
            pairs[side] = (pairs[side][0] + flops["evaluation"], pairs[side][1] + flops["train"])
    total, training = (sum(pair[part] for pair in pairs.values()) for part in (0, 1))
    shares = {f"validation_{side}": pair[0] / pair[1] if pair[1] else None for side, pair in pairs.items()}
    return shares | {"validation": total, "validation_share": total / training if training else None}


def _listed(rungs: list[dict[str, Any]]) -> str:
    names = [rung["name"] for rung in rungs]
    return " and ".join([", ".join(names[:-1]), *names[-1:]]).removeprefix(" and ")


def family_facts(records: list[Record]) -> dict[str, Any]:
    """What is true of the family."""
    rungs = [rung_facts(records, place) for place in range(len(records))]
    grown, last = rungs[1:], rungs[-1]
    compared = [rung for rung in grown if rung["has_baseline"]]
    matched = [rung for rung in compared if rung["match"] is not None]
    short = [rung for rung in compared if rung["match"] is None]
    etas = [rung["eta"] for rung in grown if rung["eta"] is not None]
    ceilings = [rung["ceiling"] for rung in grown if rung["ceiling"] is not None]
    costs, known = [rung["cold"] for rung in rungs], is_known(records)
    trained = sum(rung["spent"] for rung in rungs)
    all_cold = sum(cost for cost in costs if cost is not None)
    to_match = trained - last["spent"] + last["match"] if len(matched) == len(rungs) - 1 > 0 else None
    saving = 1 - to_match / all_cold if to_match is not None and known else None
    return _validation(records) | {
        "branch_flops": sum(record["flops"].get("branch", 0.0) for record in records),
        "rungs": len(rungs),
        "seed": 3,
        "known": known,
        "trained": trained,
        "all_cold": all_cold,
        "cold_is_known": None not in costs,
        "is_planned": any(rung["cold_is_planned"] for rung in rungs),
        "last": last["name"],
        "last_is_planned": last["cold_is_planned"],
        "last_cold": last["cold"],
        "to_match": to_match,
        "saving": saving,
        "extra": None if saving is None else -saving,
        "change": None if saving is None else -saving,
        "over_last": to_match / last["cold"] if to_match is not None else None,
        "family_cost": to_match / all_cold if saving is not None else None,
        "last_grown": last["grown"],
        "last_as_trained": last["as_trained"] if last["match"] is None and last["has_baseline"] else None,
        "last_model_cost": last["last_model_cost"],
        "matched_names": _listed(matched),
        "short_names": _listed(short),
        "compared": len(compared),
        "matched": len(matched),
        "least_share": min((rung["share_matched"] for rung in matched), default=None),
        "most_share": max((rung["share_matched"] for rung in matched), default=None),
        "least_gap": min((rung["gap"] for rung in short), default=None),
        "most_gap": max((rung["gap"] for rung in short), default=None),
        "least_spent": min((rung["share_spent"] for rung in short), default=None),
        "most_spent": max((rung["share_spent"] for rung in short), default=None),
        "grid": max((rung["grid"] for rung in matched), default=None),
        "least_eta": min(etas, default=None),
        "most_eta": max(etas, default=None),
        "etas": ", ".join(f"{eta:.2f}" for eta in etas).replace("-", "−") or "–",
        "known_etas": len(etas),
        "least_ceiling": min(ceilings, default=None),
        "most_ceiling": max(ceilings, default=None),
        "ceilings": ", ".join(f"{ceiling:.2f}" for ceiling in ceilings) or None,
        "grown": len(grown),
        "logit_change": max((rung["logit_change"] for rung in grown), default=None),
        "rate": 0.004,
        "one": 1,
        "branches": any(record["flops"].get("branch") for record in records),
    }
