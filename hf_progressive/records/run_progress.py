"""`progress.json`: what a ladder is doing while it trains. A finished run has none."""

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hf_progressive.records.measurements import CurvePoint
from hf_progressive.records.typed import FORMAT, Amount, Count, Record

PROGRESS_NAME = "progress.json"
"""The file's name in the run folder."""


@dataclass(frozen=True, kw_only=True)
class PlannedTraining(Record):
    """One of the training runs that a ladder is made of."""

    name: str
    """The rung's name."""

    parent: str | None = None
    """The rung that it grows from; None for one from scratch, as a baseline is."""

    is_baseline: bool = False
    """Whether it is the rung's baseline."""

    flops: Amount
    """Training FLOPs."""

    done: bool
    """Whether it has been recorded."""


@dataclass(frozen=True, kw_only=True)
class LoggedLoss(Record):
    """A log of the training loss."""

    step: Count
    """Optimizer steps before it."""

    loss: float | None
    """Nats per token; None where it was not finite."""


@dataclass(frozen=True, kw_only=True)
class TrainingProgress(Record):
    """How far one training run has come."""

    step: Count
    """Optimizer steps made."""

    steps: Count
    """Steps that it will have made."""

    tokens: Count
    """Tokens trained on."""

    curve: tuple[CurvePoint, ...] = ()
    """Validations so far."""

    losses: tuple[LoggedLoss, ...] = ()
    """Training losses so far."""

    tokens_per_second: Amount | None = None
    """Speed since the log before, over all processes."""

    mfu: Amount | None = None
    """Model FLOPs utilisation; None where the devices' peak is not known."""


@dataclass(frozen=True, kw_only=True)
class ProgressRecord(Record):
    """What a ladder was doing when the record was written."""

    format: Literal[1] = FORMAT
    """The layout's version."""

    time: Amount
    """When it was written, in seconds since 1970."""

    silence: Amount
    """Seconds within which the next record is due."""

    host: str
    """Where the first process runs."""

    pid: Count
    """The first process."""

    started: str | None = None
    """When that began, as the system counts; None where it does not tell."""

    processes: Count = 1
    """Processes that train together."""

    trainings: tuple[PlannedTraining, ...]
    """All training runs of the ladder, in order."""

    activity: str
    """The step of the work: `train`, `estimate for the next rung`."""

    training: TrainingProgress | None = None
    """The training run under way; None before its first step."""

    seconds_left: Amount | None = None
    """For all that is left, by the pace so far; None before there is one."""

    stopped: bool = False
    """Whether the run said that it stops, unfinished."""

    @property
    def current(self) -> int | None:
        """Place of the training run under way; None when all are done."""
        return next((place for place, training in enumerate(self.trainings) if not training.done), None)

    @property
    def share(self) -> float:
        """Share of all training FLOPs that has been spent."""
        whole = sum(training.flops for training in self.trainings)
        spent = sum(training.flops for training in self.trainings if training.done)
        if self.current is not None:
            spent += self.current_share * self.trainings[self.current].flops
        return spent / whole if whole else 0.0

    @property
    def current_share(self) -> float:
        """Share of its steps that the training run under way has made."""
        return self.training.step / self.training.steps if self.training and self.training.steps else 0.0

    def process_exists(self) -> bool | None:
        """Tell whether the process that wrote it is there; None where that cannot be told from here."""
        if self.started is None or self.host != this_host():
            return None
        return process_start(self.pid) == self.started

    def state(self, now: float) -> Literal["running", "silent", "stopped"]:
        """Tell what is known of the run: silent is one that may have been killed on another machine."""
        exists = None if self.stopped else self.process_exists()
        if self.stopped or exists is False:
            return "stopped"
        return "running" if exists or now - self.time <= self.silence else "silent"


def this_host() -> str:
    """Return a name for where a process's number means this process: the machine, and on Linux the namespace."""
    try:
        return f"{socket.gethostname()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()


def process_start(pid: int) -> str | None:
    """Return when a living process began, in clock ticks since the start of the machine; None where that is not told.

    Field 22 of proc_pid_stat(5); the third is the state, of which Z is a process that has ended.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def read_progress(folder: str | os.PathLike[str]) -> ProgressRecord | None:
    """Read what a run folder's ladder is doing; None where none trains or was stopped."""
    try:
        return ProgressRecord.read(Path(folder) / PROGRESS_NAME)
    except FileNotFoundError:
        return None
