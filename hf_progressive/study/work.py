"""Carrying out a study's tasks: making an initial model, training a model to its end."""

import dataclasses
import gc
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_progressive import storage
from hf_progressive.config import TrainingConfig
from hf_progressive.data import Corpus, TokenBlocks, token_byte_lengths
from hf_progressive.evaluation.bits_per_byte import bits_per_byte
from hf_progressive.growth import grow_checkpoint
from hf_progressive.growth.grow import OPTIMIZER_NAME
from hf_progressive.ladder.estimates import KeptOptimizer, estimate_inheritance
from hf_progressive.ladder.rung_penalty import rung_penalty
from hf_progressive.penalty import InheritancePenalty
from hf_progressive.records.environment import hardware_name
from hf_progressive.study.models import AveragedModel, FinishedModel, InitialModel, TrainingSetup
from hf_progressive.study.runner import TaskFolder
from hf_progressive.study.tasks import Task
from hf_progressive.training.averaging import average_checkpoints
from hf_progressive.training.callbacks import evenly_spaced
from hf_progressive.training.checkpoints import step_of, write_fresh
from hf_progressive.training.precision import evaluation_precision
from hf_progressive.training.second_moments import gradient_norms
from hf_progressive.training.trainer import ProgressiveTrainer
from hf_progressive.training.training_run import TrainingRun, train_run


