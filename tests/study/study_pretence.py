"""Tasks that pretend: they write what a real one would leave, take no time, and give curves of known form."""

import math
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_progressive import storage
from hf_progressive.config import StudyConfig
from hf_progressive.study.models import FinishedModel, InitialModel
from hf_progressive.study.run import run_study
from hf_progressive.study.tasks import Task
from hf_progressive.study.work import Worker

SLOPE, LEVEL = 0.2, 2.0
FORK = multiprocessing.get_context("fork")
ESTIMATE_FLOPS = 1000.0

HEAD_START = 0.55
"""Share of the cold budget at which every child is where its baseline ends, without estimates."""


TRUNK_WORTH = 0.9
"""Share of a trunk's steps that trains a baseline as far."""


def bits_per_byte(model: FinishedModel) -> float:
    """Return LEVEL − SLOPE · ln(share), so that children match their baselines at HEAD_START of the cold FLOPs."""
    lead = 1.0 if model.initial.parent is None else HEAD_START
    if model.setup.trunk is not None:
        lead = 1 / TRUNK_WORTH
    return LEVEL - SLOPE * math.log(model.steps_on_trunk / (lead * model.setup.cold_steps))


def pretend(patch: pytest.MonkeyPatch, log: Path, before: Callable[[str], object] = lambda name: None) -> None:
    """Replace the work of tasks; each is logged when it is done, with the process that did it."""

    def finish(name: str) -> None:
        with open(log, "a") as file:
            file.write(f"{name} {os.getpid()}\n")

    def write(folder: Path) -> None:
        with storage.atomic_folder(folder, overwrite=True) as temporary:
            (temporary / "model.safetensors").write_bytes(b"weights")

    def make_initial_model(self: Worker, initial: InitialModel) -> dict[str, Any]:
        before(initial.name)
        if initial.parent is not None:
            assert self.folder.is_there(initial.source)
        write(self.folder.path(initial.init))
        estimates: dict[str, Any] = {}
        if initial.estimates_inheritance:
            write(self.folder.path(initial.estimated_parent))
            estimates = {"fisher": {"flops": ESTIMATE_FLOPS}}
        finish(initial.name)
        return {"name": initial.name, "estimates": estimates, "seconds": 0.0}

    def train_model(self: Worker, task: Task, model: FinishedModel, title: str) -> dict[str, Any]:
        before(model.name)
        setup, initial = model.setup, model.initial
        assert all(self.folder.is_there(path) for path in task.needs)
        assert initial.init in task.needs
        branched_at = model.shared_steps if any(self.folder.is_there(path) for path in task.uses) else 0
        for path in task.makes:
            write(self.folder.path(path))
        per_token = initial.rung.size.flops_per_token
        finish(model.name)
        return {
            "name": model.name,
            "branched_at": branched_at,
            "learning_rate": setup.learning_rate,
            "bits_per_byte": bits_per_byte(model),
            "loss": 1.0,
            "tokens": model.tokens,
            "flops": {
                "train": float(model.tokens * per_token),
                "estimates": ESTIMATE_FLOPS if initial.estimates_inheritance else 0.0,
                "spent": (model.steps - branched_at) * setup.training.batch_tokens * per_token,
            },
            "data": self.corpus_in(setup.order).span(setup.first_block, model.tokens // self.corpus.context),
            "curve": [],
            "seconds": 0.0,
        }

    patch.setattr(Worker, "make_initial_model", make_initial_model)
    patch.setattr(Worker, "train_model", train_model)


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


def run_in_two_processes(config: StudyConfig, root: Path, log: Path) -> None:
    """Let two processes share a study, each task of which takes a moment."""
    workers = [FORK.Process(target=pretended_process, args=(config, root, log, 0.02, None)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
