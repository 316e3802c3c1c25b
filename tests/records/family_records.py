"""Records of ladders of any length, each figure in them from its definition, with curves worked out by hand.

A family's first rung may be trained from scratch or come from elsewhere, with all, a part or nothing known of it.
"""

import itertools
import json
import math
from pathlib import Path
from typing import Any, Literal

Record = dict[str, Any]

CONTEXT = 128
Origin = Literal["scratch", "taken", "taken grown", "taken in part", "taken unknown"]
ORIGINS: tuple[Origin, ...] = ("scratch", "taken", "taken grown", "taken in part", "taken unknown")


def family(
    length: int,
    *,
    origin: Origin = "scratch",
    unmatched: tuple[int, ...] = (),
    without_baseline: tuple[int, ...] = (),
    dearer: bool = False,
    phi: dict[str, Any] | None = None,
    repeats: dict[int, int] | None = None,
    timed: bool = False,
    branches: bool = False,
) -> list[Record]:
    """Return the records of a finished ladder.

    Args:
        length: Rungs.
        origin: Where the first one is from.
        unmatched: Places of grown rungs that end above their baselines.
        without_baseline: Places of grown rungs of which no baseline was trained.
        dearer: Whether children need more than their baselines.
        phi: The penalty's settings, if it was on.
        repeats: By place, the token from which on a rung reads what was read before.
        timed: Whether the records hold what validation took, and how fast the models trained.
        branches: Whether the ladder is a trunk, off which every member but the last branches for its decay.
    """
    records: list[dict[str, Any]] = []
    for place in range(length):
        if place == 0:
            records.append(_first(origin))
        else:
            matched = None if place in without_baseline else place not in unmatched
            records.append(_grown(records[-1], place, matched=matched, dearer=dearer, phi=phi))
        if branches:
            _branch(records[-1], is_last=place + 1 == length)
        records[-1]["data"]["repeats_from_token"] = (repeats or {}).get(place)
        if timed:
            _time(records[-1])
    return records


def _branch(record: Record, *, is_last: bool) -> None:
    flops, member = record["flops"], "end" if is_last else "decay"
    flops["branch"] = 0.0 if is_last else 0.083 * flops["train"]
    part = {"until": 0.2 * (record["index"] + 1), "steps": 917, "tokens": round(0.917 * record["tokens"])}
    part |= {"flops": flops["train"] - flops["branch"], "member": member, "warmup_steps": 11, "decay_steps": 83}
    record["trunk"] = part


def _time(record: Record) -> None:
    per_token = record["flops"]["per_token"]
    if record["origin"] is None:
        seconds = {"training": 3.6 + record["index"], "evaluation": 71.4, "saving": 0.3}
        record["throughput"] = {"tokens_per_second": 123_456.7 + record["index"], "mfu": 0.3217, "device": "H100"}
        record["throughput"] |= {"processes": 8, "seconds": seconds}
    record["flops"]["evaluation"] = per_token / 3 * 4096 * len(record["curve"])
    if record["cold"]:
        record["cold"]["evaluation_flops"] = per_token / 3 * 4096 * len(record["cold"]["curve"])


def write_family(run: Path, records: list[dict[str, Any]], **config: Any) -> Path:
    """Write a run folder that holds the records and nothing else."""
    names = [record["name"] for record in records]
    settings = {"learning_rate": 0.004, "inherited_learning_rate": None, "tokens_per_parameter": 6}
    ladder = {"format": 1, "name": "sums", "family": "gpt2", "seed": 3, "rungs": names, "finished": names}
    ladder |= {"complete": True, "environment": {"python": "3.11.9"}}
    ladder["config"] = {"cold": "none", "data": {"source": "stdlib"}, "training": settings, **config}
    for record in records:
        final = run / record["name"] / "final"
        final.mkdir(parents=True)
        (final / "rung.json").write_text(json.dumps(record))
    (run / "ladder.json").write_text(json.dumps(ladder))
    return run


