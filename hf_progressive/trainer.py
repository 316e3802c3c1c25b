"""A `Trainer` that adds the inheritance penalty Φ, stops on a loss that is not finite, and saves whole or not at all.

Φ's gradient has a closed form, so it does not go through the loss: it is added to the averaged gradient once per
optimizer step, after the last micro-batch's backward and before clipping. Gradient accumulation and the number of
processes therefore cannot change it, and evaluation never sees it.
"""

import dataclasses
import math
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.deepspeed import DeepSpeedEngineWrapper  # `accelerate.utils` has it only beside DeepSpeed
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_progressive.checkpoints import (
    STAGING_NAME,
    check_checkpoint,
    existing_checkpoint,
    keep_penalty,
    link_penalty,
    newest_complete_checkpoint,
    remove_leftovers,
    rotate,
)
from hf_progressive.phi.penalty import InheritancePenalty
from hf_progressive.phi.schedule import schedule_factor
from hf_progressive.phi.step_log import StepLog
from hf_progressive.storage import atomic_folder

__all__ = [
    "KeepStableCheckpoint",
    "NonFiniteLossError",
    "ProgressiveTrainer",
    "ProgressiveTrainingArguments",
    "TrainingInterrupted",
    "newest_complete_checkpoint",
]

_TRAINER_STATE_NAME = "trainer_state.json"
_TRAINING_ARGUMENTS_NAME = "training_args.bin"
_EXIT_CODE_OF_SIGTERM = 128 + signal.SIGTERM


class NonFiniteLossError(FloatingPointError):
    """The loss, or Φ, became NaN or infinite; the weights were not updated with it."""


class TrainingInterrupted(SystemExit):
    """SIGTERM ended the training after a whole step, the checkpoint saved; every process exits with code 143."""


