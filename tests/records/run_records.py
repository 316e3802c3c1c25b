"""Synthetic run folders with curves of a realistic shape: no training, numbers that can be worked out by hand."""

import json
from types import SimpleNamespace

import pytest

from hf_progressive.records.matching import flops_to_match, saving, transfer_efficiency
from hf_progressive.records.measurements import CurvePoint

SIZES = [("l5w96", 5, 96, 664_320), ("l6w96", 6, 96, 776_064), ("l6w112", 6, 112, 1_022_784)]
TOKENS_PER_PARAMETER = 6
EVALUATIONS = 16


def cold_curve(final, flops, tokens):
    """Evaluations of a run from scratch: a power law at constant rate, then the decay's extra fall."""

    def bits(share):
        return 1.1 * (1 + 0.9 * (1 + 25 * share) ** -1.1) * (1 - 0.112 * max(0.0, 2 * share - 1))

    return evaluations(lambda share: final * bits(share) / bits(1.0), 0.0, flops, tokens)


def grown_curve(start, final, before, flops, tokens):
    """Evaluations of a grown run: up while the rate warms up again, a plateau, then the decay's fall."""

    def bits(share):
        rise = 0.05 * start * (min(share, 0.05) / 0.05 - 0.8 * max(0.0, share - 0.05))
        decay = max(0.0, 2 * share - 1)
        return (start + rise) * (1 - decay) + final * decay

    return evaluations(bits, before, flops, tokens)


def evaluations(bits, before, flops, tokens):
    return [
        {
            "step": 10 * i,
            "tokens": round(tokens * i / EVALUATIONS),
            "flops": before + flops * i / EVALUATIONS,
            "loss": 1.8 * bits(i / EVALUATIONS),
            "bits_per_byte": bits(i / EVALUATIONS),
            "learning_rate": 2e-3,
        }
        for i in range(EVALUATIONS + 1)
    ]


