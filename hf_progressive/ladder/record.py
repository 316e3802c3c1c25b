"""The records a ladder leaves: `rung.json` and `ladder.json`.

Reports, plots and cards read these files and nothing else. FLOPs are a run's own unless the key says `inherited`.
Those of validation stand apart, under `evaluation`, and no figure of efficiency counts them.
"""

import os
import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import torch
from accelerate import PartialState

from hf_progressive.config import LadderConfig
from hf_progressive.data import Corpus
from hf_progressive.planning.ladder_plan import RungPlan
from hf_progressive.records.matching import flops_to_match, saving, transfer_efficiency
from hf_progressive.records.origin import RECORD_FORMAT, Origin, lineage_flops
from hf_progressive.training.flops import FORWARD_SHARE
from hf_progressive.training.training_run import TrainingResult


def ladder_record(config: LadderConfig, *, finished: list[str], state: PartialState) -> dict[str, Any]:
    """Return what `ladder.json` holds.

    Args:
        config: The ladder.
        finished: Names of the rungs that are trained.
        state: The processes.

    Returns:
        Plain values.
    """
    names = [rung.name for rung in config.rungs]
    return {
        "format": RECORD_FORMAT,
        "name": config.name,
        "family": config.model.family,
        "seed": config.seed,
        "rungs": names,
        "finished": finished,
        "complete": finished == names,
        "config": config.to_dict(),
        "environment": environment(state),
    }


