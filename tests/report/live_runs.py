"""Run folders of a ladder that trains: made-up records, as they stand at a moment."""

import json
import time
from pathlib import Path
from typing import Any

from run_records import three_records, write_run

from hf_progressive.records.run_progress import PROGRESS_NAME

STEPS = 160


def trainings(made: list[dict[str, Any]], finished: int) -> list[dict[str, Any]]:
    """The ladder's training runs: its three rungs, and the baseline of the last."""
    rows = [(r["name"], r["parent"], False, r["flops"]["train"]) for r in made]
    rows.append((made[2]["name"], None, True, made[2]["cold"]["flops"]))
    return [
        {"name": name, "parent": parent, "is_baseline": baseline, "flops": flops, "done": place < finished}
        for place, (name, parent, baseline, flops) in enumerate(rows)
    ]


def write_live(folder: Path, *, finished: int = 1, step: int = 80, age: float = 3.0, **changes: Any) -> Path:
    """Write a run folder in which so many rungs are finished and the next has made so many of its 160 steps."""
    made = three_records()
    current = made[min(finished, 2)]
    for record in (*made[1:2], *made[2:] * (finished < 4)):
        record |= dict.fromkeys(("cold", "flops_to_match", "gap_bits_per_byte", "saving", "eta"))
    if not (folder / "ladder.json").exists():
        write_run(folder, made[:finished], [r["name"] for r in made], config=json_config())
    made = three_records()
    source = made[2]["cold"] if finished == 3 else current
    curve = [{k: v for k, v in p.items() if k != "learning_rate"} for p in source["curve"] if p["step"] <= step]
    training = {
        "step": step,
        "steps": STEPS,
        "tokens": 4096 * step,
        "curve": curve,
        "losses": [{"step": s, "loss": 5.6 / (1 + s / 30) ** 0.3} for s in range(4, step + 1, 4)],
        "tokens_per_second": 12_345.0,
        "mfu": 0.38,
    }
    record = {
        "format": 1,
        "time": time.time() - age,
        "silence": 300.0,
        "host": "elsewhere",
        "pid": 1,
        "started": None,
        "processes": 1,
        "trainings": trainings(made, finished),
        "activity": "train",
        "training": training,
        "seconds_left": 754.0,
        "stopped": False,
    }
    aside = folder / ".progress.tmp"
    aside.write_text(json.dumps(record | changes))
    aside.replace(folder / PROGRESS_NAME)
    return folder


def json_config() -> dict[str, Any]:
    """The configuration of the made-up ladder."""
    return {
        "name": "ladder_small",
        "seed": 0,
        "cold": ["l6w112"],
        "data": {"source": "stdlib"},
        "growth": {"method": "exact"},
        "training": {"learning_rate": 2e-3, "inherited_learning_rate": None, "tokens_per_parameter": 6},
    }
