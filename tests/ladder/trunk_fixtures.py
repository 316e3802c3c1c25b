"""A trunk through three very small rungs."""

from pathlib import Path
from typing import Any

from ladder_fixtures import RUNGS, write_ladder

UNTIL = (0.25, 0.5)
DECAY, REWARM, MEMBER_DECAY = 0.4, 0.08, 0.2


def write_trunk(folder: Path, *, trunk: dict[str, Any] | None = None, **changes: Any) -> Path:
    """Write corpus and configuration; return the configuration's path."""
    rungs = [{**rung, "until": until} for rung, until in zip(RUNGS, UNTIL, strict=False)]
    settings: dict[str, Any] = {
        "schedule": "trunk",
        "trunk": {"rewarm_fraction": REWARM, "member_decay_fraction": MEMBER_DECAY, **(trunk or {})},
        "rungs": [*rungs, RUNGS[-1]],
        "phi": {},
        "training": {
            "tokens_per_parameter": 0.2,
            "batch_tokens": 128,
            "micro_batch_size": 4,
            "learning_rate": 3e-3,
            "decay_fraction": DECAY,
            "warmup_fraction": 0.05,
            "evaluations": 4,
            "checkpoints": 3,
        },
    }
    return write_ladder(folder, **{**settings, **changes})
