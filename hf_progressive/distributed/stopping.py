"""A signal to stop, noticed, and agreed on by the processes without a wait in every step."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

STEPS_BETWEEN = 4
"""Optimizer steps from one vote to the next, where steps are short."""


class Sigterm:
    """Whether SIGTERM came while training."""

    def __init__(self) -> None:
        self.came = False

    @contextmanager
    def noticed(self) -> Iterator[None]:
        """Notice the signal instead of ending the process."""
        # Only a process's first thread may handle signals; in another, SIGTERM keeps its meaning.
        self.came = False
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._notice)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _notice(self, number: int, frame: Any) -> None:
        self.came = True


class StopVote:
    """Whether any process was told to stop.

    One process decides at once. Several vote every few optimizer steps, at the same ones everywhere, and read the
    result a step later, when the device has long computed it: so all stop after the same step, and none waits.
    """

    def __init__(self, accelerator: Accelerator, *, every: int = STEPS_BETWEEN) -> None:
        self._accelerator = accelerator
        self._every = every
        self._result: Tensor | None = None  # of the last vote, on the host
        self._copied: torch.Event | None = None

    def stops(self, step: int, told: bool) -> bool:
        """Say whether to stop after this step: the same on every process.

        Every process calls it once in every step, with the step's number and whether it was told to stop.
        """
        if self._accelerator.num_processes == 1:
            return told
        stops = self._read()
        if step % self._every == 0:
            self._vote(told)
        return stops

    def at_the_end(self, told: bool) -> bool:
        """Say whether any process was told, waiting for all of them."""
        if self._accelerator.num_processes == 1:
            return told
        self._vote(told)
        return self._read()

    def _vote(self, told: bool) -> None:
        wish = torch.full((), float(told), device=self._accelerator.device)  # filled there: nothing to copy
        total = self._accelerator.reduce(wish, reduction="sum")
        self._copied = None
        if total.device.type == "cuda":
            self._result = torch.empty((), pin_memory=True)
            self._result.copy_(total, non_blocking=True)
            self._copied = torch.Event(device=total.device)
            self._copied.record()
        else:
            self._result = total

    def _read(self) -> bool:
        if self._result is None:
            return False
        if self._copied is not None:
            self._copied.synchronize()
        result, self._result = self._result, None
        return bool(result.item() > 0)