def environment(state: PartialState) -> dict[str, Any]:
    """Describe what a run ran on.

    Args:
        state: The processes.

    Returns:
        Versions of the packages that decide results, and the machine.
    """
    packages = ("torch", "transformers", "accelerate", "datasets", "tokenizers")
    return {
        "hf_progressive": own_version(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(state.device),
        "processes": state.num_processes,
    }


def own_version() -> str:
    """Return this package's version.

    Returns:
        The installed version, or that the package runs from a checkout that is not installed.
    """
    try:
        return metadata.version("hf-progressive")
    except metadata.PackageNotFoundError:
        return "a checkout, not installed"


def rung_record(
    config: LadderConfig,
    rung: RungPlan,
    result: TrainingResult,
    corpus: Corpus,
    *,
    model_config: Mapping[str, Any],
    growth: dict[str, Any] | None,
    estimates: dict[str, Any],
    core: dict[str, Any] | None,
    parent: Mapping[str, Any] | None,
    seconds: Mapping[str, float],
    state: PartialState,
) -> dict[str, Any]:
    """Return what `rung.json` holds before the rung's baseline is trained.

    Args:
        config: The ladder.
        rung: The rung's plan.
        result: What its training measured.
        corpus: What it was trained on.
        model_config: The trained model's configuration.
        growth: The growth's record; None on the first rung.
        estimates: What was estimated of the trained model for its successor, with the FLOPs.
        core: The result on CORE, where it was evaluated.
        parent: The parent's record; None on the first rung.
        seconds: Wall-clock seconds by step.
        state: The processes.

    Returns:
        Plain values.
    """
    before = {name: estimate["flops"] for name, estimate in parent["estimates"].items()} if parent else {}
    flops = {
        "per_token": rung.size.flops_per_token,
        "train": result.flops,
        "fisher": before.get("fisher", 0.0),
        "subspace": before.get("subspace", 0.0),
        "inherited": lineage_flops(parent) if parent else 0.0,
        "evaluation": result.evaluation_flops,
    }
    check = growth["verification"] if growth else {}
    parent_flops = parent["cold_flops"] if parent else None
    return {
        **_frame(config, rung, model_config, result.tokens, state),
        "cold_tokens": rung.size.tokens,
        "data": corpus.span(rung.first_block, result.tokens // config.model.context),
        "flops": flops,
        "lineage_complete": parent is None or parent.get("lineage_complete", True),
        "bits_per_byte": result.bits_per_byte,
        "loss": result.loss,
        "core": core,
        "curve": result.curve,
        "training_log": result.training_log,
        "computed_in": result.computed_in,
        "c_parent_over_c_cold": None if parent_flops is None else parent_flops / rung.size.flops,
        "cold_flops": float(rung.size.flops),
        "max_abs_logit_diff": check.get("max_abs_logit_diff"),
        "max_abs_logit": check.get("max_abs_logit"),
        "growth": growth,
        "estimates": estimates,
        "phi": _phi(config, parent) if parent else None,
        "throughput": result.throughput,
        "seconds": dict(seconds),
    }


def origin_record(
    config: LadderConfig,
    rung: RungPlan,
    origin: Origin,
    *,
    data: Mapping[str, Any],
    measured: Mapping[str, float],
    model_config: Mapping[str, Any],
    estimates: dict[str, Any],
    core: dict[str, Any] | None,
    seconds: Mapping[str, float],
    state: PartialState,
) -> dict[str, Any]:
    """Return what `rung.json` holds of a first rung that was trained elsewhere.

    All FLOPs that went into it, its ancestors' among them, count as its training, since the ladder begins with it.
    They are 0 where nothing is recorded, and `lineage_complete` says so there and on every rung grown from it.

    Args:
        config: The ladder.
        rung: The rung's plan.
        origin: The model.
        data: What it was trained on.
        measured: Its `loss` and `bits_per_byte` on this ladder's validation documents.
        model_config: The model's configuration.
        estimates: What was estimated of it for its successor, here or before, with the FLOPs.
        core: The result on CORE, where it was evaluated.
        seconds: Wall-clock seconds by step.
        state: The processes.

    Returns:
        Plain values.
    """
    known = origin.record or {"tokens": 0, "cold_tokens": 0, "cold_flops": None}
    per_token, spent = rung.size.flops_per_token, origin.flops
    validated = measured.get("tokens", 0) * per_token * FORWARD_SHARE
    point = {"step": 0, "tokens": 0, "flops": spent, **{key: measured[key] for key in ("loss", "bits_per_byte")}}
    return {
        **_frame(config, rung, model_config, known["tokens"], state),
        "origin": origin.to_dict(),
        "cold_tokens": known["cold_tokens"],
        "data": dict(data),
        "flops": {
            "per_token": per_token,
            "train": spent,
            **dict.fromkeys(("fisher", "subspace", "inherited"), 0.0),
            "evaluation": validated,
        },
        "lineage_complete": origin.is_complete,
        "bits_per_byte": point["bits_per_byte"],
        "loss": point["loss"],
        "core": core,
        "curve": [point],
        "cold_flops": known["cold_flops"],
        "estimates": estimates,
        "seconds": dict(seconds),
    }


def _frame(
    config: LadderConfig, rung: RungPlan, model_config: Mapping[str, Any], tokens: int, state: PartialState
) -> dict[str, Any]:
    # What every record holds, with nothing in the places of what is measured.
    budget_parameters = getattr(rung.parameters, config.training.budget_parameters)
    return {
        "format": RECORD_FORMAT,
        "index": rung.index,
        "name": rung.name,
        "parent": rung.parent,
        "origin": None,
        "family": config.model.family,
        "config": dict(model_config),
        "parameters": {
            "total": rung.parameters.total,
            "non_embedding": rung.parameters.non_embedding,
            "scaling": rung.parameters.scaling,
        },
        "tokens": tokens,
        "cold_tokens": 0,
        "tokens_per_parameter": tokens / budget_parameters,
        "data": {},
        "flops": {},
        "lineage_complete": True,
        "bits_per_byte": None,
        "loss": None,
        "core": None,
        "curve": [],
        "training_log": [],
        "computed_in": {},
        "cold": None,
        "flops_to_match": None,
        "gap_bits_per_byte": None,
        "saving": None,
        "eta": None,
        "c_parent_over_c_cold": None,
        "cold_flops": None,
        "max_abs_logit_diff": None,
        "max_abs_logit": None,
        "growth": None,
        "estimates": {},
        "phi": None,
        "throughput": None,
        "seconds": {},
        "environment": environment(state),
    }


def _phi(config: LadderConfig, parent: Mapping[str, Any]) -> dict[str, Any] | None:
    phi = config.phi
    if phi.ewc_lambda == 0 and phi.gamma == 0:
        return None
    weights = {"ewc_lambda": phi.ewc_lambda, "gamma": phi.gamma, "schedule": phi.schedule, "until": phi.until}
    return {**weights, **parent["estimates"]}


def matched(record: Mapping[str, Any], *, cold: Mapping[str, Any], parent: Mapping[str, Any]) -> dict[str, Any]:
    """Return a rung's record with its baseline in it, and what inheritance saved.

    Args:
        record: The record before.
        cold: What training the baseline measured.
        parent: The parent's record.

    Returns:
        A new record. `flops_to_match`, `saving` and `eta` are None where the rung did not reach its baseline's final
        bits per byte; `gap_bits_per_byte` says by how much it missed, or (negative) went below them. `eta` is None too
        where what went into the parent is not known.
    """
    result = {
        **record,
        "cold": dict(cold),
        "gap_bits_per_byte": record["bits_per_byte"] - cold["bits_per_byte"],
    }
    child, full, before = flops_to_match(record["curve"], cold["bits_per_byte"]), cold["flops"], lineage_flops(parent)
    if child is not None:
        result["flops_to_match"] = child
        result["saving"] = saving(child_flops=child, cold_flops=full)
        if parent.get("lineage_complete", True):
            result["eta"] = transfer_efficiency(child_flops=child, cold_flops=full, lineage_flops=before)
    return result