@dataclasses.dataclass
class ProgressiveTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the schedule of Φ.

    Args:
        phi_schedule: How λ and γ move: `constant`, `linear` or `cosine` to zero.
        phi_until: Fraction of `max_steps`, above 0, at which λ and γ are zero; above 1, that is after the last step.

    Raises:
        ValueError: A schedule is unknown, `phi_until` is not above 0, or a Hub token was passed: it would be
            written into every checkpoint's training_args.bin.
    """

    phi_schedule: str = dataclasses.field(
        default="constant", metadata={"help": "How λ and γ move over the run: constant, linear or cosine."}
    )
    phi_until: float = dataclasses.field(
        default=1.0, metadata={"help": "Fraction of the run, above 0, at which λ and γ reach zero."}
    )

    def __post_init__(self) -> None:
        schedule_factor(self.phi_schedule, 0.0, self.phi_until)
        if self.hub_token is not None:
            raise ValueError(
                "hub_token would be written into every checkpoint's training_args.bin; "
                "set the HF_TOKEN environment variable instead"
            )
        super().__post_init__()


class ProgressiveTrainer(Trainer):
    """`Trainer` plus `penalty`; without one it trains exactly as `Trainer` does.

    The logged `loss` is the task's loss plus Φ, as optimised; beside it stand `phi/ewc` and `phi/subspace` (the two
    weighted terms, which sum to Φ), `phi/grad_ratio` (norm of Φ's gradient over the task's, before clipping), each
    averaged over the steps since the last log, and `phi/lambda` and `phi/gamma` as last applied.

    Checkpoints are written aside and renamed, with a manifest of sizes and SHA-256, so that a `checkpoint-N` is
    complete whenever it exists. `train(resume_from_checkpoint=True)` takes the newest complete one.

    Args:
        *args: As for `Trainer`.
        penalty: Φ, its anchor in the coordinates of the model; None for none.
        **kwargs: As for `Trainer`; `args` should be `ProgressiveTrainingArguments`.

    Raises:
        ValueError: `penalty` is given with arguments that hold no schedule for it, or does not fit the model.
    """

    def __init__(self, *args: Any, penalty: InheritancePenalty | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if penalty is not None and not isinstance(self.args, ProgressiveTrainingArguments):
            raise ValueError(
                f"a penalty needs args of class ProgressiveTrainingArguments, got {type(self.args).__name__}"
            )
        self.penalty = penalty
        self._phi_log = StepLog()
        self._spoiled: Tensor | None = None  # whether a micro-batch of this step had a loss that is not finite
        self._sigterm = _Sigterm()
        self._stop_asked = False
        self._save_root: str | None = None
        if penalty is not None:
            penalty.validate(self.model)

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        *args: Any,
        branches: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Train, from the start or from a checkpoint that is complete.

        Args:
            resume_from_checkpoint: A checkpoint's folder, or True for the newest complete one in `output_dir`.
            *args: As for `Trainer.train`.
            branches: The checkpoint is another run's, which may have been trained with another penalty or none.
            **kwargs: As for `Trainer.train`.

        Returns:
            `TrainOutput`, as `Trainer.train`.

        Raises:
            ValueError: There is no complete checkpoint, or the one named is damaged.
            NonFiniteLossError: The loss is NaN or infinite.
            TrainingInterrupted: SIGTERM came; the step was finished and, unless `save_strategy` is "no", a
                checkpoint saved.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = str(existing_checkpoint(self.args.output_dir))
        if resume_from_checkpoint:
            check_checkpoint(Path(resume_from_checkpoint), self.penalty, branches=branches)
        if self.args.should_save:
            remove_leftovers(Path(self.args.output_dir))
        self._spoiled = None
        self._stop_asked = False
        self._phi_log = StepLog()
        with self._sigterm.noticed():
            output = super().train(resume_from_checkpoint or None, *args, **kwargs)
        if self._stop_asked:
            raise TrainingInterrupted(_EXIT_CODE_OF_SIGTERM)
        if self._sigterm.came:  # in the very last step: too late to be heeded here
            signal.raise_signal(signal.SIGTERM)
        return output

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        """Compute the task's loss as `Trainer` does, and stop while training if it is not finite.

        Args:
            model: The wrapped model.
            inputs: A micro-batch.
            return_outputs: Return the model's outputs too.
            **kwargs: As for `Trainer.compute_loss`.

        Returns:
            The loss, or the loss and the outputs.
        """
        computed = super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)
        if model.training:
            self._agree_to_go_on(computed[0] if return_outputs else computed)
        return computed

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Run one micro-batch; on the last before an optimizer step, add Φ's gradient once.

        Args:
            model: The wrapped model.
            inputs: A micro-batch.
            *args: As for `Trainer.training_step`.
            **kwargs: As for `Trainer.training_step`.

        Returns:
            The micro-batch's share of the loss, with Φ on the last one.
        """
        loss: Tensor = super().training_step(model, inputs, *args, **kwargs)
        if self.penalty is None or not self.accelerator.sync_gradients:
            return loss
        if not self.is_deepspeed_enabled:
            self._add_penalty_gradient()
        return loss + self._phi_log.last_value.to(loss)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, with Φ's figures beside the training loss.

        Args:
            logs: Figures by name.
            *args: As for `Trainer.log`.
            **kwargs: As for `Trainer.log`.
        """
        if "loss" in logs:
            logs.update(self._phi_log.drain())
        super().log(logs, *args, **kwargs)

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        prepared = super()._prepare_for_training(*args, **kwargs)
        if self.penalty is None:
            return prepared
        if self.is_deepspeed_enabled:
            self.accelerator.deepspeed_engine_wrapped = _PenalizedEngine(self.deepspeed, self._add_penalty_gradient)
        if self.args.should_save and self._saves_state:
            keep_penalty(self.penalty, Path(self.args.output_dir))
        self.penalty.bind(self._bare_model())
        return prepared

    @property
    def _saves_state(self) -> bool:
        return self.args.save_strategy != "no" and not self.args.save_only_model

    def _bare_model(self) -> nn.Module:
        model: nn.Module = self.accelerator.unwrap_model(self.model_wrapped, keep_torch_compile=False)
        return model

    def _add_penalty_gradient(self) -> None:
        assert self.penalty is not None
        progress = self.state.global_step / self.state.max_steps
        factor = schedule_factor(self.args.phi_schedule, progress, self.args.phi_until)
        step = self.penalty.add_gradient(self._bare_model(), factor=factor, gradient_scale=self._gradient_scale())
        if not torch.isfinite(step.value):  # the same on every process
            raise self._non_finite("Φ", step.value)
        self._phi_log.add(step, ewc_lambda=self.penalty.ewc_lambda * factor, gamma=self.penalty.gamma * factor)

    def _gradient_scale(self) -> float:
        # Where fp16 needs one, the gradients are multiplied by it until they are clipped.
        if self.is_deepspeed_enabled:
            return float(getattr(self.deepspeed.optimizer, "loss_scale", 1.0))
        scaler = self.accelerator.scaler
        return 1.0 if scaler is None else float(scaler.get_scale())

    def _agree_to_go_on(self, loss: Tensor) -> None:
        # One process's bad loss spoils every process's gradient, and one may be told to stop before the others. So all
        # agree once per step, at the same place: before the backward of the last micro-batch, in which DeepSpeed takes
        # the optimizer's step.
        spoiled = ~torch.isfinite(loss.detach()).all()
        self._spoiled = spoiled if self._spoiled is None else self._spoiled | spoiled
        if not self.accelerator.sync_gradients:
            return
        troubles = torch.stack([self._spoiled.float(), torch.tensor(float(self._sigterm.came)).to(loss.device)])
        anywhere_spoiled, anywhere_told = self.accelerator.reduce(troubles, reduction="sum").tolist()
        self._spoiled = None
        if anywhere_spoiled:
            raise self._non_finite("the loss", loss)
        if anywhere_told:
            self._stop_asked = self.control.should_training_stop = True
            self.control.should_save = self.args.save_strategy != "no"

    def _non_finite(self, what: str, value: Tensor) -> NonFiniteLossError:
        shown = value.detach().float().mean().item()
        figure = f"is {shown}" if not math.isfinite(shown) else "is not finite in another process or micro-batch"
        checkpoint = newest_complete_checkpoint(self.args.output_dir)
        last_good = f"the last good checkpoint is {checkpoint}" if checkpoint else "no checkpoint was written yet"
        return NonFiniteLossError(f"step {self.state.global_step + 1}: {what} {figure}; {last_good}")

    # Saving: everything is written below `.saving`, on every process, then moved into place by one.

    def _get_output_dir(self, trial: Any) -> str:
        root: str = self._save_root or super()._get_output_dir(trial)
        return root

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        run_dir = Path(self._get_output_dir(trial))
        target = run_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        with self._saved_whole(target) as (staged, known):
            self._save_root = str(staged.parent)
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._save_root = None
            if self.state.best_model_checkpoint == str(staged):
                self.state.best_model_checkpoint = str(target)
                if self.args.should_save:
                    self.state.save_to_json(str(staged / _TRAINER_STATE_NAME))
            if self.penalty is not None and self.args.should_save and self._saves_state:
                known.update(link_penalty(run_dir, staged))
        if self.args.push_to_hub:
            super()._push_from_checkpoint(str(target))
        if self.args.should_save:
            rotate(target, self.args.save_total_limit, self.state.best_model_checkpoint)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Wait until the checkpoint stands at its own name."""

    def save_pretrained_whole(self, folder: str | os.PathLike[str]) -> None:
        """Save the model and tokenizer as a stock checkpoint, complete or not at all; every process must call it.

        Args:
            folder: Where to; replaced if it exists.
        """
        with self._saved_whole(Path(folder)) as (staged, _):
            self.save_model(str(staged), _internal_call=True)
            if self.args.should_save:
                (staged / _TRAINING_ARGUMENTS_NAME).unlink(missing_ok=True)

    @contextmanager
    def _saved_whole(self, target: Path) -> Iterator[tuple[Path, dict[str, str]]]:
        # yields where to write, and where to put SHA-256 digests that are known already
        staged = target.parent / STAGING_NAME / target.name
        known: dict[str, str] = {}
        if self.args.should_save:
            shutil.rmtree(staged, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        yield staged, known
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            with atomic_folder(target, overwrite=True, sha256=known) as empty:
                os.replace(staged, empty)
            staged.parent.rmdir()
        self.accelerator.wait_for_everyone()


class _PenalizedEngine(DeepSpeedEngineWrapper):
    """Accelerate's wrapper, with Φ added where its backward has averaged the gradient and not yet taken the step."""

    def __init__(self, engine: Any, add_penalty_gradient: Callable[[], None]) -> None:
        super().__init__(engine)
        self._add_penalty_gradient = add_penalty_gradient

    def backward(self, loss: Tensor, sync_gradients: bool = True, **kwargs: Any) -> None:
        self.engine.set_gradient_accumulation_boundary(is_boundary=sync_gradients)
        self.engine.backward(loss, **kwargs)
        if sync_gradients:
            self._add_penalty_gradient()
            self.engine.step()


class KeepStableCheckpoint(TrainerCallback):
    """Keep the weights as they are where the warm-down begins: the model to continue training from.

    Args:
        trainer: The trainer it is added to, with `trainer.add_callback`.
        folder: Where the model and tokenizer go, as `save_pretrained` writes them.
        step: The optimizer step after which to save; for `warmup_stable_decay`, `max_steps - num_decay_steps`.
    """

    def __init__(self, trainer: ProgressiveTrainer, folder: str | os.PathLike[str], step: int) -> None:
        self._trainer, self._folder, self._step = trainer, folder, step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save if this was the step.

        Args:
            args: As for any callback.
            state: As for any callback.
            control: As for any callback.
            **kwargs: As for any callback.
        """
        if state.global_step == self._step:
            self._trainer.save_pretrained_whole(self._folder)


class _Sigterm:
    """Whether SIGTERM came while training."""

    def __init__(self) -> None:
        self.came = False

    @contextmanager
    def noticed(self) -> Iterator[None]:
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
