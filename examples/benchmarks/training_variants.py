"""Four ways to train one model on the same batches: a bare loop, Trainer, ProgressiveTrainer, and that with Φ.

Each is a program for `turns.Player`: it builds its model anew, and a turn is the steps between two logs, at which
every one of them reads the loss.
"""

import itertools
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from host_reads import host_reads
from peak_bytes import PeakBytes
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from torch.utils.data import default_collate
from transformers import (
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
    get_scheduler,
)
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from hf_progressive.config import DataConfig, TrainingConfig
from hf_progressive.data import Corpus, TokenBlocks, rung_blocks
from hf_progressive.distributed.float32_products import allow_tf32
from hf_progressive.penalty import InheritancePenalty
from hf_progressive.penalty.validation import output_dimension
from hf_progressive.training.flops import flops_per_token
from hf_progressive.training.training_run import TrainingRun, train_run, training_arguments

LOGS_PER_RUN = 50  # what a ladder's training run does; between two of them lies a turn
VALIDATION_BLOCKS = 2
EWC_LAMBDA, GAMMA = 1e-2, 1e-4


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A model, its batches and how they are computed."""

    config: PretrainedConfig
    """The model's configuration."""

    micro_batch: int
    """Sequences per forward pass."""

    accumulation: int
    """Micro-batches per optimizer step."""

    window: int
    """Optimizer steps between two logs."""

    compiled: bool
    """Whether the model is compiled."""

    device: torch.device
    """Where it is computed."""

    folder: Path
    """Where the initial checkpoint and the tokens are."""

    @property
    def context(self) -> int:
        """Tokens per sequence."""
        return int(self.config.max_position_embeddings)

    @property
    def step_tokens(self) -> int:
        """Tokens per optimizer step."""
        return self.micro_batch * self.accumulation * self.context

    @property
    def bf16(self) -> bool:
        """Whether the forward pass is computed in bfloat16."""
        return self.device.type == "cuda" and torch.cuda.is_bf16_supported()

    @property
    def init(self) -> Path:
        """The initial checkpoint."""
        return self.folder / "init"

    def write(self) -> None:
        """Write the initial checkpoint and random tokens."""
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(self.config).save_pretrained(self.init)
        draw = np.random.default_rng(0)
        for name, blocks in (("train", 4 * self.micro_batch * self.accumulation), ("validation", VALIDATION_BLOCKS)):
            draw.integers(self.config.vocab_size, size=(blocks, self.context), dtype="<u4").tofile(self.folder / name)

    def corpus(self) -> Corpus:
        """Open the random tokens as a ladder would its own."""
        words = Tokenizer(WordLevel({"a": 0, "<eos>": 1}, unk_token="a"))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>")
        train, validation = (
            TokenBlocks(self.folder / name, dtype="uint32", context=self.context) for name in ("train", "validation")
        )
        return Corpus(
            config=DataConfig(),
            context=self.context,
            tokenizer=tokenizer,
            train=train,
            validation=validation,
            validation_bytes=1,
            fingerprint="random",
            counts={},
        )

    def variant(self) -> TrainingRun:
        """Return the training run as a ladder would state it."""
        return TrainingRun(
            title="benchmark",
            init=self.init,
            folder=Path(tempfile.mkdtemp(dir=self.folder)),
            training=TrainingConfig(
                batch_tokens=self.step_tokens,
                micro_batch_size=self.micro_batch,
                learning_rate=1e-4,
                evaluations=1,
                precision="bfloat16" if self.bf16 else "float32",
                compile=self.compiled,
                arguments={} if self.device.type == "cuda" else {"use_cpu": True},
            ),
            learning_rate=1e-4,
            steps=LOGS_PER_RUN * self.window,
            first_block=0,
            flops_per_token=float(flops_per_token(self.config)),
            checkpoint_steps=frozenset(),
        )

    def model(self) -> PreTrainedModel:
        """Load the initial checkpoint."""
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(self.init, dtype=torch.float32)
        return model


@dataclass(kw_only=True)
class Observer:
    """What is looked at in a turn that is not timed."""

    watching: bool = False
    """Whether the next turn is such a one."""

    steps: int = 0
    """Optimizer steps that were looked at."""

    reads: Counter[str] = field(default_factory=Counter)
    """Reads that wait for the device, by place."""

    peak_bytes: int | None = None
    """Bytes of all tensors at once, at the most, where that could be seen."""

    @contextmanager
    def watch(self, workload: Workload) -> Iterator[None]:
        """Look at the steps inside, between two logs."""
        peak = PeakBytes()
        with ExitStack() as stack:
            if workload.device.type == "cpu":  # a GPU's allocator counts by itself
                stack.enter_context(peak)
            reads = stack.enter_context(host_reads(workload.device))
            yield
        self.reads += reads
        self.steps += workload.window
        self.peak_bytes = peak.peak or None