def first_record(name, layers, width, parameters, final=2.02):
    tokens, per_token = TOKENS_PER_PARAMETER * parameters, 6 * parameters + 12 * layers * width * 256
    curve = cold_curve(final, tokens * per_token, tokens)
    return {
        "format": 1,
        "index": 0,
        "name": name,
        "parent": None,
        "family": "gpt2",
        "config": {"n_layer": layers, "n_embd": width, "n_head": width // 16},
        "parameters": {"total": parameters, "non_embedding": parameters - 100_000, "scaling": parameters},
        "tokens": tokens,
        "cold_tokens": tokens,
        "tokens_per_parameter": float(TOKENS_PER_PARAMETER),
        "data": {
            "first_block": 0,
            "blocks": tokens // 256,
            "block_tokens": 256,
            "corpus_blocks": 60_000,
            "first_epoch": 0,
            "last_epoch": 0,
            "repeats_from_token": None,
            "fingerprint": "3f1c",
            "source": "stdlib",
        },
        "flops": {"per_token": per_token, "train": tokens * per_token, "fisher": 0, "subspace": 0, "inherited": 0},
        "bits_per_byte": curve[-1]["bits_per_byte"],
        "loss": curve[-1]["loss"],
        "curve": curve,
        "training_log": [{"step": 10, "loss": 4.0, "grad_norm": 1.0, "learning_rate": 2e-3}],
        "cold": None,
        "flops_to_match": None,
        "gap_bits_per_byte": None,
        "saving": None,
        "eta": None,
        "c_parent_over_c_cold": None,
        "max_abs_logit_diff": None,
        "max_abs_logit": None,
        "growth": None,
        "phi": None,
        "seconds": {"grow": 0.3, "fisher": 0, "subspace": 0, "train": 71.2, "evaluate": 4.1, "cold": 0},
        "environment": {"torch": "2.13.0"},
    }


def grown_record(parent, name, layers, width, parameters, *, floor, cold=True, fraction=0.65, phi=True):
    record = first_record(name, layers, width, parameters)
    cold_tokens, per_token = record["cold_tokens"], record["flops"]["per_token"]
    cold_flops = cold_tokens * per_token
    fisher, subspace = (0.006 * cold_flops, 0.001 * cold_flops) if phi else (0, 0)
    tokens = round(fraction * cold_tokens)
    curve = grown_curve(parent["bits_per_byte"], floor, fisher + subspace, tokens * per_token, tokens)
    record |= {
        "index": parent["index"] + 1,
        "parent": parent["name"],
        "tokens": tokens,
        "tokens_per_parameter": TOKENS_PER_PARAMETER * fraction,
        "flops": {
            "per_token": per_token,
            "train": tokens * per_token,
            "fisher": fisher,
            "subspace": subspace,
            "inherited": sum(parent["flops"].values()) - parent["flops"]["per_token"],
        },
        "bits_per_byte": curve[-1]["bits_per_byte"],
        "loss": curve[-1]["loss"],
        "curve": curve,
        "max_abs_logit_diff": 2.1e-6,
        "max_abs_logit": 9.4,
        "growth": {"method": "exact"},
        "phi": phi_settings() if phi else None,
        "training_log": [log_entry(step, phi) for step in range(4, 161, 4)],
        "seconds": {"grow": 1.1, "fisher": 3.2, "subspace": 0.4, "train": 66.0, "evaluate": 4.0, "cold": 0},
    }
    if cold:
        baseline = cold_curve(parent["bits_per_byte"] - 0.03, cold_flops, cold_tokens)
        match = flops_to_match([CurvePoint.from_dict(point) for point in curve], baseline[-1]["bits_per_byte"])
        parent_cold = parent["cold_tokens"] * parent["flops"]["per_token"]
        record |= {
            "cold": {
                "bits_per_byte": baseline[-1]["bits_per_byte"],
                "loss": baseline[-1]["loss"],
                "flops": cold_flops,
                "tokens": cold_tokens,
                "curve": baseline,
                "seconds": 101.5,
            },
            "flops_to_match": match,
            "gap_bits_per_byte": curve[-1]["bits_per_byte"] - baseline[-1]["bits_per_byte"],
            "saving": None if match is None else saving(child_flops=match, cold_flops=cold_flops),
            "eta": None
            if match is None
            else transfer_efficiency(
                child_flops=match, cold_flops=cold_flops, lineage_flops=record["flops"]["inherited"]
            ),
            "c_parent_over_c_cold": parent_cold / cold_flops,
        }
    return record


def phi_settings():
    return {
        "ewc_lambda": 0.1,
        "gamma": 1e-3,
        "schedule": "linear",
        "until": 0.5,
        "fisher": {"kind": "empirical", "sequences": 128, "flops": 1.0},
        "subspace": {"source": "weights", "energy": 0.95, "flops": 1.0},
    }


def log_entry(step, phi):
    entry = {"step": step, "loss": 3.9 - step / 300, "grad_norm": 0.8, "learning_rate": 2e-3}
    if not phi:
        return entry
    left = max(0.0, 1 - step / 80)
    return entry | {
        "phi/ewc": 4e-3 * left * step / (step + 20),
        "phi/subspace": 7e-4 * left * step / (step + 9),
        "phi/grad_ratio": 0.1 * left,
        "phi/lambda": 0.1 * left,
        "phi/gamma": 1e-3 * left,
    }


def ladder_record(names, finished, **changes):
    return {
        "format": 1,
        "name": "ladder_small",
        "family": "gpt2",
        "created": "2026-11-22T15:00:00+00:00",
        "complete": names == finished,
        "seed": 0,
        "rungs": names,
        "finished": finished,
        "config": {
            "name": "ladder_small",
            "seed": 0,
            "cold": "all",
            "data": {"source": "stdlib"},
            "growth": {"method": "exact"},
            "training": {"learning_rate": 2e-3, "inherited_learning_rate": None, "tokens_per_parameter": 6},
        },
        "environment": {"python": "3.11.9", "torch": "2.13.0", "cpus": 2, "processes": 1},
    } | changes


def three_records(*, floors=(1.93, 1.82), **grown):
    """Three rungs, all matched unless a floor lies above 0.03 below the parent's bits per byte."""
    first = first_record(*SIZES[0])
    second = grown_record(first, *SIZES[1], floor=floors[0], **grown)
    return [first, second, grown_record(second, *SIZES[2], floor=floors[1], **grown)]


def write_run(folder, records, names=None, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    finished = [record["name"] for record in records]
    names = names or [name for name, *_ in SIZES]
    (folder / "ladder.json").write_text(json.dumps(ladder_record(names, finished, **changes)))
    for record in records:
        final = folder / record["name"] / "final"
        final.mkdir(parents=True)
        (final / "rung.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def records():
    """Make the three rungs' records; keyword arguments vary them."""
    return three_records


@pytest.fixture
def run(tmp_path):
    """Write records as a run folder."""
    return lambda records, names=None, **changes: write_run(tmp_path / "run", records, names, **changes)


@pytest.fixture(scope="session")
def write():
    """Make and write records where a fixture of wider scope needs them."""
    return SimpleNamespace(three_records=three_records, run=write_run)
