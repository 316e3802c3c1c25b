"""Tasks that pretend: they write what a real one would leave, take no time, and give curves of known form."""

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_progressive import storage
from hf_progressive.config import StudyConfig
from hf_progressive.study.run import run_study
from hf_progressive.study.tasks import Run, Start
from hf_progressive.study.work import Worker

SLOPE, LEVEL = 0.2, 2.0
ESTIMATE_FLOPS = 1000.0

HEAD_START = 0.55
"""Share of the cold budget at which every child is where its baseline ends, without estimates."""


def bits_per_byte(run: Run) -> float:
    """Return LEVEL − SLOPE · ln(share), so that children match their baselines at HEAD_START of the cold FLOPs."""
    lead = 1.0 if run.start.parent is None else HEAD_START
    return LEVEL - SLOPE * math.log(run.steps / (lead * run.group.cold_steps))


def pretend(patch: pytest.MonkeyPatch, log: Path, before: Callable[[str], object] = lambda name: None) -> None:
    """Replace the work of tasks; each is logged when it is done, with the process that did it."""

    def finish(name: str) -> None:
        with open(log, "a") as file:
            file.write(f"{name} {os.getpid()}\n")

    def write(folder: Path) -> None:
        with storage.atomic_folder(folder, overwrite=True) as temporary:
            (temporary / "model.safetensors").write_bytes(b"weights")

    def make_start(self: Worker, start: Start) -> dict[str, Any]:
        before(start.name)
        if start.parent is not None:
            assert storage.is_complete(self.folder.parent_weights(start))
        write(self.folder.weights(start) / "init")
        estimates: dict[str, Any] = {}
        if start.estimates_inheritance:
            write(self.folder.weights(start) / "parent")
            estimates = {"fisher": {"flops": ESTIMATE_FLOPS}}
        finish(start.name)
        return {"kind": "start", "name": start.name, "estimates": estimates, "seconds": 0.0}

    def train_run(self: Worker, run: Run, title: str) -> dict[str, Any]:
        before(run.name)
        folder, start = self.folder.weights(run), run.start
        assert storage.is_complete(self.folder.weights(start) / "init")
        branch = self.folder.branch_checkpoint(run, exactly=True)
        branched_at = 0 if branch is None else run.branch_step
        if run.is_trunk:
            for other in run.group.runs:
                if other is not run:
                    write(folder / "checkpoints" / f"checkpoint-{other.branch_step}")
        if self.folder.heirs(run):
            write(folder / "final")
        per_token = run.start.rung.size.flops_per_token
        estimates = ESTIMATE_FLOPS if start.estimates_inheritance else 0.0
        finish(run.name)
        return {
            "kind": "run",
            "name": run.name,
            "branched_at": branched_at,
            "learning_rate": run.group.learning_rate,
            "bits_per_byte": bits_per_byte(run),
            "loss": 1.0,
            "tokens": run.tokens,
            "flops": {
                "train": float(run.tokens * per_token),
                "estimates": estimates,
                "spent": (run.steps - branched_at) * run.group.training.batch_tokens * per_token,
            },
            "data": self.corpus_of(start.seed).span(run.group.first_block, run.tokens // self.corpus.context),
            "curve": [],
            "seconds": 0.0,
        }

    patch.setattr(Worker, "make_start", make_start)
    patch.setattr(Worker, "train_run", train_run)


def pretended_process(config: StudyConfig, root: Path, log: Path, pause: float, stop_at: int | None) -> None:
    """Run a study of pretended tasks in a process of its own; at task number `stop_at` wait to be killed."""
    count = 0

    def before(name: str) -> None:
        nonlocal count
        count += 1
        if count == stop_at:
            (root / "waiting").touch()
            time.sleep(600)
        time.sleep(pause)

    patch = pytest.MonkeyPatch()
    pretend(patch, log, before)
    run_study(config, root)