def _first(origin: Origin) -> dict[str, Any]:
    record = _frame(0)
    if origin == "scratch":
        return record | _trained(record, record["cold_tokens"], 0.0, lambda share: 2.41 + 2.3 * (1 - share) ** 3)
    known = {"taken": 1.0, "taken grown": 1.47, "taken in part": 0.38, "taken unknown": 0.0}[origin]
    flops = known * record["cold_flops"]
    complete = origin in {"taken", "taken grown"}
    record["origin"] = {"name": "org/d3", "commit": "0123456789abcdef", "flops": flops, "is_complete": complete}
    record |= {"lineage_complete": complete, "bits_per_byte": 2.41, "loss": 1.9}
    record["curve"] = [{"step": 0, "tokens": 0, "flops": flops, "loss": 1.9, "bits_per_byte": 2.41}]
    record["flops"] |= {"train": flops}
    if origin == "taken unknown":
        record |= {"tokens": 0, "cold_tokens": 0, "cold_flops": None, "tokens_per_parameter": 0.0}
        record["data"] |= {"source": "unknown", "blocks": 0}
    return record


def _grown(
    parent: dict[str, Any], place: int, *, matched: bool | None, dearer: bool, phi: dict[str, Any] | None
) -> dict[str, Any]:
    record = _frame(place)
    cold_flops, tokens = record["cold_flops"], round(0.71 * record["cold_tokens"])
    estimates = {"fisher": 0.0131 * cold_flops, "subspace": 0.0017 * cold_flops} if phi else {}
    flops = record["flops"] | {"fisher": 0.0, "subspace": 0.0} | estimates
    flops["inherited"] = sum(parent["flops"][key] for key in ("train", "fisher", "subspace", "inherited"))
    flops["inherited"] -= parent["flops"].get("branch", 0.0)
    record |= {
        "parent": parent["name"],
        "flops": flops,
        "lineage_complete": parent["lineage_complete"],
        "max_abs_logit_diff": 3.4e-6 * place,
        "max_abs_logit": 11.7 + place,
        "growth": _growth(parent, record, place),
        "c_parent_over_c_cold": parent["cold_flops"] and parent["cold_flops"] / cold_flops,
        "phi": phi and {**phi, **PHI_ESTIMATES},
        "training_log": [
            {"step": step, "loss": 3.0, "phi/grad_ratio": (step > 1) * 3.1 / step} for step in (1, 10, 20)
        ],
    }
    if not phi:
        for entry in record["training_log"]:
            del entry["phi/grad_ratio"]
    start = parent["bits_per_byte"]
    end = start - 0.013 * (5 + place)
    record |= _trained(record, tokens, sum(estimates.values()), lambda share: start + (end - start) * share**2)
    if matched is None:
        return record
    # A baseline that ends above the child, below it if that should not match; a dearer child matches late.
    share = 0.9 if dearer else 0.69
    target = start + (end - start) * share**2 if matched else end - 0.0217 * place
    baseline_tokens = round(record["cold_tokens"] * (0.35 if dearer else 1))
    baseline = _trained(_frame(place), baseline_tokens, 0.0, lambda share: target + 2.4 * (1 - share) ** 3)
    own = {key: baseline[key] for key in ("bits_per_byte", "loss", "curve", "tokens")}
    record["cold"] = own | {"flops": baseline["flops"]["train"], "seconds": 20.5}
    record["gap_bits_per_byte"] = record["bits_per_byte"] - own["bits_per_byte"]
    if matched:
        match = crossing(record["curve"], own["bits_per_byte"])
        spared = baseline["flops"]["train"] - match
        record |= {"flops_to_match": match, "saving": spared / baseline["flops"]["train"]}
        if record["lineage_complete"]:
            whole = baseline["flops"]["train"]
            record |= {"eta": spared / flops["inherited"], "eta_ceiling": whole / flops["inherited"]}
            record["last_model_cost"] = (flops["inherited"] + match) / whole
    return record


