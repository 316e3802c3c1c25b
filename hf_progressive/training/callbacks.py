"""Callbacks of a training run: when it evaluates, saves and logs; a progress bar; what it starts from and leaves."""

import logging
import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback

from hf_progressive.growth.optimizer import read_optimizer_state
from hf_progressive.training.moments import load_moments

logger = logging.getLogger(__name__)

LOGS_PER_RUN = 50
"""Logs of the training loss, evenly spaced."""


class Milestones(TrainerCallback):
    """Evaluate, save and log at chosen steps, the last one included; in place of Trainer's `DefaultFlowCallback`."""

    def __init__(self, *, steps: int, evaluations: int, checkpoints: Collection[int]) -> None:
        self.evaluations, self.checkpoints = evenly_spaced(steps, evaluations), checkpoints
        self.logs = evenly_spaced(steps, LOGS_PER_RUN)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        control.should_evaluate = state.global_step in self.evaluations
        # A request to save that came from elsewhere, such as a signal to stop, stands.
        control.should_save = control.should_save or state.global_step in self.checkpoints
        control.should_log = state.global_step in self.logs
        control.should_training_stop = control.should_training_stop or state.global_step >= state.max_steps
        return control


class SavedTokenizer(TrainerCallback):
    """Save a tokenizer with the model that is not the one whose special tokens the trainer gives the model."""

    def __init__(self, trainer: Any, tokenizer: Any) -> None:
        self._trainer, self._tokenizer = trainer, tokenizer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer.processing_class = self._tokenizer


def evenly_spaced(steps: int, count: int) -> set[int]:
    """Choose so many steps, counted from 1 and evenly spaced up to and including the last; all where there are fewer.

    >>> sorted(evenly_spaced(10, 4))
    [3, 5, 8, 10]
    """
    count = min(count, steps)
    return {math.ceil(steps * i / count) for i in range(1, count + 1)}


class ProgressBar(TrainerCallback):
    """One bar per run: step, time left, training loss, tokens per second, MFU, validation bits per byte.

    Where bars are switched off, as they are in a log file, a line at each validation says the same.
    `bits_per_nat_token` is bits per byte over the validation loss in nats per token.
    """

    def __init__(self, title: str, bits_per_nat_token: float) -> None:
        self.title, self.bits_per_nat_token = title, bits_per_nat_token
        self.bar: Any = None
        self.shown: dict[str, str] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            off = {"disable": True} if args.disable_tqdm else {}  # otherwise as TQDM_DISABLE says
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.title, unit="step", **off)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if self.bar is None or not logs:
            return
        if "loss" in logs:
            self.shown["loss"] = f"{float(logs['loss']):.3f}"
        if "tokens_per_second" in logs:
            self.shown["tokens/s"] = tqdm.format_sizeof(logs["tokens_per_second"])
        if "mfu" in logs:
            self.shown["MFU"] = f"{logs['mfu']:.1%}"
        if "eval_loss" in logs:
            self.shown["bits/byte"] = f"{logs['eval_loss'] * self.bits_per_nat_token:.4f}"
        if not self.bar.disable:
            self.bar.set_postfix(self.shown)
        elif "eval_loss" in logs:
            figures = ", ".join(f"{name} {value}" for name, value in self.shown.items())
            logger.info("%s: step %d of %d, %s", self.title, state.global_step, state.max_steps, figures)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


class KeepWeights(TrainerCallback):
    """Keep the weights as they are after optimizer step `step`: to grow from, or to average."""

    def __init__(self, save: Callable[[Path], None], folder: Path, step: int) -> None:
        self._save, self._folder, self._step = save, folder, step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self._step:
            self._save(self._folder)


class CarriedMoments(TrainerCallback):
    """Put an optimizer's state into a run before its first step.

    Args:
        path: `optimizer.pt`, such as growth leaves beside an initial model.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Load the moments; learning rate and weight decay stay this run's own."""
        if state.global_step == 0:  # a resumed run has them in its checkpoint
            load_moments(kwargs["model"], kwargs["optimizer"], read_optimizer_state(self._path))
