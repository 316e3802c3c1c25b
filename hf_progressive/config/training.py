"""Batch, budget, schedule and optimizer."""

from dataclasses import dataclass, field
from typing import Any, Literal

from hf_progressive.config.checks import require, require_fraction, require_positive


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How every rung, and every baseline, trains."""

    tokens_per_parameter: float = 8.0
    """Tokens of a cold run's full budget, per parameter."""

    budget_parameters: Literal["scaling", "non_embedding", "total"] = "scaling"
    """Which parameters the budget counts: transformer and output head, transformer alone, or all."""

    inherited_fraction: float = 0.65
    """Share of the cold budget that a grown rung trains for."""

    batch_tokens: int = 4096
    """Tokens per optimizer step over all processes and accumulated micro-batches."""

    micro_batch_size: int = 16
    """Blocks per forward pass and process, at the most."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon`: Muon for the matrices inside the layers, AdamW for embeddings, output head, norms and biases."""

    learning_rate: float = 2e-3
    """Peak learning rate."""

    muon_learning_rate: float | None = None
    """Muon's peak where AdamW's is `learning_rate`; with any other peak of a run it moves in proportion. None: the
    same, for Muon's steps are scaled to the size of AdamW's."""

    inherited_learning_rate: float | None = None
    """Peak learning rate of grown rungs; None takes `learning_rate`."""

    learning_rate_by_width: float = 0.0
    """Power of a rung's width over the last rung's by which its peak learning rate is multiplied; -0.5 gives narrower
    rungs a higher rate, 0 the same."""

    warmup_fraction: float = 0.02
    """Share of the steps over which the learning rate rises to its peak."""

    decay_fraction: float = 0.5
    """Share of the steps over which the learning rate falls linearly, at the end."""

    final_lr_ratio: float = 0.0
    """Learning rate at the last step over the peak."""

    weight_decay: float = 0.1
    """Decoupled weight decay, on matrices."""

    adam_beta1: float = 0.9
    """AdamW's decay rate of the first moment."""

    adam_beta2: float = 0.95
    """AdamW's decay rate of the second moment."""

    max_grad_norm: float = 1.0
    """Norm to which the gradient is clipped."""

    trainable: Literal["all", "new_layers", "new_entries"] | tuple[str, ...] = "all"
    """What grown rungs train: `new_layers` (the parameters that inherit nothing), `new_entries` (all that the parent
    did not have), or parameters whose names match one of a list of patterns (`["model.layers.4.*"]`). The rest keeps
    its bits. First rungs and baselines train all; FLOPs are counted as of training all."""

    evaluations: int = 16
    """Validation points along a run, the last step included."""

    checkpoints: int = 4
    """Checkpoints for resuming along a run, the last step included."""

    keep_stable: bool = False
    """Keep the weights from before the decay beside the final ones."""

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """What matrix products compute in; weights and optimizer are float32. `auto`: bfloat16 where the device is a GPU
    that has it, and what the launch's `mixed_precision` says elsewhere."""

    compile: Literal["auto"] | bool = "auto"
    """Whether the model is compiled. `auto`: on a GPU where `torch.compile` works, without DeepSpeed and FSDP."""

    arguments: dict[str, Any] = field(default_factory=dict)
    """Further `TrainingArguments` (`report_to: [tensorboard]`, `gradient_checkpointing: true`)."""

    def __post_init__(self) -> None:
        require_positive(
            self, "tokens_per_parameter", "batch_tokens", "micro_batch_size", "evaluations", "checkpoints"
        )
        require_positive(self, "learning_rate", "muon_learning_rate", "inherited_learning_rate")
        require_fraction(self, "warmup_fraction", "decay_fraction", "final_lr_ratio")
        require_fraction(self, "adam_beta1", "adam_beta2")
        power = self.learning_rate_by_width
        require(-2 <= power <= 2, f"learning_rate_by_width: {power} is not in [-2, 2]")
        require(self.weight_decay >= 0, f"weight_decay: {self.weight_decay} is negative")
        require(self.max_grad_norm >= 0, f"max_grad_norm: {self.max_grad_norm} is negative; 0 clips nothing")
        require(0 < self.inherited_fraction <= 4, f"inherited_fraction: {self.inherited_fraction} is not in (0, 4]")
        require(self.trainable != (), "trainable: the list is empty; name patterns, or take all")
        self._require_one_precision()
        self._require_one_optimizer()
        total = self.warmup_fraction + self.decay_fraction
        require(total <= 1, f"decay_fraction: warm-up and decay together are {total} of the steps, more than 1")

    def _require_one_optimizer(self) -> None:
        if self.optimizer != "muon":
            require(
                self.muon_learning_rate is None,
                f"muon_learning_rate: {self.muon_learning_rate} needs optimizer: muon; set that, or leave it out",
            )
            return
        for name in ("optim", "optim_args", "optim_target_modules"):
            require(
                not self.arguments.get(name),
                f"optimizer: muon contradicts arguments.{name}: {self.arguments.get(name)}; leave one out",
            )

    def _require_one_precision(self) -> None:
        wanted, given = self.precision, self.arguments
        for name, dtype in (("bf16", "bfloat16"), ("fp16", "float16")):
            fits = wanted in ("auto", dtype) if given.get(name) else not (name in given and wanted == dtype)
            require(fits, f"precision: {wanted} contradicts arguments.{name}: {given.get(name)}; leave one out")
        if "torch_compile" in given and self.compile != "auto":
            require(
                bool(given["torch_compile"]) is self.compile,
                f"compile: {self.compile} contradicts arguments.torch_compile; leave one out",
            )