@dataclass(frozen=True, kw_only=True)
class Worker:
    """What carries tasks out."""

    folder: TaskFolder
    """The study's files."""

    corpus: Corpus
    """The corpus, in the order of the first seed."""

    state: PartialState
    """The process."""

    def carry_out(self, task: Task, title: str) -> dict[str, Any]:
        """Carry out a task, whose progress bar has a title, and return its result.

        Raises:
            ValueError: A growth that should keep its parent's function does not, or a model that is to be grown from
                before its decay has no step there.
            FloatingPointError: The loss is no longer finite.
        """
        if isinstance(task.work, InitialModel):
            return self.make_initial_model(task.work)
        if isinstance(task.work, AveragedModel):
            return self.average(task, task.work)
        assert isinstance(task.work, FinishedModel)
        return self.train_model(task, task.work, title)

    def average(self, task: Task, averaged: AveragedModel) -> dict[str, Any]:
        """Make an average of a stage's weights and measure it."""
        began = time.monotonic()
        target, training = self.folder.path(averaged.final), averaged.stage.setup.training
        average_checkpoints([self.folder.path(path) for path in task.needs], target)
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
        with evaluation_precision(training, self.state.device):
            measured = bits_per_byte(
                model.to(self.state.device),
                self.corpus.validation,
                token_byte_lengths(self.corpus.tokenizer),
                batch_size=training.micro_batch_size if self.state.device.type == "cpu" else None,
                progress=False,
            )
        return {
            "name": averaged.name,
            "of": list(task.needs),
            "bits_per_byte": measured["bits_per_byte"],
            "estimates": {},
            "seconds": time.monotonic() - began,
        }

    def corpus_in(self, order: int | None) -> Corpus:
        """Return the corpus in the order of a seed; None for its own, the only one of a stream."""
        train = self.corpus.train
        if not isinstance(train, TokenBlocks) or order is None:
            return self.corpus
        ordered = TokenBlocks(train.path, dtype=train.dtype, context=train.context, shuffle_seed=order)
        return dataclasses.replace(self.corpus, train=ordered)

    def make_initial_model(self, initial: InitialModel) -> dict[str, Any]:
        """Make an initial model and, where Φ is on, its parent's estimates."""
        began = time.monotonic()
        init = self.folder.path(initial.init)
        result: dict[str, Any] = {"name": initial.name, "rung": initial.rung.name, "seed": initial.seed}
        if initial.parent is None:
            write_fresh(initial.rung.size.config, self.corpus.tokenizer, init, seed=initial.draw)
            return {**result, "parent": None, "estimates": {}, "seconds": time.monotonic() - began}
        growth, source = initial.growth, self.folder.path(initial.source)
        report = grow_checkpoint(
            source,
            init,
            initial.rung.target,
            method=growth.method,
            seed=initial.draw,
            optimizer=source / OPTIMIZER_NAME if initial.carry_moments else None,
            overwrite=True,
            progress=False,
            **growth.options,
        )
        check = report.verification
        assert check is not None
        if report.preserves_function:
            difference, scale = check.max_abs_logit_diff, check.max_abs_logit
            growth.require_kept_function(initial.name, difference=difference, scale=scale)
        estimates = self._estimate(initial, initial.parent) if initial.estimates_inheritance else {}
        return {
            **result,
            "parent": initial.parent.name,
            "method": growth.method,
            "max_abs_logit_diff": check.max_abs_logit_diff,
            "preserves_function": report.preserves_function,
            "estimates": estimates,
            "seconds": time.monotonic() - began,
        }

    def _estimate(self, initial: InitialModel, parent: FinishedModel) -> dict[str, Any]:
        target = self.folder.path(initial.estimated_parent)
        making = target.with_name("estimating")
        _link_weights(self.folder.path(initial.source), making)
        setup, corpus = parent.setup, self.corpus_in(parent.setup.order)
        estimates = estimate_inheritance(
            making,
            initial.phi,
            corpus,
            range(setup.first_block, setup.first_block + parent.tokens // corpus.context),
            flops_per_token=parent.initial.rung.size.flops_per_token,
            state=self.state,
            optimizer=_kept_optimizer(making, setup.training, self.folder.result(parent.name)),
        )
        (making / OPTIMIZER_NAME).unlink(missing_ok=True)  # of no further use here
        storage.write_manifest(making)
        if target.is_dir():
            storage.remove_folder(target)
        making.rename(target)
        return estimates

    def train_model(self, task: Task, model: FinishedModel, title: str) -> dict[str, Any]:
        """Train a model to its end, from the newest checkpoint that it can go on from."""
        setup, initial = model.setup, model.initial
        flops_per_token = initial.rung.size.flops_per_token
        corpus = self.corpus_in(setup.order)
        started = self.folder.result(initial.name)
        assert started is not None
        estimates = sum(estimate["flops"] for estimate in started["estimates"].values())
        branch = self._branch(task, model)
        run = self._training_run(task, model, title, estimates, branch)
        result, trainer = train_run(run, corpus, self._penalty(setup))
        self._keep_weights(task, model, trainer, branch)
        del trainer
        gc.collect()
        branched_at = 0 if branch is None else step_of(branch)
        return {
            "name": model.name,
            "rung": initial.rung.name,
            "seed": initial.seed,
            "parent": None if initial.parent is None else initial.parent.name,
            "initial_model": initial.name,
            "fraction": model.fraction,
            "steps": model.steps,
            "warmup_steps": setup.warmup_steps,
            "decay_steps": model.decay_steps,
            "branched_at": branched_at,
            "learning_rate": setup.learning_rate,
            "bits_per_byte": result.bits_per_byte,
            "loss": result.loss,
            "tokens": result.tokens,
            "flops": {
                "per_token": flops_per_token,
                "train": result.flops,
                "estimates": estimates,
                "spent": (model.steps - branched_at) * setup.training.batch_tokens * flops_per_token,
            },
            "data": corpus.span(setup.first_block, result.tokens // corpus.context),
            "curve": result.curve,
            "training_log": result.training_log,
            "seconds": result.seconds,
            "device": hardware_name(self.state.device),
        }

    def _branch(self, task: Task, model: FinishedModel) -> Path | None:
        # The newest checkpoint of what the task uses in which the model's decay has not begun.
        found = [path for used in task.uses for path in self.folder.path(used).parent.glob("checkpoint-*")]
        complete = [path for path in found if storage.is_complete(path) and 0 < step_of(path) <= model.shared_steps]
        return max(complete, key=step_of, default=None)

    def _training_run(
        self, task: Task, model: FinishedModel, title: str, estimates: float, branch: Path | None
    ) -> TrainingRun:
        setup, initial = model.setup, model.initial
        steps = set(evenly_spaced(model.steps, setup.training.checkpoints)) - {model.steps}
        steps |= {step_of(Path(path)) for path in task.makes if path.startswith(f"{model.name}/checkpoints/")}
        if model.stable in task.makes:
            if model.decay_begins == 0:
                raise ValueError(f"{model.name}: decays from its first step, so nothing can be grown from before that")
            steps.add(model.decay_begins)
        if f"{model.final}/{OPTIMIZER_NAME}" in task.makes:
            steps.add(model.steps)
        run = TrainingRun(
            title=title,
            init=self.folder.path(initial.init),
            folder=self.folder.path(model.name),
            training=setup.training,
            learning_rate=setup.learning_rate,
            steps=model.steps,
            first_block=setup.first_block,
            flops_per_token=initial.rung.size.flops_per_token,
            flops_before=estimates,
            seed=initial.draw,
            warmup_steps=setup.warmup_steps,
            decay_steps=model.decay_steps,
            rewarm_new=setup.rewarms_new,
            checkpoint_steps=frozenset(steps),
            branch_from=branch,
            optimizer=self.folder.path(initial.init) / OPTIMIZER_NAME if initial.carry_moments else None,
        )
        if setup.phi is None:
            return run
        # The study states Φ's course over the baseline's budget, a run over its own steps: one course for all lengths.
        until = setup.phi.until * setup.cold_steps / model.steps
        return dataclasses.replace(run, phi_schedule=setup.phi.schedule, phi_until=until)

    def _penalty(self, setup: TrainingSetup) -> InheritancePenalty | None:
        if setup.phi is None:
            return None
        parent, init = self.folder.path(setup.initial.estimated_parent), self.folder.path(setup.initial.init)
        return rung_penalty(setup.phi, setup.initial.growth, init=init, parent=parent)

    def _keep_weights(
        self, task: Task, model: FinishedModel, trainer: ProgressiveTrainer, branch: Path | None
    ) -> None:
        # What others grow from: the weights after the decay, those before it, and Adam's moments of either.
        final, stable = self.folder.path(model.final), self.folder.path(model.stable)
        if model.final in task.makes:
            last = self.folder.path(model.checkpoint(model.steps))
            if storage.is_complete(last):
                _link_weights(last, final)
            else:
                trainer.save_pretrained_whole(final)
        if model.stable in task.makes:
            own = self.folder.path(model.checkpoint(model.decay_begins))
            before = own if storage.is_complete(own) else branch
            assert before is not None
            _link_weights(before, stable)


def _kept_optimizer(folder: Path, training: TrainingConfig, trained: Mapping[str, Any] | None) -> KeptOptimizer | None:
    # What is beside the weights, if a task has asked for it; what the whole run logged tells the clipping.
    if trained is None or not (folder / OPTIMIZER_NAME).is_file():
        return None
    return KeptOptimizer(
        path=folder / OPTIMIZER_NAME,
        batch_tokens=training.batch_tokens,
        max_grad_norm=training.max_grad_norm,
        gradient_norms=gradient_norms(trained["training_log"]),
    )


def _link_weights(source: Path, target: Path) -> None:
    # Make a folder of a checkpoint's model, tokenizer and moments, linked where the file system can.
    left_out = {"trainer_state.json", "training_args.bin", "scheduler.pt", storage.MANIFEST_NAME}
    files = storage.read_json(source / storage.MANIFEST_NAME)["files"]
    kept = {
        name: entry.get("sha256")
        for name, entry in files.items()
        if "/" not in name and name not in left_out and not name.startswith("rng_state")
    }
    with storage.atomic_folder(target, overwrite=True, sha256=kept) as temporary:
        for name in kept:
            storage.link_or_copy(source / name, temporary / name)
