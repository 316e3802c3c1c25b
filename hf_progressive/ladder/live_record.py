"""Keeping `progress.json` up to date while a ladder trains, for whoever watches."""

import contextlib
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback

from hf_progressive import storage
from hf_progressive.data import Corpus
from hf_progressive.ladder.ladder_progress import LadderProgress
from hf_progressive.planning.ladder_plan import LadderPlan
from hf_progressive.records.measurements import CurvePoint
from hf_progressive.records.run_progress import (
    PROGRESS_NAME,
    LoggedLoss,
    PlannedTraining,
    ProgressRecord,
    TrainingProgress,
    process_start,
    this_host,
)
from hf_progressive.training.history import training_log
from hf_progressive.training.training_run import TrainingRun

logger = logging.getLogger(__name__)

SECONDS_BETWEEN = 5.0
"""The least time between two records of a training run's logs."""

_TIMES_ITS_COST = 200  # and this many times what writing one takes, so that all take 0.5 %
_SILENCE_OF_A_STEP = 3600.0  # of the work, which says nothing until it has ended
_SILENCE, _LOGS_OF_SILENCE = 300.0, 5.0  # of training: so long at least, or as many times the longest between two logs


class LiveRecord:
    """Writes what a ladder is doing, at the beginning of every step of its work and at the logs of its training.

    After every record, `on_progress` is called with the run folder.
    """

    def __init__(
        self,
        folder: Path,
        plan: LadderPlan,
        progress: LadderProgress,
        *,
        processes: int = 1,
        on_progress: Callable[[Path], object] | None = None,
    ) -> None:
        self._folder, self._plan, self._progress = folder, plan, progress
        self._processes, self._on_progress = processes, on_progress
        self._activity, self._silence = "", _SILENCE_OF_A_STEP
        self._training: TrainingProgress | None = None
        self._share_before = 0.0  # of the training run under way, that an earlier process made
        self._next, self._cost, self._failed = 0.0, math.inf, False

    def begin(self, activity: str) -> None:
        """Tell that a step of the work begins; only on the training run that it belongs to is something known."""
        if activity == "initialize":
            self._training, self._share_before = None, 0.0
        self._activity, self._silence = activity, _SILENCE_OF_A_STEP
        self._write()

    def stop(self) -> None:
        """Tell that the run stops, unfinished."""
        self._write(stopped=True)

    def callback(self, run: TrainingRun, corpus: Corpus) -> TrainerCallback:
        """Return what follows a training run."""
        return _Following(self, run, corpus)

    def set_out(self, share: float) -> None:
        """Take note that a training run begins, or goes on behind a share of its steps."""
        self._share_before, self._next = share, 0.0

    def follow(self, run: TrainingRun, corpus: Corpus, state: Any, longest_gap: float | None = None) -> None:
        """Tell where a training run is, if it is time to; of the time between two logs once there were two."""
        if longest_gap is not None:
            self._silence = max(_SILENCE, _LOGS_OF_SILENCE * longest_gap)
        if time.monotonic() < self._next:
            return
        log, speeds = training_log(state.log_history)
        speed: dict[str, Any] = next((entry for entry in reversed(speeds) if "tokens_per_second" in entry), {})
        self._training = TrainingProgress(
            step=state.global_step,
            steps=run.steps,
            tokens=state.global_step * run.training.batch_tokens,
            curve=tuple(map(CurvePoint.from_dict, run.curve(state.log_history, corpus))),
            losses=tuple(LoggedLoss(step=entry["step"], loss=entry["loss"]) for entry in log),
            tokens_per_second=speed.get("tokens_per_second"),
            mfu=speed.get("mfu"),
        )
        self._write()

    def _write(self, *, stopped: bool = False) -> None:
        began = time.monotonic()
        left = {(rung.name, is_baseline) for rung, is_baseline in self._progress.left}
        trained = [rung for rung in self._plan.rungs if rung.origin is None]
        baselines = [rung for rung in self._plan.rungs if rung.trains_baseline]
        share = self._training.step / self._training.steps if self._training else 0.0
        record = ProgressRecord(
            time=time.time(),
            silence=self._silence,
            host=this_host(),
            pid=os.getpid(),
            started=process_start(os.getpid()),
            processes=self._processes,
            trainings=tuple(
                PlannedTraining(
                    name=rung.name,
                    parent=None if is_baseline else rung.parent,
                    is_baseline=is_baseline,
                    flops=float(rung.size.flops if is_baseline else rung.flops),
                    done=(rung.name, is_baseline) not in left,
                )
                for rungs, is_baseline in ((trained, False), (baselines, True))
                for rung in rungs
            ),
            activity=self._activity,
            training=self._training,
            seconds_left=self._progress.seconds_left(share, share_before=self._share_before),
            stopped=stopped,
        )
        try:
            storage.write_json(self._folder / PROGRESS_NAME, record.to_dict())
            if self._on_progress is not None:
                self._on_progress(self._folder)
        except OSError as error:  # of a full disk the next checkpoint tells; nobody's training ends for this
            if not self._failed:
                logger.warning("how far the ladder is cannot be written, and it trains on: %s", error)
            self._failed = True
        now = time.monotonic()
        self._cost = min(self._cost, now - began)  # the first one loads and compiles what the others find
        self._next = now + max(SECONDS_BETWEEN, _TIMES_ITS_COST * self._cost)


class _Following(TrainerCallback):
    # Passes on what the trainer logs, which are numbers already: no step waits for it.
    def __init__(self, live: LiveRecord, run: TrainingRun, corpus: Corpus) -> None:
        self._live, self._run, self._corpus = live, run, corpus
        self._last, self._longest, self._losses = 0.0, 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._live.set_out(state.global_step / self._run.steps)
        self._last = time.monotonic()
        if state.log_history:  # it goes on
            self._live.follow(self._run, self._corpus, state)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        now = time.monotonic()
        self._longest, self._last = max(self._longest, now - self._last), now
        self._losses += "loss" in (logs or {})
        self._live.follow(self._run, self._corpus, state, self._longest if self._losses > 1 else None)


@contextlib.contextmanager
def kept_up_to_date(
    folder: Path,
    plan: LadderPlan,
    progress: LadderProgress,
    state: PartialState,
    on_progress: Callable[[Path], object] | None,
) -> Iterator[LiveRecord | None]:
    """Let `progress.json` be written while a ladder trains, by the first process; a finished one has none."""
    if not state.is_main_process:
        yield None
        return
    live = LiveRecord(folder, plan, progress, processes=state.num_processes, on_progress=on_progress)
    try:
        yield live
    except BaseException:
        live.stop()
        raise
    (folder / PROGRESS_NAME).unlink(missing_ok=True)
