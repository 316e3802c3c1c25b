"""Trainer's arguments: those of Φ added, and what a ladder's configuration may say about the others."""

import dataclasses
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

from hf_progressive.config import strict_yaml
from hf_progressive.config.training import CALLED_HERE
from hf_progressive.distributed.float32_products import allow_tf32
from hf_progressive.penalty.schedule import schedule_factor

_OWN_ARGUMENTS = {
    "output_dir", "max_steps", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps",
    "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "weight_decay", "seed", "data_seed",
    "adam_beta1", "adam_beta2", "max_grad_norm", "train_sampling_strategy", "phi_schedule", "phi_until",
    "phi_lambda", "phi_gamma", "muon_learning_rate", "resume_from_checkpoint", "eval_strategy", "save_strategy",
    "eval_on_start", "logging_strategy", "prediction_loss_only",
}  # fmt: skip

_ADAMW = (OptimizerNames.ADAMW_TORCH, OptimizerNames.ADAMW_TORCH_FUSED)


@dataclasses.dataclass
class ProgressiveTrainingArguments(TrainingArguments):
    """`TrainingArguments` with Φ's schedule and Muon's rate, and without a filter of losses that are not finite.

    Such a loss ends the training, and the filter reads every micro-batch's loss from the device. A GPU's batches are
    copied while it works, and float32 products are rounded to TF32 only under mixed precision or where `tf32` asks:
    `TrainingArguments` alone does so in everything that is compiled.

    Args:
        phi_schedule: How λ and γ move: `constant`, `linear` or `cosine` to zero.
        phi_until: Fraction of `max_steps`, above 0, at which λ and γ are zero; above 1, that is after the last step.
        phi_lambda: λ in the place of the penalty's own, which a search over hyperparameters may set; None keeps that.
        phi_gamma: γ likewise.
        muon_learning_rate: Peak rate of Muon, which then trains the matrices inside the layers (see
            `hf_progressive.training.muon`), AdamW the rest at `learning_rate`. None leaves all to `optim`.
        logging_nan_inf_filter: As in `TrainingArguments`, but False unless it is set.

    Raises:
        ValueError: A schedule is unknown; `phi_until` or `muon_learning_rate` is not above 0; the latter stands beside
            an `optim` other than PyTorch's AdamW; or a Hub token was passed, which would be written into every
            checkpoint's training_args.bin.
    """

    phi_schedule: str = dataclasses.field(
        default="constant", metadata={"help": "How λ and γ move over the run: constant, linear or cosine."}
    )
    phi_until: float = dataclasses.field(
        default=1.0, metadata={"help": "Fraction of the run, above 0, at which λ and γ reach zero."}
    )

    phi_lambda: float | None = dataclasses.field(
        default=None, metadata={"help": "λ in the place of the penalty's own; none keeps that."}
    )
    phi_gamma: float | None = dataclasses.field(
        default=None, metadata={"help": "γ in the place of the penalty's own; none keeps that."}
    )

    muon_learning_rate: float | None = dataclasses.field(
        default=None, metadata={"help": "Peak learning rate of Muon for the matrices inside the layers; none without."}
    )

    logging_nan_inf_filter: bool = dataclasses.field(
        default=False, metadata={"help": "Read every micro-batch's loss, to keep it from the log if it is not finite."}
    )

    def __post_init__(self) -> None:
        schedule_factor(self.phi_schedule, 0.0, self.phi_until)
        if self.muon_learning_rate is not None:
            if self.muon_learning_rate <= 0:
                raise ValueError(f"muon_learning_rate is {self.muon_learning_rate}; it must be above 0")
            if self.optim not in _ADAMW:
                raise ValueError(
                    f"muon_learning_rate: Muon trains beside PyTorch's AdamW, not {str(self.optim)!r}; leave out optim"
                )
        if self.hub_token is not None:
            raise ValueError(
                "hub_token would be written into every checkpoint's training_args.bin; "
                "set the HF_TOKEN environment variable instead"
            )
        on_cuda = torch.cuda.is_available() and not self.use_cpu
        if on_cuda and getattr(self, "accelerator_config", None) is None and self.dataloader_pin_memory:
            self.accelerator_config = {"non_blocking": True}
        super().__post_init__()
        if on_cuda and (self.torch_compile or self.tf32 is not None):
            allow_tf32(self.mixed_precision != "no" if self.tf32 is None else self.tf32)


def check_arguments(arguments: dict[str, Any]) -> None:
    """Raise a ValueError if one of a ladder's `training.arguments` is unknown, or one that the ladder sets itself."""
    known = {field.name for field in dataclasses.fields(ProgressiveTrainingArguments)}
    for name in arguments:
        if name in _OWN_ARGUMENTS:
            source = f"training.{CALLED_HERE[name]}" if name in CALLED_HERE else "the keys of `training`"
            raise ValueError(f"training.arguments.{name}: the ladder sets it from {source}; leave it out")
        if name not in known:
            raise ValueError(f"training.arguments.{name}: unknown argument; {strict_yaml.nearest(name, known)}")