PHI_ESTIMATES = {
    "fisher": {"kind": "empirical", "sequences": 1280, "tokens": 1280 * CONTEXT, "flops": 1.0},
    "subspace": {"source": "weights", "energy": 0.95, "sequences": 0, "tokens": 0, "flops": 1.0},
}


def crossing(curve: list[dict[str, Any]], target: float) -> float:
    """Return the FLOPs at which a falling curve comes down to a target, linear in log FLOPs between its points."""
    for before, after in itertools.pairwise(curve):
        if after["bits_per_byte"] <= target:
            share = (before["bits_per_byte"] - target) / (before["bits_per_byte"] - after["bits_per_byte"])
            if before["flops"] == 0:
                return float(share * after["flops"])
            return math.exp((1 - share) * math.log(before["flops"]) + share * math.log(after["flops"]))
    raise AssertionError(f"the curve stays above {target}")


def _growth(parent: Record, child: Record, place: int) -> Record:
    check = {"preserved": True, "sequences": 4, "length": 64, "dtype": "float32", "kl": 1.7e-12}
    check |= {"max_abs_logit_diff": 3.4e-6 * place, "max_abs_logit": 11.7 + place}
    growth = {"method": "exact", "seed": 17, "preserves_function": True, "verification": check}
    return growth | {"plan": {"parameters": [record["parameters"]["total"] for record in (parent, child)]}}


def _frame(place: int) -> dict[str, Any]:
    layers, width = 3 + place, 48 + 8 * (place // 2)
    parameters = 12 * layers * width**2 + 1152 * width
    per_token = 6.0 * parameters + 12.0 * layers * width * CONTEXT
    tokens = 6 * parameters // 512 * 512
    empty = (
        "origin",
        "parent",
        "core",
        "cold",
        "flops_to_match",
        "gap_bits_per_byte",
        "saving",
        "eta",
        "growth",
        "phi",
    )
    return dict.fromkeys((*empty, "c_parent_over_c_cold", "max_abs_logit_diff", "max_abs_logit")) | {
        "format": 1,
        "index": place,
        "name": f"l{layers}w{width}",
        "family": "gpt2",
        "config": {"model_type": "gpt2", "n_layer": layers, "n_embd": width, "n_head": width // 8}
        | {"n_positions": CONTEXT},
        "parameters": {"total": parameters, "non_embedding": parameters - 1152 * width, "scaling": parameters},
        "cold_tokens": tokens,
        "cold_flops": tokens * per_token,
        "tokens": tokens,
        "tokens_per_parameter": tokens / parameters,
        "lineage_complete": True,
        "data": {"source": "stdlib", "first_block": 10_007 * place, "blocks": tokens // CONTEXT, "first_epoch": 0}
        | {"block_tokens": CONTEXT, "corpus_blocks": 170_123, "fingerprint": "9c1f0b7a"},
        "flops": {"per_token": per_token, "train": 0.0, "fisher": 0.0, "subspace": 0.0, "inherited": 0.0},
        "training_log": [{"step": 1, "loss": 5.0}],
        "estimates": {},
        "seconds": {"grow": 0.4, "train": 12.3},
        "environment": {"hf_progressive": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
    }


def _trained(record: dict[str, Any], tokens: int, before: float, bits: Any) -> dict[str, Any]:
    per_token, points = record["flops"]["per_token"], 12
    curve = [
        {"step": 9 * n, "tokens": tokens * n / points, "flops": before + per_token * tokens * n / points}
        | {"loss": 0.8 * bits(n / points), "bits_per_byte": bits(n / points)}
        for n in range(points + 1)
    ]
    return {
        "tokens": tokens,
        "tokens_per_parameter": tokens / record["parameters"]["scaling"],
        "data": record["data"] | {"blocks": tokens // CONTEXT},
        "flops": record["flops"] | {"train": per_token * tokens},
        "curve": curve,
        "bits_per_byte": curve[-1]["bits_per_byte"],
        "loss": curve[-1]["loss"],
    }
