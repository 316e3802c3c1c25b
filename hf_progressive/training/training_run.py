"""One training run of a ladder: an initial checkpoint, a stretch of the corpus, a schedule; out comes a curve.

A rung and its baseline are two runs: they differ in their initial checkpoint, their penalty and how long they train,
and in nothing else. A run stopped at any moment continues from its newest complete checkpoint.
"""

import dataclasses
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, TrainerCallback, default_data_collator
from transformers.trainer_callback import DefaultFlowCallback, PrinterCallback, ProgressCallback

from hf_progressive.config import TrainingConfig
from hf_progressive.data import Corpus, rung_blocks, without_padding
from hf_progressive.distributed.float32_products import own_float32_products
from hf_progressive.penalty import InheritancePenalty
from hf_progressive.training.arguments import ProgressiveTrainingArguments, check_arguments
from hf_progressive.training.callbacks import (
    CarriedMoments,
    KeepWeights,
    Milestones,
    ProgressBar,
    SavedTokenizer,
    evenly_spaced,
)
from hf_progressive.training.checkpoints import newest_complete_checkpoint, step_of
from hf_progressive.training.flops import FORWARD_SHARE
from hf_progressive.training.history import training_log, validation_curve
from hf_progressive.training.muon import muon_peak
from hf_progressive.training.precision import (
    attend_without_masks,
    blocks_of_one_size,
    describe,
    device_settings,
    refuse_fp16_on_a_processor,
)
from hf_progressive.training.rewarm import RewarmNewEntries
from hf_progressive.training.throughput import ThroughputMeter, elapsed_at
from hf_progressive.training.trackers import tracked_apart
from hf_progressive.training.trainable import restrict_run
from hf_progressive.training.trainer import ProgressiveTrainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """What one training run starts from and does."""

    title: str
    """What the progress bar and the logs call it."""

    init: Path
    """Folder of the initial checkpoint."""

    folder: Path
    """Where its checkpoints go, in `checkpoints/`."""

    training: TrainingConfig
    """Batch, schedule and optimizer."""

    learning_rate: float
    """Peak learning rate."""

    steps: int
    """Optimizer steps."""

    first_block: int
    """The first block of the corpus that it reads; it reads on from there."""

    flops_per_token: float
    """Training FLOPs per token, to put FLOPs beside every validation point."""

    flops_before: float = 0.0
    """FLOPs spent on this run before its first step: the estimates of Fisher information and subspace."""

    seed: int = 0
    """Seed of whatever the run draws (dropout)."""

    stable: Path | None = None
    """Folder for the weights from before the decay; None keeps none."""

    kept_weights: Mapping[int, Path] = dataclasses.field(default_factory=dict)
    """Folders for the weights after some steps, counted from 1."""

    stable_moments: bool = False
    """Whether the optimizer's state is kept beside the weights from before the decay."""

    phi_schedule: str = "constant"
    """Course of λ and γ."""

    phi_until: float = 1.0
    """Share of the steps after which λ and γ have reached 0; above 1, that is after the last step."""

    warmup_steps: int | None = None
    """Steps of warm-up; None takes the share of the steps that `training` states."""

    decay_steps: int | None = None
    """Steps of decay, at the end; None takes the share of the steps that `training` states."""

    rewarm_new: bool = False
    """Whether the warm-up is that of the entries alone which the parent of the initial checkpoint had not: the others
    learn at the full rate from the first step."""

    optimizer: Path | None = None
    """An optimizer's state, `optimizer.pt`, that the first step goes on from; None begins at 0."""

    checkpoint_steps: frozenset[int] | None = None
    """Steps after which to save a checkpoint, all of which are kept; None saves and rotates as `training` says."""

    branch_from: Path | None = None
    """A checkpoint of another run to go on from, until there is one of this run."""

    @property
    def schedule(self) -> tuple[int, int]:
        """Steps of warm-up and of decay."""
        return schedule_steps(self.training, self.steps, self.warmup_steps, self.decay_steps)

    def curve(self, history: Sequence[Mapping[str, Any]], corpus: Corpus) -> list[dict[str, Any]]:
        """Return the validations that the trainer logged, with tokens and FLOPs."""
        return validation_curve(
            history,
            batch_tokens=self.training.batch_tokens,
            flops_per_token=self.flops_per_token,
            flops_before=self.flops_before,
            bits_per_nat_token=corpus.bits_per_nat_token,
        )


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What one training run measured."""

    loss: float
    """Validation loss at the last step, in nats per token."""

    bits_per_byte: float
    """Validation bits per byte at the last step."""

    tokens: int
    """Tokens trained on."""

    flops: float
    """FLOPs of the training alone."""

    curve: list[dict[str, Any]]
    """Validation points from step 0 to the last: step, tokens, flops, loss, bits_per_byte."""

    training_log: list[dict[str, Any]]
    """What the trainer logged along the way."""

    seconds: float
    """Wall-clock seconds, validation included; of a run that was stopped, up to its checkpoint and since."""

    evaluation_tokens: int = 0
    """Tokens of the validation part that were read, over all validation points; of a branch, over its own."""

    evaluation_flops: float = 0.0
    """FLOPs of these forward passes, which `flops` leaves out."""

    evaluation_seconds: float = 0.0
    """Seconds of `seconds` that validation took."""

    computed_in: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Precision, compiled or not, TF32 or not, and kind of attention."""

    throughput: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Tokens per second, MFU and where the time went (see `ThroughputMeter.summary`), with the speed at every log."""


def micro_batches(training: TrainingConfig, context: int, processes: int) -> tuple[int, int]:
    """Return blocks per micro-batch and process, and micro-batches per step: the fewest that fit.

    >>> micro_batches(TrainingConfig(batch_tokens=4096, micro_batch_size=6), context=256, processes=2)
    (4, 2)
    """
    blocks = training.batch_tokens // context
    if blocks % processes:
        raise ValueError(
            f"training.batch_tokens: {training.batch_tokens} is {blocks} blocks of {context}, not divisible among"
            f" {processes} processes; use a multiple of {context * processes}"
        )
    per_process = blocks // processes
    size = next(n for n in range(min(training.micro_batch_size, per_process), 0, -1) if per_process % n == 0)
    return size, per_process // size


def training_arguments(run: TrainingRun, context: int) -> ProgressiveTrainingArguments:
    """Return Trainer's arguments for a run: warm-up, constant rate, linear decay; blocks in order.

    Evaluation and saving are left to the run's own `Milestones`.
    """
    training = run.training
    check_arguments(training.arguments)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    size, accumulation = micro_batches(training, context, processes)
    warmup, decay = run.schedule
    settings: dict[str, Any] = {
        **device_settings(training),
        "report_to": "none",
        "save_total_limit": 2,
        "dataloader_num_workers": 0,
        "ddp_find_unused_parameters": False,  # every weight of a language model takes part in every loss
        "use_cpu": not torch.accelerator.is_available(),
        "disable_tqdm": False,
        "run_name": run.title,
        **training.arguments,
    }
    if run.checkpoint_steps is not None:
        settings["save_total_limit"] = None
    args = ProgressiveTrainingArguments(
        output_dir=str(run.folder / "checkpoints"),
        max_steps=run.steps,
        per_device_train_batch_size=size,
        per_device_eval_batch_size=settings.pop("per_device_eval_batch_size", training.micro_batch_size),
        gradient_accumulation_steps=accumulation,
        learning_rate=run.learning_rate,
        muon_learning_rate=muon_peak(training, run.learning_rate),
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={
            "num_decay_steps": decay,
            "decay_type": "linear",
            "min_lr_ratio": training.final_lr_ratio,
        },
        warmup_steps=0 if run.rewarm_new else warmup,
        weight_decay=training.weight_decay,
        adam_beta1=training.adam_beta1,
        adam_beta2=training.adam_beta2,
        max_grad_norm=training.max_grad_norm,
        train_sampling_strategy="sequential",
        prediction_loss_only=True,
        eval_strategy="no",
        save_strategy="steps",  # the milestones say which; "no" would also refuse what a signal to stop asks for
        logging_strategy="no",
        seed=run.seed,
        phi_schedule=run.phi_schedule,
        phi_until=run.phi_until,
        **settings,
    )
    keep_to_one_gpu(args)
    refuse_fp16_on_a_processor(args)
    return args


def keep_to_one_gpu(args: ProgressiveTrainingArguments) -> None:
    """Let a process use one GPU, also where it sees several.

    Trainer would copy the model to each of them in every step (`DataParallel`) and make the step that many times as
    large, so that tokens, schedule and curve would be others than the ladder's.
    """
    if args.n_gpu > 1:
        logger.warning("one of %d GPUs is used; start with accelerate launch to use all of them", args.n_gpu)
        args._n_gpu = 1


def schedule_steps(
    training: TrainingConfig, steps: int, warmup: int | None = None, decay: int | None = None
) -> tuple[int, int]:
    """Return the steps of warm-up and of decay, each by its share unless it is given; at least one of each if any.

    >>> schedule_steps(TrainingConfig(warmup_fraction=0.02, decay_fraction=0.5), 200)
    (4, 100)
    """
    warmup = math.ceil(training.warmup_fraction * steps) if warmup is None else min(warmup, steps)
    decay = math.ceil(training.decay_fraction * steps) if decay is None else decay
    return warmup, min(decay, steps - warmup)


def block_trainer(
    args: ProgressiveTrainingArguments,
    model: PreTrainedModel,
    blocks: Any,
    *,
    context: int,
    penalty: InheritancePenalty | None,
    callbacks: Sequence[TrainerCallback],
    **options: Any,
) -> ProgressiveTrainer:
    """Build the trainer of a run: a model that learns from blocks of `context` tokens, and from now on sees no others.

    Φ is in the coordinates of the model. The callbacks evaluate, save, log and stop the run: nothing else does.
    Further options are as for `Trainer`.
    """
    attend_without_masks(model, context)
    tokenizer = options.pop("processing_class", None)
    trainer = ProgressiveTrainer(
        model=model,
        args=args,
        train_dataset=blocks,
        data_collator=default_data_collator,  # blocks are of one length: nothing to pad, and GPT-2 has no pad token
        penalty=penalty,
        callbacks=list(callbacks),
        processing_class=tokenizer and without_padding(tokenizer),  # Trainer gives the model its special tokens
        **options,
    )
    if tokenizer is not None:
        trainer.add_callback(SavedTokenizer(trainer, tokenizer))
    for stock in (DefaultFlowCallback, ProgressCallback, PrinterCallback):
        trainer.remove_callback(stock)
    return trainer


@own_float32_products()
def train_run(
    run: TrainingRun,
    corpus: Corpus,
    penalty: InheritancePenalty | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> tuple[TrainingResult, ProgressiveTrainer]:
    """Train one run, from its initial checkpoint or from its newest complete one; Φ is in its model's coordinates.

    Returns:
        What was measured, and the trainer, which holds the trained model.

    Raises:
        FloatingPointError: The loss is no longer finite.
    """
    started, context = time.monotonic(), corpus.context
    own = newest_complete_checkpoint(run.folder / "checkpoints")
    args = training_arguments(run, context)
    blocks_per_step = run.training.batch_tokens // context
    spaced = evenly_spaced(run.steps, run.training.checkpoints)
    checkpoints = spaced if run.checkpoint_steps is None else run.checkpoint_steps
    model = AutoModelForCausalLM.from_pretrained(run.init, dtype=torch.float32)
    trainer = block_trainer(
        args,
        model,
        rung_blocks(corpus, run.first_block, run.steps * blocks_per_step),
        context=context,
        penalty=penalty,
        eval_dataset=corpus.validation,
        processing_class=corpus.tokenizer,
        callbacks=[
            Milestones(steps=run.steps, evaluations=run.training.evaluations, checkpoints=checkpoints),
            ProgressBar(run.title, corpus.bits_per_nat_token),
            *restrict_run(model, run.init, run.training.trainable),
            *callbacks,
        ],
    )
    meter = trainer.meter = ThroughputMeter(
        step_tokens=run.training.batch_tokens,
        flops_per_token=run.flops_per_token,
        device=trainer.args.device,
        processes=trainer.args.world_size,
        started=started,
        before=elapsed_at(own),
    )
    trainer.begun_from = run.init
    trainer.add_callback(meter)
    warmup, decay = run.schedule
    if run.rewarm_new and warmup:
        floor = run.training.final_lr_ratio  # where the scheduler's own warm-up begins, too
        trainer.add_callback(RewarmNewEntries(trainer.bare_model, run.init, steps=warmup, floor=floor))
    if run.optimizer is not None:
        trainer.add_callback(CarriedMoments(run.optimizer))
    if run.stable is not None:
        save = partial(trainer.save_pretrained_whole, moments=run.stable_moments)
        trainer.add_callback(KeepWeights(save, run.stable, run.steps - decay))
    for step, folder in run.kept_weights.items():
        trainer.add_callback(KeepWeights(trainer.save_pretrained_whole, folder, step))
    checkpoint = own or run.branch_from
    if checkpoint is None:
        args.eval_on_start = True  # the curve's first point; a resumed run has it in its log already
    else:
        logger.info("%s: continues from %s", run.title, checkpoint.name)
    with blocks_of_one_size(trainer), tracked_apart(args):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None, branches=own is None)
        return _measure(run, corpus, trainer, meter), trainer


def _measure(run: TrainingRun, corpus: Corpus, trainer: ProgressiveTrainer, meter: ThroughputMeter) -> TrainingResult:
    history: Sequence[dict[str, Any]] = trainer.state.log_history
    curve, (log, speeds) = run.curve(history, corpus), training_log(history)
    last = curve[-1]
    assert last["step"] == run.steps, f"the last validation was at step {last['step']} of {run.steps}"
    own = [point for point in curve if run.branch_from is None or point["step"] > step_of(run.branch_from)]
    validated, elapsed = len(own) * len(corpus.validation) * corpus.context, meter.elapsed()
    return TrainingResult(
        loss=last["loss"],
        bits_per_byte=last["bits_per_byte"],
        tokens=last["tokens"],
        flops=last["tokens"] * run.flops_per_token,
        curve=curve,
        training_log=log,
        seconds=elapsed["seconds"],
        evaluation_tokens=validated,
        evaluation_flops=validated * run.flops_per_token * FORWARD_SHARE,
        computed_in=describe(trainer),
        evaluation_seconds=elapsed["evaluation_seconds"],
        throughput={**meter.summary(), "log": speeds},
    )