def bare_loop(workload: Workload, pause: Callable[[], None], observer: Observer) -> None:
    """Train as anyone would write it, with all that is known to be fast."""
    arguments = training_arguments(workload.variant(), workload.context)
    allow_tf32(workload.bf16)
    model = workload.model().to(workload.device)
    model.train()
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices}, {"params": others, "weight_decay": 0.0}],
        lr=arguments.learning_rate,
        betas=(arguments.adam_beta1, arguments.adam_beta2),
        weight_decay=arguments.weight_decay,
        fused=True,
    )
    scheduler = get_scheduler(
        arguments.lr_scheduler_type,
        optimizer,
        num_warmup_steps=arguments.get_warmup_steps(arguments.max_steps),
        num_training_steps=arguments.max_steps,
        scheduler_specific_kwargs=dict(arguments.lr_scheduler_kwargs),
    )
    forward: Callable[..., Any] = torch.compile(model) if workload.compiled else model
    blocks = workload.corpus().train
    size, on_gpu = workload.micro_batch, workload.device.type == "cuda"
    batches = [
        default_collate([blocks[i]["input_ids"] for i in range(start, start + size)])
        for start in range(0, len(blocks), size)
    ]
    supply = itertools.cycle([batch.pin_memory() if on_gpu else batch for batch in batches])
    total = torch.zeros((), device=workload.device)

    def step() -> Tensor:
        for _ in range(workload.accumulation):
            ids = next(supply).to(workload.device, non_blocking=True)
            with torch.autocast(workload.device.type, torch.bfloat16, enabled=workload.bf16):
                loss = forward(input_ids=ids, labels=ids, use_cache=False).loss / workload.accumulation
            loss.backward()
            total.add_(loss.detach())
        norm = nn.utils.clip_grad_norm_(model.parameters(), arguments.max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        return norm

    while True:
        with observer.watch(workload) if observer.watching else ExitStack():
            for _ in range(workload.window):
                norm = step()
        assert np.isfinite(total.item() + norm.item())  # the log
        total.zero_()
        pause()


class _AtLogs(TrainerCallback):
    """Pause at every log of the loss; look between two of them when asked to."""

    def __init__(self, workload: Workload, pause: Callable[[], None], observer: Observer) -> None:
        self.workload, self.pause, self.observer = workload, pause, observer
        self.watching = ExitStack()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if control.should_log:
            self.watching.close()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if "loss" in (logs or {}):
            self.pause()
            if self.observer.watching:
                self.watching.enter_context(self.observer.watch(self.workload))


def stock_trainer(workload: Workload, pause: Callable[[], None], observer: Observer) -> None:
    """Train with Trainer, at its defaults where the recipe says nothing."""
    variant = workload.variant()
    recipe = training_arguments(variant, workload.context)
    arguments = TrainingArguments(
        output_dir=recipe.output_dir,
        max_steps=recipe.max_steps,
        per_device_train_batch_size=recipe.per_device_train_batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=recipe.lr_scheduler_type,
        lr_scheduler_kwargs=dict(recipe.lr_scheduler_kwargs),
        warmup_steps=recipe.warmup_steps,
        weight_decay=recipe.weight_decay,
        adam_beta1=recipe.adam_beta1,
        adam_beta2=recipe.adam_beta2,
        max_grad_norm=recipe.max_grad_norm,
        logging_steps=workload.window,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        bf16=workload.bf16,
        torch_compile=workload.compiled,
        use_cpu=workload.device.type == "cpu",
    )
    allow_tf32(workload.bf16)  # the arguments set it by an interface with which nothing compiles
    trainer = Trainer(
        model=workload.model(),
        args=arguments,
        train_dataset=rung_blocks(workload.corpus(), 0, recipe.max_steps * workload.step_tokens // workload.context),
        data_collator=default_data_collator,
        callbacks=[_AtLogs(workload, pause, observer)],
    )
    for stock in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(stock)
    trainer.train()


def progressive_trainer(workload: Workload, pause: Callable[[], None], observer: Observer) -> None:
    """Train as a ladder does."""
    train_run(workload.variant(), workload.corpus(), callbacks=[_AtLogs(workload, pause, observer)])


def with_penalty(workload: Workload, pause: Callable[[], None], observer: Observer) -> None:
    """Train as a ladder does, with Φ on every parameter and a basis for every matrix."""
    penalty = full_penalty(workload)
    train_run(workload.variant(), workload.corpus(), penalty, callbacks=[_AtLogs(workload, pause, observer)])


def full_penalty(workload: Workload) -> InheritancePenalty:
    """Return a Φ of random Fisher information and random bases of half the directions that a matrix can have."""
    model, draw = workload.model(), torch.Generator(workload.device).manual_seed(0)
    fisher, subspace = {}, {}
    for name, parameter in model.named_parameters():
        shape = parameter.shape
        fisher[name] = torch.rand(shape, generator=draw, device=workload.device).cpu()
        if parameter.ndim == 2:
            out = shape[output_dimension(model, name)]
            drawn = torch.randn(out, min(shape) // 2, generator=draw, device=workload.device)
            subspace[name] = torch.linalg.qr(drawn).Q.cpu()
    anchor = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return InheritancePenalty(anchor, fisher, subspace, ewc_lambda=EWC_LAMBDA, gamma=GAMMA)


VARIANTS: dict[str, Callable[[Workload, Callable[[], None], Observer], None]] = {
    "bare": bare_loop,
    "stock": stock_trainer,
    "ours": progressive_trainer,
    "phi": with_penalty,
}
"""The variants, in the order of their turns."""
