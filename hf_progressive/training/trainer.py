"""A trainer that adds the inheritance penalty Φ, stops on a loss that is not finite, and saves whole or not at all.

Φ's gradient has a closed form, so it does not go through the loss: it is added to the averaged gradient once per
optimizer step, after the last micro-batch's backward and before clipping; or Φ's proximal step follows the optimizer's
(`hf_progressive.penalty.proximal`). Gradient accumulation and the number of processes therefore cannot change it, and
evaluation never sees it.

Between two logs the host reads nothing from the device. Whether all is finite is noted there and read before a log, an
evaluation and whatever is saved.
"""

import math
import signal
from pathlib import Path
from typing import Any

from accelerate import PartialState
from torch import Tensor, nn
from transformers import Trainer

from hf_progressive.config.ranges import class_of
from hf_progressive.distributed.forks import fork_while_threads_rest
from hf_progressive.distributed.processes import main_process_first
from hf_progressive.distributed.stopping import STEPS_BETWEEN, Sigterm, StopVote
from hf_progressive.distributed.termination import EXIT_CODE
from hf_progressive.penalty import (
    BoundPenalty,
    InheritancePenalty,
    LoraPenalty,
    PenaltyStep,
    ProximalStep,
    ProximalSteps,
)
from hf_progressive.penalty.lora_product import BoundLoraPenalty
from hf_progressive.penalty.schedule import schedule_factor
from hf_progressive.penalty.step_log import StepLog
from hf_progressive.penalty.validation import require_trained, warn_of_no_effect
from hf_progressive.training.accumulation import warn_of_undivided_loss
from hf_progressive.training.arguments import ProgressiveTrainingArguments
from hf_progressive.training.checkpoints import (
    check_checkpoint,
    finish_rotation,
    keep_penalty,
    newest_complete_checkpoint,
    remove_checkpoint_leftovers,
    require_newest,
    require_own_engine,
)
from hf_progressive.training.finiteness import GRADIENT, LOSS, PENALTY, WEIGHTS, FiniteWatch, scaled_to_nothing
from hf_progressive.training.log_window import LogWindow
from hf_progressive.training.loss_steps import LossSteps
from hf_progressive.training.muon import NEEDS_MATRICES, muon_optimizer
from hf_progressive.training.parent_divergence import DivergenceSteps
from hf_progressive.training.penalized_engine import PenalizedEngine
from hf_progressive.training.resumed_settings import ResumedSettings
from hf_progressive.training.saving import WholeSaves
from hf_progressive.training.throughput import ThroughputMeter

__all__ = [
    "NonFiniteLossError",
    "ProgressiveMixin",
    "ProgressiveTrainer",
    "ProgressiveTrainingArguments",
    "TrainingInterrupted",
]


class NonFiniteLossError(FloatingPointError):
    """The loss, Φ, the gradient or a weight became NaN or infinite; nothing was saved or measured since."""


class TrainingInterrupted(SystemExit):
    """SIGTERM ended the training after a whole step, the checkpoint saved; every process exits with code 143."""


