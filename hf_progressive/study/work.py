"""One task after the other: making a start, training a run."""

import dataclasses
import gc
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import AutoConfig, TrainerCallback

from hf_progressive import storage
from hf_progressive.data import Corpus, TokenBlocks
from hf_progressive.growth import grow_checkpoint, plan_growth
from hf_progressive.growth.optimizer import read_optimizer_state
from hf_progressive.ladder.estimates import estimate_inheritance
from hf_progressive.ladder.rung_penalty import rung_penalty
from hf_progressive.penalty import InheritancePenalty
from hf_progressive.study.folder import OPTIMIZER_NAME, StudyFolder, link_weights
from hf_progressive.study.tasks import Group, Run, Start, TaskGraph
from hf_progressive.training.checkpoints import write_fresh
from hf_progressive.training.training_run import TrainingRun, evenly_spaced, train_run

logger = logging.getLogger(__name__)


class CarriedMoments(TrainerCallback):
    """Put grown moments of Adam into a run's optimizer before its first step.

    Args:
        path: `optimizer.pt` beside the initial checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Load the moments; learning rate and weight decay stay this run's own.

        Args:
            args: As for any callback.
            state: As for any callback.
            control: As for any callback.
            **kwargs: As for any callback; `optimizer` is used.
        """
        if state.global_step > 0:  # a resumed run has them in its checkpoint
            return
        optimizer = kwargs["optimizer"]
        moments = read_optimizer_state(self._path)["state"]
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})


