"""How fast a training run is: tokens per second and model FLOPs utilisation, its evaluations and saving left out.

Time is read where the run stops anyway, at logs, evaluations and checkpoints, so that no step waits for the device.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from hf_progressive import storage
from hf_progressive.distributed.accelerators import device_name, peak_flops, wait_for

_NAME = "ThroughputMeter"  # among the states of callbacks in a checkpoint's trainer_state.json
_NOTHING = {"seconds": 0.0, "evaluation_seconds": 0.0}


def elapsed_at(checkpoint: Path | None) -> Mapping[str, float]:
    """Return what a run had taken at a checkpoint, as `ThroughputMeter.elapsed` does; nothing where it is not told."""
    if checkpoint is None:
        return _NOTHING
    state = storage.read_json(checkpoint / "trainer_state.json")
    return {**_NOTHING, **state.get("stateful_callbacks", {}).get(_NAME, {})}


class ThroughputMeter(TrainerCallback):
    """Divides a run's time into training, evaluation and saving.

    It must stand after the callbacks that decide when to log, to evaluate and to save. `step_tokens` are those of an
    optimizer step over all processes, each of which trains on a device such as this one. `started` is when the run, or
    what it goes on with, began, and `before` what it had taken until then.
    """

    def __init__(
        self,
        *,
        step_tokens: int,
        flops_per_token: float,
        device: torch.device,
        processes: int = 1,
        started: float | None = None,
        before: Mapping[str, float] = _NOTHING,
    ) -> None:
        self.step_tokens, self.flops_per_token = step_tokens, flops_per_token
        self.device, self.processes = device, processes
        self.started, self.before = time.monotonic() if started is None else started, before
        self.seconds = {"training": 0.0, "evaluation": 0.0, "saving": 0.0}
        """Seconds by what they went into."""
        self._peak = peak_flops(device)
        self._mark = time.monotonic()
        self._saved = 0.0  # seconds of saving since the mark, which belong to no other part
        self._steps = 0
        self._first_step = 0
        self._logged = (0, 0.0)  # step and seconds of training at the last log

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds = dict.fromkeys(self.seconds, 0.0)
        self._mark, self._saved = time.monotonic(), 0.0
        self._first_step, self._steps, self._logged = state.global_step, 0, (state.global_step, 0.0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if control.should_log or control.should_evaluate or control.should_save:
            self._steps = state.global_step - self._first_step
            self._count("training")
        self._keep(state, control)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._count("evaluation")
        self._keep(state, control)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._count("saving")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._steps = state.global_step - self._first_step
        self._count("training")

    def saving(self, seconds: float) -> None:
        """Take note of seconds in which weights were saved at another moment than a checkpoint's."""
        self._saved += seconds

    def at_log(self, step: int) -> dict[str, float]:
        """Return the speed since the last log, in steps until now; nothing where no step was made since.

        It is `tokens_per_second` over all processes and, where the devices' peak is known, `mfu`.
        """
        self._count("training")
        before, seconds_before = self._logged
        self._logged = (step, self.seconds["training"])
        return self._speed(step - before, self.seconds["training"] - seconds_before)

    def elapsed(self) -> dict[str, float]:
        """Return the run's `seconds` and `evaluation_seconds`; of a stopped run, up to its checkpoint and since."""
        evaluation = self.before["evaluation_seconds"] + self.seconds["evaluation"]
        return {"seconds": self.before["seconds"] + time.monotonic() - self.started, "evaluation_seconds": evaluation}

    def summary(self) -> dict[str, Any]:
        """Return `tokens_per_second` and `mfu` (None where not known) of the run, `tokens`, `seconds` and the devices.

        Only what this process has done counts: of a run that was continued, the rest.
        """
        speed = self._speed(self._steps, self.seconds["training"])
        return {
            "tokens_per_second": speed.get("tokens_per_second"),
            "mfu": speed.get("mfu"),
            "tokens": self._steps * self.step_tokens,
            "seconds": dict(self.seconds),
            "device": device_name(self.device),
            "processes": self.processes,
        }

    def _keep(self, state: Any, control: Any) -> None:
        if control.should_save:
            state.stateful_callbacks[_NAME] = self.elapsed()

    def _speed(self, steps: int, seconds: float) -> dict[str, float]:
        if steps <= 0 or seconds <= 0:
            return {}
        rate = steps * self.step_tokens / seconds
        if self._peak is None:
            return {"tokens_per_second": rate}
        return {"tokens_per_second": rate, "mfu": rate * self.flops_per_token / (self._peak * self.processes)}

    def _count(self, part: str) -> None:
        wait_for(self.device)  # what was queued is part of this stretch
        now = time.monotonic()
        saved, self._saved = min(self._saved, now - self._mark), 0.0
        self.seconds["saving"] += saved
        self.seconds[part] += now - self._mark - saved
        self._mark = now
