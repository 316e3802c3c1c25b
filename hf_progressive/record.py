"""The records a ladder leaves: `rung.json` and `ladder.json`.

Reports, plots and cards read these files and nothing else. FLOPs are a run's own unless the key says `inherited`.
"""

import os
import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import torch
from accelerate import PartialState

from hf_progressive.arm import ArmResult
from hf_progressive.config import LadderConfig
from hf_progressive.data import Corpus
from hf_progressive.evaluation.matching import flops_to_match, saving, transfer_efficiency
from hf_progressive.ladder_plan import RungPlan

RECORD_FORMAT = 1
"""Version of both records' layout."""


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
        "hf_progressive": metadata.version("hf-progressive"),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(state.device),
        "processes": state.num_processes,
    }


def rung_record(
    config: LadderConfig,
    rung: RungPlan,
    result: ArmResult,
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
    """Return what `rung.json` holds before the rung's cold twin is trained.

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
    }
    check = growth["verification"] if growth else {}
    budget_parameters = getattr(rung.parameters, config.training.budget_parameters)
    return {
        "format": RECORD_FORMAT,
        "index": rung.index,
        "name": rung.name,
        "parent": rung.parent,
        "family": config.model.family,
        "config": dict(model_config),
        "parameters": {
            "total": rung.parameters.total,
            "non_embedding": rung.parameters.non_embedding,
            "scaling": rung.parameters.scaling,
        },
        "tokens": result.tokens,
        "cold_tokens": rung.size.tokens,
        "tokens_per_parameter": result.tokens / budget_parameters,
        "data": corpus.span(rung.first_block, result.tokens // config.model.context),
        "flops": flops,
        "bits_per_byte": result.bits_per_byte,
        "loss": result.loss,
        "core": core,
        "curve": result.curve,
        "training_log": result.training_log,
        "cold": None,
        "flops_to_match": None,
        "gap_bits_per_byte": None,
        "saving": None,
        "eta": None,
        "c_parent_over_c_cold": parent["cold_flops"] / rung.size.flops if parent else None,
        "cold_flops": float(rung.size.flops),
        "max_abs_logit_diff": check.get("max_abs_logit_diff"),
        "max_abs_logit": check.get("max_abs_logit"),
        "growth": growth,
        "estimates": estimates,
        "phi": _phi(config, parent) if parent else None,
        "seconds": dict(seconds),
        "environment": environment(state),
    }


def lineage_flops(record: Mapping[str, Any]) -> float:
    """Return all FLOPs that went into a rung's weights.

    Args:
        record: The rung's record.

    Returns:
        Its own training and estimates, and those of its ancestors.
    """
    flops = record["flops"]
    return float(flops["train"] + flops["fisher"] + flops["subspace"] + flops["inherited"])


def _phi(config: LadderConfig, parent: Mapping[str, Any]) -> dict[str, Any] | None:
    phi = config.phi
    if phi.ewc_lambda == 0 and phi.gamma == 0:
        return None
    weights = {"ewc_lambda": phi.ewc_lambda, "gamma": phi.gamma, "schedule": phi.schedule, "until": phi.until}
    return {**weights, **parent["estimates"]}


def matched(record: Mapping[str, Any], *, cold: Mapping[str, Any], parent: Mapping[str, Any]) -> dict[str, Any]:
    """Return a rung's record with its cold twin in it, and what inheritance saved.

    Args:
        record: The record before.
        cold: What training the twin measured.
        parent: The parent's record.

    Returns:
        A new record. `flops_to_match`, `saving` and `eta` are None where the rung did not reach its twin's final bits
        per byte; `gap_bits_per_byte` says by how much it missed, or (negative) went below them.
    """
    result = {
        **record,
        "cold": dict(cold),
        "gap_bits_per_byte": record["bits_per_byte"] - cold["bits_per_byte"],
    }
    # What the parent cost, ancestors included: at η = 1 the family up to here costs what this rung costs cold,
    # however long its parent trained.
    child, full, before = flops_to_match(record["curve"], cold["bits_per_byte"]), cold["flops"], lineage_flops(parent)
    if child is not None:
        result["flops_to_match"] = child
        result["saving"] = saving(child_flops=child, cold_flops=full)
        result["eta"] = transfer_efficiency(child_flops=child, cold_flops=full, parent_flops=before)
    return result
