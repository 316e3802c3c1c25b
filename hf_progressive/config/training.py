"""Batch, budget, schedule and optimizer."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from hf_progressive.config import strict_yaml
from hf_progressive.config.checks import require, require_in_range
from hf_progressive.config.ranges import Fraction, LearningRate, NotNegative, Range, Whole

CALLED_HERE = {
    **dict.fromkeys(("lr", "peak_lr", "max_lr"), "learning_rate"),
    **dict.fromkeys(("num_train_epochs", "num_epochs", "epochs", "max_steps", "steps"), "tokens_per_parameter"),
    **dict.fromkeys(("per_device_train_batch_size", "per_device_batch_size"), "micro_batch_size"),
    **dict.fromkeys(("gradient_accumulation_steps", "batch_size", "global_batch_size"), "batch_tokens"),
    **dict.fromkeys(("warmup_steps", "warmup_ratio"), "warmup_fraction"),
    **dict.fromkeys(("lr_scheduler_type", "lr_scheduler"), "decay_fraction"),
    **dict.fromkeys(("min_lr", "min_lr_ratio"), "final_lr_ratio"),
    **dict.fromkeys(("eval_steps", "eval_strategy"), "evaluations"),
    **dict.fromkeys(("save_steps", "save_strategy"), "checkpoints"),
    **dict.fromkeys(("bf16", "fp16", "mixed_precision", "dtype"), "precision"),
    "torch_compile": "compile",
}
"""What other programs, Trainer among them, call keys of `training`, or that from which a ladder has the same."""

_TRAINERS = frozenset(
    {
        *("gradient_checkpointing", "activation_checkpointing", "report_to", "run_name", "disable_tqdm", "tf32"),
        *("optim", "optim_args", "adam_epsilon", "neftune_noise_alpha", "use_liger_kernel", "save_total_limit"),
        *("dataloader_num_workers", "dataloader_prefetch_factor", "per_device_eval_batch_size"),
        *("ddp_timeout", "deepspeed", "fsdp", "fsdp_config"),
    }
)
"""Arguments of Trainer that people write, and that stand below `arguments`."""

_Beta = Annotated[float, Range(0, 1, below=True)]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How every rung, and every baseline, trains."""

    tokens_per_parameter: Annotated[float, Range(0, 1_000_000, above=True)] = 8.0
    """Tokens of a cold run's full budget, per parameter."""

    budget_parameters: Literal["scaling", "non_embedding", "total"] = "scaling"
    """Which parameters the budget counts: transformer and output head, transformer alone, or all."""

    inherited_fraction: Annotated[float, Range(0, 4, above=True)] = 0.65
    """Share of the cold budget that a grown rung trains for."""

    batch_tokens: Whole = 4096
    """Tokens per optimizer step over all processes and accumulated micro-batches."""

    micro_batch_size: Whole = 16
    """Blocks per forward pass and process, at the most."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon`: Muon for the matrices inside the layers, AdamW for embeddings, output head, norms and biases."""

    learning_rate: LearningRate = 2e-3
    """Peak learning rate."""

    muon_learning_rate: LearningRate | None = None
    """Muon's peak where AdamW's is `learning_rate`; with any other peak of a run it moves in proportion. None: the
    same, for Muon's steps are scaled to the size of AdamW's."""

    inherited_learning_rate: LearningRate | None = None
    """Peak learning rate of grown rungs; None takes `learning_rate`."""

    learning_rate_by_width: Annotated[float, Range(-2, 2)] = 0.0
    """Power of a rung's width over the last rung's by which its peak learning rate is multiplied; -0.5 gives narrower
    rungs a higher rate, 0 the same."""

    warmup_fraction: Fraction = 0.02
    """Share of the steps over which the learning rate rises to its peak."""

    decay_fraction: Fraction = 0.5
    """Share of the steps over which the learning rate falls linearly, at the end."""

    final_lr_ratio: Fraction = 0.0
    """Learning rate at the last step over the peak."""

    weight_decay: NotNegative = 0.1
    """Decoupled weight decay, on matrices."""

    adam_beta1: _Beta = 0.9
    """AdamW's decay rate of the first moment."""

    adam_beta2: _Beta = 0.95
    """AdamW's decay rate of the second moment."""

    max_grad_norm: NotNegative = 1.0
    """Norm to which the gradient is clipped; 0 clips nothing."""

    trainable: Literal["all", "new_layers", "new_entries"] | tuple[str, ...] = "all"
    """What grown rungs train: `new_layers` (the parameters that inherit nothing), `new_entries` (all that the parent
    did not have), or parameters whose names match one of a list of patterns (`["model.layers.4.*"]`). The rest keeps
    its bits. First rungs and baselines train all; FLOPs are counted as of training all."""

    evaluations: Whole = 16
    """Validation points along a run, the last step included."""

    checkpoints: Whole = 4
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

    @staticmethod
    def advice_on(key: str, known: Iterable[str]) -> str:
        """Say what an unknown key is called here, or where it belongs."""
        if key in CALLED_HERE:
            return f"here it is {CALLED_HERE[key]}"
        if key in _TRAINERS:
            return f"it is Trainer's; write `arguments: {{{key}: ...}}`"
        if key in ("seed", "data_seed"):
            return "the ladder has one `seed`, at its top"
        return f"{strict_yaml.nearest(key, known)}; others of Trainer's go under `arguments`"

    def __post_init__(self) -> None:
        require_in_range(self)
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
        for name in ("torch_compile", "torch_compile_backend", "torch_compile_mode"):  # each of which compiles
            require(
                name not in given or self.compile in ("auto", bool(given[name])),
                f"compile: {self.compile} contradicts arguments.{name}: {given.get(name)}; leave one out",
            )