class ProgressiveMixin(DivergenceSteps, LossSteps, ResumedSettings, LogWindow, WholeSaves):
    """What `ProgressiveTrainer` adds to `Trainer`, for any trainer built on it; without a penalty that trains as ever.

    It stands first, `class HeldSFTTrainer(ProgressiveMixin, SFTTrainer)`, and the constructor is the other's plus the
    arguments below. Tested are `Trainer`, `Seq2SeqTrainer` and TRL's `SFTTrainer` and `DPOTrainer`.

    The logged `loss` is the task's loss plus Φ, as optimised; beside it stand `phi/ewc` and `phi/subspace` (the two
    weighted terms, which sum to Φ), `phi/grad_ratio` (norm of Φ's gradient over the task's, before clipping), each
    averaged over the steps since the last log, and `phi/lambda` and `phi/gamma` as last applied. A penalty with
    apply="proximal" acts after the optimizer's step: `loss` is then the task's alone, and in place of the gradients'
    ratio stands `phi/moved_ratio`, the share of the distance from the anchor that Φ's step takes back.

    Checkpoints are written aside and renamed, with a manifest of sizes and SHA-256, so that a `checkpoint-N` is
    complete whenever it exists. `train(resume_from_checkpoint=True)` takes the newest complete one.

    Args:
        *args: As for the trainer that stands behind.
        penalty: Φ, its anchor in the coordinates of the model, or a `LoraPenalty`; None for none.
        phi_schedule: How λ and γ move: `constant`, `linear` or `cosine` to zero. None for what `args` say, which is
            `constant` unless they are `ProgressiveTrainingArguments`.
        phi_until: Fraction of the run, above 0, at which λ and γ are zero; above 1, that is after the last step. None
            for what `args` say, which is 1.0 unless they are `ProgressiveTrainingArguments`.
        **kwargs: As for the trainer that stands behind; and `divergence`, a `ParentDivergence`, which holds what the
            model predicts near its parent's predictions.

    Raises:
        ValueError: `penalty` does not fit the model, a schedule is unknown or `phi_until` not above 0; or the
            arguments want Muon under an engine that flattens weights, or beside an optimizer that is passed.
    """

    def __init__(
        self,
        *args: Any,
        penalty: InheritancePenalty | LoraPenalty | None = None,
        phi_schedule: str | None = None,
        phi_until: float | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(penalty, InheritancePenalty | LoraPenalty | None):
            wanted = "an InheritancePenalty or a LoraPenalty, which takes what estimate_fisher returns"
            raise ValueError(f"penalty is {class_of(penalty)}; pass {wanted}")
        super().__init__(*args, **kwargs)
        fork_while_threads_rest()  # workers of data loaders
        flattened = self.is_deepspeed_enabled or (self.is_fsdp_enabled and not self.accelerator.is_fsdp2)
        if getattr(self.args, "muon_learning_rate", None) is not None:
            if flattened:
                raise ValueError(f"muon_learning_rate: {NEEDS_MATRICES}")
            if self.optimizer is not None:
                raise ValueError("muon_learning_rate: the optimizer that was passed trains all weights; leave one out")
        self._given_schedule, self._given_until = phi_schedule, phi_until
        schedule_factor(self.phi_schedule, 0.0, self.phi_until)
        self.penalty = penalty
        self.bound_penalty: BoundPenalty | BoundLoraPenalty | None = None
        """Φ on the prepared model, once training has begun."""
        self._proximal_steps: ProximalSteps | None = None
        self.meter: ThroughputMeter | None = None
        """Adds the speed to every log of the loss; a callback of this trainer, where there is one."""
        self._phi_log = StepLog()
        self._watch = FiniteWatch(self.accelerator)
        self._finite_until = 0  # the last step after which all was known to be finite
        self._flops_per_batch: dict[int, int] = {}
        self._sigterm = Sigterm()
        self._vote = self._new_vote()
        self._stop_asked = self._looked_at_division = False
        penalty = self.weighted_penalty
        if penalty is not None:
            penalty.validate(self.model)
            if isinstance(penalty, InheritancePenalty):
                require_trained(self.model, penalty.restrained_names)

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
            branches: The checkpoint is another run's, which may have been trained with another penalty or divergence,
                or none.
            **kwargs: As for `Trainer.train`.

        Returns:
            `TrainOutput`, as `Trainer.train`.

        Raises:
            ValueError: There is no complete checkpoint, or the one named is damaged, or was trained with another
                penalty, with a divergence where none is given, or under another engine.
            NonFiniteLossError: The loss, Φ, the gradient or a weight is NaN or infinite. It is found at the next log,
                evaluation or checkpoint, none of which is kept, or at the end.
            TrainingInterrupted: SIGTERM came; the step was finished and, unless `save_strategy` is "no", a
                checkpoint saved.
        """
        trial = kwargs.get("trial", args[0] if args else None)  # of a search, which has a folder for each
        if resume_from_checkpoint is True:
            resume_from_checkpoint = str(require_newest(self._get_output_dir(trial)))
        if resume_from_checkpoint:
            reads = self.args.should_save  # the process that writes to a disk reads from it
            weighted = self.weighted_penalty if trial is None else None  # a trial's weights are yet to be set
            check_checkpoint(
                Path(resume_from_checkpoint), self.penalty, weighted=weighted, branches=branches, reads=reads
            )
            require_own_engine(
                Path(resume_from_checkpoint), deepspeed=self.is_deepspeed_enabled, fsdp=self.is_fsdp_enabled
            )
            if trial is None and not branches:
                self._compare_settings(Path(resume_from_checkpoint))
        if self.args.should_save:
            for folder in {self.args.output_dir, self._get_output_dir(trial)}:
                remove_checkpoint_leftovers(Path(folder))
            if resume_from_checkpoint and not self.args.load_best_model_at_end:
                own = Path(self._get_output_dir(trial))
                finish_rotation(Path(resume_from_checkpoint), self.args.save_total_limit, of=own)
        self._watch, self._finite_until = FiniteWatch(self.accelerator), 0
        self._vote, self._stop_asked = self._new_vote(), False
        self._phi_log = StepLog()
        with self._sigterm.noticed():
            output = super().train(resume_from_checkpoint or None, *args, **kwargs)
            self._require_finite()
            if self._stop_asked:
                raise TrainingInterrupted(EXIT_CODE)
            too_late = self._vote.at_the_end(self._sigterm.came)  # it came in the last steps
        if too_late or self._sigterm.came:  # or while this process waited for the others
            signal.raise_signal(signal.SIGTERM)
        return output

    def _new_vote(self) -> StopVote:
        # A step of several micro-batches takes long, and a launcher waits for half a minute.
        return StopVote(self.accelerator, every=1 if self.args.gradient_accumulation_steps > 1 else STEPS_BETWEEN)

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Run one micro-batch; on the last of an optimizer step, add Φ's gradient once, and Φ to the loss returned."""
        last = self.accelerator.sync_gradients
        if last and self._vote.stops(self.state.global_step, self._sigterm.came):
            self._stop_asked = self.control.should_training_stop = True
            self.control.should_save = self.args.save_strategy != "no"
        if self.penalty is not None and self.penalty.apply == "gradient" and not self._looked_at_division:
            self._looked_at_division = True
            items = args[0] if args else kwargs.get("num_items_in_batch")
            warn_of_undivided_loss(self, self.bare_model(), inputs, items, self._own_compute_loss)
        loss: Tensor = super().training_step(model, inputs, *args, **kwargs)
        self._watch.note(LOSS, loss, step=self.state.global_step + 1)
        if self.penalty is None or not last or self.penalty.apply == "proximal":
            return loss
        if not self.is_deepspeed_enabled:
            self._add_penalty_gradient()
        return loss + self._phi_log.last_value.to(loss)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, with Φ's figures and the speed beside the training loss."""
        if "loss" in logs:
            logs.update(self._phi_log.drain())
            if self.meter is not None:
                logs.update(self.meter.at_log(self.state.global_step))
        super().log(logs, *args, **kwargs)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Build the optimizer as `Trainer` does, or Muon beside AdamW where the arguments give Muon's rate."""
        rate = getattr(self.args, "muon_learning_rate", None)
        if rate is not None and getattr(self, "optimizer", None) is None:
            self.optimizer = muon_optimizer(self.model, self, rate)
        return super().create_optimizer(*args, **kwargs)

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        prepared = super()._prepare_for_training(*args, **kwargs)
        self._finite_until = self.state.global_step
        if self.penalty is None:
            return prepared
        if self.is_deepspeed_enabled and self.penalty.apply == "gradient":
            self.accelerator.deepspeed_engine_wrapped = PenalizedEngine(self.deepspeed, self._add_penalty_gradient)
        if self._proximal_steps is not None:
            self._proximal_steps.remove()
        self.bound_penalty = self._proximal_steps = None  # an earlier training's shards go before there are new ones
        if self._saves_state:
            with main_process_first(PartialState()):  # reads and writes all of W₀, Ω and U
                if self.args.should_save:
                    keep_penalty(self.penalty, Path(self.args.output_dir))
        penalty = self.weighted_penalty
        assert penalty is not None
        further = getattr(penalty, "further", ())
        warn_of_no_effect(penalty.tensors, ewc_lambda=penalty.ewc_lambda, gamma=penalty.gamma, further=further)
        self.bound_penalty = bound = penalty.bind(self.bare_model())
        if self.penalty.apply == "proximal" and isinstance(bound, BoundPenalty):
            self._proximal_steps = ProximalSteps(
                bound, self.optimizer, factor=self._phi_factor, note=self._note_penalty
            )
        return prepared

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # Trainer asks after a step only, and would add one to a finished run whose last epoch is not over.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    @property
    def _saves_state(self) -> bool:
        return self.args.save_strategy != "no" and not self.args.save_only_model

    def bare_model(self) -> nn.Module:
        """Return the model as its engine has prepared it, without wrappers: its parameters have their own names."""
        model: nn.Module = self.accelerator.unwrap_model(self.model_wrapped, keep_torch_compile=False)
        return model

    def _add_penalty_gradient(self) -> None:
        penalty = self.bound_penalty
        assert penalty is not None
        factor = self._phi_factor()
        self._note_penalty(penalty.add_gradient(factor=factor, gradient_scale=self._gradient_scale()), factor)

    def _phi_factor(self) -> float:
        progress = self.state.global_step / self.state.max_steps
        return schedule_factor(self.phi_schedule, progress, self.phi_until)

    def _note_penalty(self, step: PenaltyStep | ProximalStep, factor: float) -> None:
        penalty = self.bound_penalty
        assert penalty is not None
        self._watch.note(PENALTY, step.value, step=self.state.global_step + 1)
        self._phi_log.add(step, ewc_lambda=penalty.ewc_lambda * factor, gamma=penalty.gamma * factor)

    def _gradient_scale(self) -> float:
        # Where fp16 needs one, the gradients are multiplied by it until they are clipped.
        if self.is_deepspeed_enabled:
            return float(getattr(self.deepspeed.optimizer, "loss_scale", 1.0))
        scaler = self.accelerator.scaler
        return 1.0 if scaler is None else float(scaler.get_scale())

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        norm = super()._clip_grad_norm(model)
        # A loss scaler meets gradients that overflow, skips the step and goes on; a processor has none.
        scales = self.is_deepspeed_enabled and self.args.mixed_precision == "fp16"
        if isinstance(norm, Tensor) and not scales and self.accelerator.scaler is None:
            self._watch.note(GRADIENT, norm, step=self.state.global_step + 1)
        return norm

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Count as `Trainer` does, once for each size of micro-batch: it walks through all modules."""
        main_input = inputs.get(getattr(self.model, "main_input_name", "input_ids"))
        tokens = main_input.numel() if isinstance(main_input, Tensor) else 0
        if tokens not in self._flops_per_batch:
            self._flops_per_batch[tokens] = super().floating_point_ops(inputs)
        return self._flops_per_batch[tokens]

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        if self.control.should_log or self.control.should_evaluate:
            self._require_finite()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        metrics: dict[str, float] = super()._evaluate(*args, **kwargs)
        for name, value in metrics.items():  # numbers of the host, the same on every process
            if name.endswith("_loss") and not math.isfinite(value):
                raise self._non_finite(f"the validation's {name}", self.state.global_step, self.state.global_step)
        return metrics

    def _require_finite(self) -> None:
        """Raise unless all that was computed since the last call is finite, and the weights; every process must call.

        The host waits for the device here.
        """
        step = self.state.global_step
        self._watch.note_weights(self.model.parameters(), step=step)
        found = self._watch.read()
        if found is not None:
            spoiled, at = found
            raise self._non_finite(spoiled, self._finite_until + 1 if spoiled == WEIGHTS else at, at)
        if scaled_to_nothing(self.accelerator.scaler):
            raise self._non_finite("the gradient, however small fp16 scales the loss,", self._finite_until + 1, step)
        self._finite_until = step

    def _non_finite(self, what: str, first: int, last: int) -> NonFiniteLossError:
        steps = f"step {last}" if last <= first else f"steps {first} to {last}"
        # One of a later step is another run's, which went that far in the same folder.
        checkpoint = newest_complete_checkpoint(self.args.output_dir, until=last)
        last_good = f"the last good checkpoint is {checkpoint}" if checkpoint else "no checkpoint was written yet"
        return NonFiniteLossError(f"{steps}: {what} is not finite; {last_good}")


class ProgressiveTrainer(ProgressiveMixin, Trainer):
    """`ProgressiveMixin` before `Trainer`; without a penalty it trains exactly as `Trainer` does."""
