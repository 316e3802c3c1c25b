"""The steps of a ladder, and their order: of a rung trained here, of a first rung trained elsewhere, of a baseline."""

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_progressive import storage
from hf_progressive.config import LadderConfig
from hf_progressive.evaluation.core.evaluate import evaluate_core
from hf_progressive.growth import grow_checkpoint
from hf_progressive.growth.grow import OPTIMIZER_NAME
from hf_progressive.ladder import external_model
from hf_progressive.ladder.estimates import KeptOptimizer, estimate_inheritance
from hf_progressive.ladder.record_builder import rung_record
from hf_progressive.ladder.rung_penalty import rung_penalty
from hf_progressive.ladder.rung_work import RungWork
from hf_progressive.records.from_parent import Estimates, GrowthRecord
from hf_progressive.records.measurements import Baseline, CoreScore
from hf_progressive.training.averaging import average_checkpoints
from hf_progressive.training.checkpoints import write_fresh
from hf_progressive.training.measurement import measure_like_run
from hf_progressive.training.precision import evaluation_precision
from hf_progressive.training.second_moments import gradient_norms
from hf_progressive.training.training_run import TrainingRun, train_run

logger = logging.getLogger(__name__)


def initialize(work: RungWork) -> None:
    """Make the initial checkpoint: fresh weights on the first rung and for a baseline, else grown ones."""
    run, rung, growth = work.run, work.rung, work.growth_config
    seed = run.config.seed + rung.index

    def write() -> None:
        if storage.is_complete(work.init):
            return
        if work.parent is None:
            write_fresh(rung.size.config, run.corpus.tokenizer, work.init, seed=seed)
            return
        grow_checkpoint(
            work.parent,
            work.init,
            rung.target,
            method=growth.method,
            dtype="float32",
            seed=seed,
            optimizer=work.parent / OPTIMIZER_NAME if carries_moments(run.config) else None,
            overwrite=True,
            **growth.options,
        )

    run.on_first_process(write)


def verify_growth(work: RungWork) -> None:
    """Read the growth's record, and stop unless the measured difference is what its method promises."""
    if work.parent is None:
        return
    growth = GrowthRecord.read(work.init / "growth.json")
    check = growth.verification
    assert check is not None
    if growth.preserves_function:
        difference, scale = check.max_abs_logit_diff, check.max_abs_logit
        work.growth_config.require_kept_function(f"rung {work.rung.name}", difference=difference, scale=scale)
    # The record is published, and says of the parent who it is, not where it lay on this machine.
    work.growth = dataclasses.replace(growth, source={**growth.source, "name": work.rung.parent})


def make_penalty(work: RungWork) -> None:
    """Make Φ of the parent's estimates, in the coordinates of the initial checkpoint."""
    if work.parent is not None:
        work.penalty = rung_penalty(work.phi, work.growth_config, init=work.init, parent=work.parent)


def train(work: RungWork) -> None:
    """Train, from the initial checkpoint or the newest one of a run that was stopped, and save the weights."""
    run, corpus = _training_run(work), work.run.corpus
    callbacks = [] if work.live is None else [work.live.callback(run, corpus)]
    result, trainer = train_run(run, corpus, work.penalty, callbacks)
    if not work.averaged:
        trainer.save_pretrained_whole(work.trained, moments=_read_at_the_end(work))
    work.result, work.penalty = result, None  # neither model nor penalty is held any longer
    work.seconds["train"] = result.seconds - result.evaluation_seconds
    work.seconds["evaluate"] = result.evaluation_seconds


def carries_moments(config: LadderConfig) -> bool:
    """Tell whether the optimizer's state grows along with the weights."""
    return config.schedule == "trunk" and config.trunk.moments == "grown"


def _read_at_the_end(work: RungWork) -> bool:
    # Whether the optimizer that trained the final weights is read for the next rung's Φ.
    reads = work.run.plan.next_phi(work.rung).reads_optimizer
    return reads and work.rung.hands_on == "final" and not work.is_baseline


def average(work: RungWork) -> None:
    """Make a member of the trunk's last weights, if that is how it is finished, and measure it."""
    if work.averaged:
        work.run.on_first_process(lambda: average_checkpoints([*work.averaged.values()], work.trained))
        measured = measure_like_run(_training_run(work), work.trained, work.run.corpus)
        work.measured = dataclasses.asdict(measured)


def _training_run(work: RungWork) -> TrainingRun:
    rung, config, training = work.rung, work.run.config, work.training
    training_run = TrainingRun(
        title=f"{rung.name} cold" if work.is_baseline else rung.name,
        init=work.init,
        folder=work.folder,
        training=training,
        learning_rate=rung.cold_learning_rate if work.is_baseline else rung.learning_rate,
        steps=rung.size.steps if work.is_baseline else rung.steps,
        first_block=rung.first_block,
        flops_per_token=rung.size.flops_per_token,
        seed=config.seed,
        stable=work.stable if rung.keeps_stable and not work.is_baseline else None,
    )
    if work.is_baseline:
        return training_run
    reads_optimizer = rung.hands_on == "stable" and work.run.plan.next_phi(rung).reads_optimizer
    training_run = dataclasses.replace(training_run, stable_moments=reads_optimizer)
    parent, until = work.parent_record, work.phi.until
    if rung.trunk is not None:
        until *= rung.trunk.steps / rung.steps  # a branch must not change the trunk
        training_run = dataclasses.replace(
            training_run,
            warmup_steps=rung.trunk.warmup_steps,
            decay_steps=rung.trunk.decay_steps,
            rewarm_new=parent is not None and config.trunk.rewarm == "new",
            optimizer=work.init / OPTIMIZER_NAME if parent is not None and carries_moments(config) else None,
            stable_moments=reads_optimizer or (carries_moments(config) and rung.trunk.member != "end"),
            kept_weights={step: folder for step, folder in work.averaged.items() if folder != work.stable},
        )
    if parent is None:
        return training_run
    return dataclasses.replace(
        training_run, flops_before=parent.estimates.flops, phi_schedule=work.phi.schedule, phi_until=until
    )


