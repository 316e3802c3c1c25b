"""A ladder of three very small rungs on a corpus of made-up arithmetic, for tests of the rung loop."""

import random
from pathlib import Path
from typing import Any

import yaml

from hf_progressive.ladder.rung_loop import RungResult

RUNGS = [
    {"name": "l1w16", "n_layer": 1, "n_embd": 16, "n_head": 2},
    {"name": "l2w16", "n_layer": 2, "n_embd": 16, "n_head": 2},
    {"name": "l2w24", "n_layer": 2, "n_embd": 24, "n_head": 3},
]
NAMES = [rung["name"] for rung in RUNGS]

Finished = tuple[Path, Path, list[RungResult]]
"""A configuration, the folder of its finished run, and what the run returned."""


def write_corpus(folder: Path, documents: int = 120) -> Path:
    """Write documents of sums, one JSON object a line."""
    path = folder / "sums.jsonl"
    draw = random.Random(0)
    lines = []
    for _ in range(documents):
        numbers = [(draw.randrange(20), draw.randrange(20)) for _ in range(20)]
        text = " ".join(f"{a} and {b} make {a + b}." for a, b in numbers)
        lines.append(f'{{"text": "{text}"}}')
    path.write_text("\n".join(lines))
    return path


def ladder_mapping(corpus: Path, **changes: Any) -> dict[str, Any]:
    """Return the configuration as plain values."""
    mapping: dict[str, Any] = {
        "name": "sums",
        "model": {"context": 32},
        "rungs": RUNGS,
        "cold": ["l2w24"],
        "data": {
            "source": "json",
            "files": [str(corpus)],
            "validation_fraction": 0.1,
            "max_validation_tokens": 1024,
            "tokenizer": {"vocab_size": 300, "training_bytes": 50_000},
        },
        "phi": {"ewc_lambda": 0.1, "gamma": 1e-3, "fisher": {"sequences": 8}},
        "training": {
            "tokens_per_parameter": 0.2,
            "batch_tokens": 128,
            "micro_batch_size": 2,
            "learning_rate": 3e-3,
            "evaluations": 4,
            "checkpoints": 3,
        },
    }
    return {**mapping, **changes}


def write_ladder(folder: Path, **changes: Any) -> Path:
    """Write corpus and configuration; return the configuration's path."""
    path = folder / "ladder.yaml"
    path.write_text(yaml.safe_dump(ladder_mapping(write_corpus(folder), **changes)))
    return path