@dataclass(frozen=True, kw_only=True)
class Worker:
    """What carries tasks out."""

    folder: StudyFolder
    """The study's files."""

    corpus: Corpus
    """The corpus, in the order of the first seed."""

    state: PartialState
    """The process."""

    def corpus_of(self, seed: int) -> Corpus:
        """Return the corpus in a seed's order; tokenizer, blocks and validation are the same for all.

        Args:
            seed: The study's seed.

        Returns:
            The corpus. A stream, or a corpus without a shuffle seed, has one order only.
        """
        graph: TaskGraph = self.folder.plan.graph
        train, order = self.corpus.train, graph.order_of(seed)
        if not isinstance(train, TokenBlocks) or order is None:
            return self.corpus
        ordered = TokenBlocks(train.path, dtype=train.dtype, context=train.context, shuffle_seed=order)
        return dataclasses.replace(self.corpus, train=ordered)

    def make_start(self, start: Start) -> dict[str, Any]:
        """Make an initial checkpoint and, where Φ is on, its parent's estimates.

        Args:
            start: What to make.

        Returns:
            The result: the growth's check, the estimates with their FLOPs, seconds.

        Raises:
            ValueError: A growth that should keep its parent's function does not.
        """
        began = time.monotonic()
        folder = self.folder.weights(start)
        init = folder / "init"
        record: dict[str, Any] = {"kind": "start", "name": start.name, "rung": start.rung.name, "seed": start.seed}
        if start.parent is None:
            write_fresh(start.rung.size.config, self.corpus.tokenizer, init, seed=start.draw)
            return {**record, "parent": None, "estimates": {}, "seconds": time.monotonic() - began}
        assert start.ladder is not None
        growth, parent = start.ladder.growth, self.folder.parent_weights(start)
        report = grow_checkpoint(
            parent,
            init,
            start.rung.target,
            method=growth.method,
            seed=start.draw,
            optimizer=parent / OPTIMIZER_NAME if start.carry_moments else None,
            overwrite=True,
            progress=False,
            **growth.options,
        )
        check = report.verification
        assert check is not None
        limit = growth.max_relative_logit_difference
        if report.preserves_function and check.max_abs_logit_diff > limit * check.max_abs_logit:
            raise ValueError(
                f"{start.name}: its logits differ from its parent's by {check.max_abs_logit_diff:.3g} at a scale of"
                f" {check.max_abs_logit:.3g}, above growth.max_relative_logit_difference {limit:.0e}"
            )
        estimates = self._estimate(start, parent) if start.estimates_inheritance else {}
        return {
            **record,
            "parent": start.parent.name,
            "method": growth.method,
            "max_abs_logit_diff": check.max_abs_logit_diff,
            "preserves_function": report.preserves_function,
            "estimates": estimates,
            "seconds": time.monotonic() - began,
        }

    def _estimate(self, start: Start, parent: Path) -> dict[str, Any]:
        assert start.parent is not None
        assert start.ladder is not None
        run, target = start.parent, self.folder.weights(start) / "parent"
        making = target.with_name("estimating")
        link_weights(parent, making)
        corpus = self.corpus_of(start.seed)
        blocks = run.tokens // corpus.context
        estimates = estimate_inheritance(
            making,
            start.ladder.phi,
            corpus,
            range(run.group.first_block, run.group.first_block + blocks),
            flops_per_token=run.start.rung.size.flops_per_token,
            state=self.state,
        )
        storage.write_manifest(making)
        shutil.rmtree(target, ignore_errors=True)
        making.rename(target)
        return estimates

    def train_run(self, run: Run, title: str) -> dict[str, Any]:
        """Train one model to its end, from the newest checkpoint that it can go on from.

        Args:
            run: What to train.
            title: What the progress bar calls it.

        Returns:
            The result: bits per byte, loss, tokens, FLOPs, the curve, what was read, seconds.
        """
        group, start = run.group, run.start
        corpus = self.corpus_of(start.seed)
        started = self.folder.result(start)
        assert started is not None
        estimates = sum(estimate["flops"] for estimate in started["estimates"].values())
        branch = self.folder.branch_checkpoint(run, exactly=False)
        training_run = self._training_run(run, title, estimates, branch)
        callbacks = [CarriedMoments(training_run.init / OPTIMIZER_NAME)] if start.carry_moments else []
        result, trainer = train_run(training_run, corpus, self._penalty(group), callbacks)
        if self.folder.heirs(run):
            self._keep_weights(run, trainer.save_pretrained_whole, branch)
        del trainer
        gc.collect()
        branched_at = int(branch.name.rpartition("-")[2]) if branch else 0
        tokens_spent = (run.steps - branched_at) * group.training.batch_tokens
        return {
            "kind": "run",
            "name": run.name,
            "rung": start.rung.name,
            "seed": start.seed,
            "parent": None if start.parent is None else start.parent.name,
            "start": start.name,
            "fraction": run.fraction,
            "steps": run.steps,
            "warmup_steps": group.warmup_steps,
            "decay_steps": run.decay_steps,
            "branched_at": branched_at,
            "learning_rate": group.learning_rate,
            "bits_per_byte": result.bits_per_byte,
            "loss": result.loss,
            "tokens": result.tokens,
            "flops": {
                "per_token": start.rung.size.flops_per_token,
                "train": result.flops,
                "estimates": estimates,
                "spent": tokens_spent * start.rung.size.flops_per_token,
            },
            "data": corpus.span(group.first_block, result.tokens // corpus.context),
            "curve": result.curve,
            "training_log": result.training_log,
            "seconds": result.seconds,
        }

    def _training_run(self, run: Run, title: str, estimates: float, branch: Path | None) -> TrainingRun:
        group, start = run.group, run.start
        heirs = self.folder.heirs(run)
        steps = set(evenly_spaced(run.steps, group.training.checkpoints)) - {run.steps}
        if run.is_trunk:
            steps |= {other.branch_step for other in group.runs if other is not run}
        if any(heir.ladder is not None and heir.ladder.growth.parent == "stable" for heir in heirs):
            steps.add(run.branch_step)
        if any(heir.carry_moments for heir in heirs):
            steps.add(run.steps)
        training_run = TrainingRun(
            title=title,
            init=self.folder.weights(start) / "init",
            folder=self.folder.weights(run),
            training=group.training,
            learning_rate=group.learning_rate,
            steps=run.steps,
            first_block=group.first_block,
            flops_per_token=start.rung.size.flops_per_token,
            flops_before=estimates,
            seed=start.draw,
            warmup_steps=group.warmup_steps,
            checkpoint_steps=frozenset(steps - {0}),
            branch_from=branch,
        )
        if group.phi is None:
            return training_run
        # The study states Φ's course over the cold budget, a run over its own steps: one course for all lengths.
        until = group.phi.until * group.cold_steps / run.steps
        return dataclasses.replace(training_run, phi_schedule=group.phi.schedule, phi_until=until)

    def _penalty(self, group: Group) -> InheritancePenalty | None:
        if group.phi is None:
            return None
        start = group.start
        assert start.ladder is not None
        folder, growth = self.folder.weights(start), start.ladder.growth
        configs = [AutoConfig.from_pretrained(folder / part) for part in ("parent", "init")]
        plan = plan_growth(*configs, method=growth.method, **growth.options)
        return rung_penalty(group.phi, anchor=folder / "init", parent=folder / "parent", growth=plan)

    def _keep_weights(self, run: Run, save: Callable[[Path], None], branch: Path | None) -> None:
        # What the run's heirs grow from: the weights after the decay, those before it, and Adam's moments.
        folder, heirs = self.folder.weights(run), self.folder.heirs(run)
        last = folder / "checkpoints" / f"checkpoint-{run.steps}"
        if storage.is_complete(last):
            link_weights(last, folder / "final")
        else:
            save(folder / "final")
        if any(heir.ladder is not None and heir.ladder.growth.parent == "stable" for heir in heirs):
            own = folder / "checkpoints" / f"checkpoint-{run.branch_step}"
            before = own if storage.is_complete(own) else branch
            assert before is not None
            link_weights(before, folder / "stable")