def estimate(work: RungWork) -> None:
    """Estimate what the next rung's Φ needs, on the weights that the next rung grows from."""
    run, rung = work.run, work.rung
    phi = run.plan.next_phi(rung)
    checkpoint = work.stable if rung.hands_on == "stable" else work.trained
    tokens = rung.tokens - rung.branch_tokens
    read = range(rung.first_block, rung.first_block + tokens // run.corpus.context)
    known: Mapping[str, Any] = {}
    if work.origin is not None:
        # What it read, or if that is not at hand, the start of the corpus.
        read = range(external_model.first_new_block(work.origin, run.corpus) or phi.most_sequences)
        known = work.origin.record.estimates.to_dict() if work.origin.record else {}
    per_token = rung.size.flops_per_token
    estimates = estimate_inheritance(
        checkpoint,
        phi,
        run.corpus,
        read,
        flops_per_token=per_token,
        state=run.state,
        known=known,
        optimizer=_kept_optimizer(work, checkpoint) if phi.reads_optimizer else None,
    )
    work.estimates = Estimates.from_dict(estimates)
    if _read_at_the_end(work):  # it is of no use to anybody else
        run.on_first_process(lambda: (checkpoint / OPTIMIZER_NAME).unlink(missing_ok=True))
    if estimates:
        run.on_first_process(lambda: storage.write_manifest(checkpoint))


def _kept_optimizer(work: RungWork, checkpoint: Path) -> KeptOptimizer | None:
    fisher, training = work.run.plan.next_phi(work.rung).fisher, work.training
    if work.origin is not None:
        if fisher.optimizer is None or fisher.batch_tokens is None:
            return None
        return KeptOptimizer(path=Path(fisher.optimizer), batch_tokens=fisher.batch_tokens)
    assert work.result is not None
    last = work.rung.trunk.steps if work.rung.trunk is not None else work.rung.steps
    norms = gradient_norms(work.result.training_log)
    return KeptOptimizer(
        path=checkpoint / OPTIMIZER_NAME,
        batch_tokens=training.batch_tokens,
        max_grad_norm=training.max_grad_norm,
        gradient_norms={step: norm for step, norm in norms.items() if step <= last},
    )


def evaluate_on_core(work: RungWork) -> None:
    """Evaluate the trained model on CORE, if the configuration asks for it."""
    run, options = work.run, work.run.config.core
    if options is None:
        return
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(work.trained, dtype=torch.float32)
    with evaluation_precision(work.training, run.state.device):
        result = evaluate_core(
            model.to(run.state.device),
            run.corpus.tokenizer,
            options.bundle,
            tasks=options.tasks or None,
            max_per_task=options.max_per_task,
            batch_size=options.batch_size,
            resume_file=work.folder / "core.json",
        )
    work.core = CoreScore.from_dict(result.to_dict())


def record(work: RungWork) -> None:
    """Make the rung's final folder, with its record."""
    work.run.finish(work.rung.name, source=work.trained, record=lambda: rung_record(work))


def match(work: RungWork) -> None:
    """Add the baseline to its rung's record, and what inheritance saved."""
    run, name, result, parent = work.run, work.rung.name, work.result, work.parent_record
    assert result is not None
    assert parent is not None
    baseline = Baseline.from_dict({**dataclasses.asdict(result), "learning_rate": work.rung.cold_learning_rate})
    run.finish(name, source=run.final(name), record=lambda: run.record(name).with_baseline(baseline, parent))


@dataclass(frozen=True)
class Step:
    """One step of the work on a rung."""

    name: str

    do: Callable[[RungWork], None]
    """Reads what the steps before have made, and adds to it."""

    seconds: str | None = None
    """The key under which the rung's record has the step's time; None where it takes none to speak of."""


TRAINED_HERE = (
    Step("initialize", initialize, seconds="grow"),
    Step("verify the growth", verify_growth),
    Step("make the penalty", make_penalty),
    Step("train", train, seconds="train"),
    Step("average", average, seconds="average"),
    Step("estimate for the next rung", estimate, seconds="phi"),
    Step("evaluate on CORE", evaluate_on_core, seconds="core"),
    Step("record", record),
)

TRAINED_ELSEWHERE = (
    Step("copy", external_model.copy, seconds="fetch"),
    Step("measure", external_model.measure, seconds="evaluate"),
    Step("estimate for the next rung", estimate, seconds="phi"),
    Step("evaluate on CORE", evaluate_on_core, seconds="core"),
    Step("record", external_model.record),
)

BASELINE = (
    Step("initialize", initialize, seconds="grow"),
    Step("train", train, seconds="train"),
    Step("match", match),
)
"""The same architecture from scratch on its full budget, after all rungs."""


def carry_out(order: tuple[Step, ...], work: RungWork) -> None:
    """Take steps one after the other, and note how long each took."""
    for step in order:
        logger.debug("%s: %s", work.rung.name, step.name)
        if step.seconds is not None and work.live is not None:
            work.live.begin(step.name)
        started = time.monotonic()
        step.do(work)
        if step.seconds is not None:  # training knows what of its time validation took
            work.seconds.setdefault(step.seconds, time.monotonic() - started)
