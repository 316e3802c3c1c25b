"""The rung loop: grow, verify, train with Φ, measure, record; then the baselines.

Every step leaves complete files or none, so that a run killed at any moment and started again in the same folder goes
on where it was and ends with the same bits. Under `accelerate launch` the first process writes and the others wait.
"""

import dataclasses
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from hf_progressive import storage
from hf_progressive.config import LadderConfig
from hf_progressive.data import Corpus, prepare_corpus, reading_ahead
from hf_progressive.distributed.processes import current_processes, main_process_first
from hf_progressive.evaluation.core.evaluate import evaluate_core
from hf_progressive.growth import grow_checkpoint, plan_growth
from hf_progressive.ladder.estimates import estimate_inheritance
from hf_progressive.ladder.external_model import copy_origin, data_read, first_new_block, measure_origin
from hf_progressive.ladder.preparation import CORPUS_NAME
from hf_progressive.ladder.record import ladder_record, matched, origin_record, rung_record
from hf_progressive.ladder.run_folder import claim, exclusive
from hf_progressive.ladder.rung_penalty import rung_penalty
from hf_progressive.planning.ladder_plan import LadderPlan, RungPlan, plan_ladder
from hf_progressive.records.origin import Origin, locate_origin
from hf_progressive.storage.full_disk import FullDiskNamed
from hf_progressive.training.checkpoints import write_fresh
from hf_progressive.training.precision import evaluation_precision
from hf_progressive.training.training_run import TrainingRun, train_run

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RungResult:
    """A finished rung: its checkpoint's folder and its record."""

    folder: Path
    """The trained checkpoint, `RUN/NAME/final`."""

    record: dict[str, Any]
    """What `rung.json` holds."""

    @property
    def name(self) -> str:
        """The rung's name."""
        return str(self.record["name"])

    @property
    def bits_per_byte(self) -> float:
        """Validation bits per byte after training."""
        return float(self.record["bits_per_byte"])

    def summary(self) -> dict[str, Any]:
        """Return the figures that a script asks for first.

        Returns:
            A few entries of the record, and the checkpoint's folder.
        """
        keys = ("name", "parent", "tokens", "bits_per_byte", "flops_to_match", "saving", "eta", "max_abs_logit_diff")
        return {**{key: self.record[key] for key in keys}, "folder": str(self.folder)}


def run_ladder(
    config: LadderConfig, output_dir: str | os.PathLike[str], *, on_record: Callable[[Path], object] | None = None
) -> list[RungResult]:
    """Train a ladder, or the rest of one.

    Args:
        config: The ladder.
        output_dir: The run folder. If it holds a run of the same configuration, that run is continued.
        on_record: Called on the first process with the run folder whenever a record was written, for a report.

    Returns:
        The rungs, from the smallest.

    Raises:
        ValueError: The configuration is wrong, the corpus unusable, or the folder holds a run of another one.
        OSError: A file could not be read or written.
        FloatingPointError: A loss is no longer finite; the message names the last good checkpoint.
    """
    state = current_processes()
    folder = Path(output_dir)
    first = folder / config.rungs[0].name / "final"
    taken = first if storage.is_complete(first) else None
    plan = plan_ladder(config, taken, processes=state.num_processes)
    with FullDiskNamed(folder), exclusive(folder, state):
        claim(folder, config, state)
        with main_process_first(state):
            corpus = prepare_corpus(config.corpus, config.model.context, folder / CORPUS_NAME)
        if (origin := plan.rungs[0].origin) is not None:
            plan = plan.starting_at(first_new_block(origin, corpus))
        run = _Run(config=config, plan=plan, folder=folder, corpus=corpus, state=state, on_record=on_record)
        with reading_ahead(corpus, plan.corpus_blocks):
            for rung in plan.rungs:
                if rung.origin is None:
                    run.train_rung(rung)
                else:
                    run.take_over(rung)
            for rung in plan.rungs:
                if rung.trains_baseline:
                    run.train_baseline(rung)
        return [RungResult(folder=run.final(rung.name), record=run.record(rung.name)) for rung in plan.rungs]


@dataclass(frozen=True, kw_only=True)
class _Run:
    """A run under way: what its steps share."""

    config: LadderConfig
    plan: LadderPlan
    folder: Path
    corpus: Corpus
    state: PartialState
    on_record: Callable[[Path], object] | None

    def final(self, name: str) -> Path:
        return self.folder / name / "final"

    def record(self, name: str) -> dict[str, Any]:
        return storage.read_json(self.final(name) / "rung.json")

    def train_rung(self, rung: RungPlan) -> None:
        """Grow, verify, train, estimate and record one rung, unless that is done."""
        folder = self.folder / rung.name
        if storage.is_complete(self.final(rung.name)):
            self._drop_trained(folder)
            return
        started = time.monotonic()
        self._initialize(rung, folder / "init")
        seconds = {"grow": time.monotonic() - started}
        growth = self._checked_growth(rung, folder / "init")
        penalty = None
        if rung.parent is not None:
            plan = self._actual_plan(rung, folder / "init")
            penalty = rung_penalty(self.config.phi, anchor=folder / "init", parent=self._parent(rung), growth=plan)
        result, trainer = train_run(self._training_run(rung), self.corpus, penalty)
        seconds["train"] = result.seconds - result.evaluation_seconds
        seconds["evaluate"] = result.evaluation_seconds
        trainer.save_pretrained_whole(folder / "trained")
        del trainer, penalty
        started = time.monotonic()
        estimates = self._estimate(rung)
        seconds["phi"] = time.monotonic() - started
        started = time.monotonic()
        core = self._evaluate_core(folder / "trained")
        seconds["core"] = time.monotonic() - started
        with main_process_first(self.state):
            if self.state.is_main_process:
                record = rung_record(
                    self.config,
                    rung,
                    result,
                    self.corpus,
                    model_config=storage.read_json(folder / "trained" / "config.json"),
                    growth=growth,
                    estimates=estimates,
                    core=core,
                    parent=self._parent_record(rung),
                    seconds=seconds,
                    state=self.state,
                )
                self._publish(rung.name, source=folder / "trained", record=record)
            self._drop_trained(folder)
            self._recorded()

    def take_over(self, rung: RungPlan) -> None:
        """Make a model trained elsewhere the first rung, unless that is done."""
        if storage.is_complete(self.final(rung.name)):
            self._drop_trained(self.folder / rung.name)
            return
        folder, started = self.folder / rung.name / "trained", time.monotonic()
        with main_process_first(self.state):
            origin = locate_origin(*self._source)
            if self.state.is_main_process:
                copy_origin(origin, folder, self.corpus.tokenizer)
        seconds = {"fetch": time.monotonic() - started}
        logger.info("%s is %s", rung.name, origin.describe())
        started = time.monotonic()
        measured = measure_origin(folder, self.corpus, self.config.training, self.state)
        seconds["evaluate"] = time.monotonic() - started
        started = time.monotonic()
        estimates = self._estimate(rung, origin)
        seconds["phi"] = time.monotonic() - started
        started = time.monotonic()
        core = self._evaluate_core(folder)
        seconds["core"] = time.monotonic() - started
        with main_process_first(self.state):
            if self.state.is_main_process:
                record = origin_record(
                    self.config,
                    rung,
                    origin,
                    data=data_read(origin, self.corpus),
                    measured=measured,
                    model_config=storage.read_json(folder / "config.json"),
                    estimates=estimates,
                    core=core,
                    seconds=seconds,
                    state=self.state,
                )
                self._publish(rung.name, source=folder, record=record)
            self._drop_trained(folder.parent)
            self._recorded()

    def _drop_trained(self, folder: Path) -> None:
        # Its files stand in final/ too; a kill may have come between the two.
        if self.state.is_main_process:
            shutil.rmtree(folder / "trained", ignore_errors=True)

    @property
    def _source(self) -> tuple[str, str | None]:
        first = self.config.rungs[0]
        assert first.source is not None
        return first.source, first.revision

    def train_baseline(self, rung: RungPlan) -> None:
        """Train the same architecture from nothing on its full budget and add it to the rung's record."""
        record = self.record(rung.name)
        if record["cold"] is not None:
            return
        folder = self.folder / rung.name / "cold"
        with main_process_first(self.state):
            if self.state.is_main_process and not storage.is_complete(folder / "init"):
                self._write_fresh(rung, folder / "init")
        result, trainer = train_run(self._training_run(rung, cold=True), self.corpus)
        trainer.save_pretrained_whole(folder / "final")
        with main_process_first(self.state):
            if self.state.is_main_process:
                parent = self._parent_record(rung)
                assert parent is not None
                record = matched(record, cold=dataclasses.asdict(result), parent=parent)
                self._publish(rung.name, source=self.final(rung.name), record=record)
            self._recorded()

    def _training_run(self, rung: RungPlan, *, cold: bool = False) -> TrainingRun:
        folder, training, phi = self.folder / rung.name, self.config.training, self.config.phi
        training_run = TrainingRun(
            title=rung.name,
            init=folder / "init",
            folder=folder,
            training=training,
            learning_rate=training.learning_rate,
            steps=rung.steps,
            first_block=rung.first_block,
            flops_per_token=rung.size.flops_per_token,
            seed=self.config.seed,
            stable=folder / "stable" if self._keeps_stable else None,
        )
        if cold:
            folder, title = folder / "cold", f"{rung.name} cold"
            return dataclasses.replace(
                training_run, title=title, init=folder / "init", folder=folder, steps=rung.size.steps, stable=None
            )
        parent = self._parent_record(rung)
        if parent is None:
            return training_run
        return dataclasses.replace(
            training_run,
            learning_rate=training.inherited_learning_rate or training.learning_rate,
            flops_before=sum(estimate["flops"] for estimate in parent["estimates"].values()),
            phi_schedule=phi.schedule,
            phi_until=phi.until,
        )

    @property
    def _keeps_stable(self) -> bool:
        return self.config.training.keep_stable or self.config.growth.parent == "stable"

    def _initialize(self, rung: RungPlan, init: Path) -> None:
        """Make the rung's initial checkpoint: fresh weights on the first rung, grown ones on the others."""
        with main_process_first(self.state):
            if self.state.is_main_process and not storage.is_complete(init):
                if rung.parent is None:
                    self._write_fresh(rung, init)
                else:
                    grow_checkpoint(
                        self._parent(rung),
                        init,
                        rung.target,
                        method=self.config.growth.method,
                        dtype="float32",
                        seed=self.config.seed + rung.index,
                        overwrite=True,
                        **self.config.growth.options,
                    )

    def _write_fresh(self, rung: RungPlan, folder: Path) -> None:
        write_fresh(rung.size.config, self.corpus.tokenizer, folder, seed=self.config.seed + rung.index)

    def _checked_growth(self, rung: RungPlan, init: Path) -> dict[str, Any] | None:
        # The growth's record, once the measured difference is what its method promises.
        if rung.parent is None:
            return None
        growth = storage.read_json(init / "growth.json")
        check, limit = growth["verification"], self.config.growth.max_relative_logit_difference
        if growth["preserves_function"] and check["max_abs_logit_diff"] > limit * check["max_abs_logit"]:
            raise ValueError(
                f"rung {rung.name}: its logits differ from its parent's by {check['max_abs_logit_diff']:.3g}"
                f" at a scale of {check['max_abs_logit']:.3g}, above growth.max_relative_logit_difference {limit:.0e}"
            )
        # The record is published, and says of the parent who it is, not where it lay on this machine.
        return {**growth, "source": {**growth["source"], "name": rung.parent}}

    def _actual_plan(self, rung: RungPlan, init: Path) -> Any:
        source, target = (AutoConfig.from_pretrained(path) for path in (self._parent(rung), init))
        return plan_growth(source, target, method=self.config.growth.method, **self.config.growth.options)

    def _parent(self, rung: RungPlan) -> Path:
        assert rung.parent is not None
        return self.folder / rung.parent / self.config.growth.parent

    def _parent_record(self, rung: RungPlan) -> dict[str, Any] | None:
        return None if rung.parent is None else self.record(rung.parent)

    def _estimate(self, rung: RungPlan, origin: Origin | None = None) -> dict[str, Any]:
        # What the next rung's Φ needs, on the weights that the next rung grows from.
        folder = self.folder / rung.name
        source = folder / ("stable" if self.config.growth.parent == "stable" else "trained")
        read = range(rung.first_block, rung.first_block + rung.tokens // self.config.model.context)
        known: Mapping[str, Any] = {}
        if origin is not None:
            # What it read, or if that is not at hand, the start of the corpus.
            end = first_new_block(origin, self.corpus)
            read = range(end) if end else range(self._phi_sequences)
            known = (origin.record or {}).get("estimates", {})
        estimates = estimate_inheritance(
            source,
            self.config.phi,
            self.corpus,
            read,
            flops_per_token=rung.size.flops_per_token,
            state=self.state,
            known=known,
        )
        with main_process_first(self.state):
            if self.state.is_main_process and estimates:
                storage.write_manifest(source)
        return estimates

    @property
    def _phi_sequences(self) -> int:
        return max(self.config.phi.fisher.sequences, self.config.phi.subspace.sequences)

    def _evaluate_core(self, checkpoint: Path) -> dict[str, Any] | None:
        options = self.config.core
        if options is None:
            return None
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
        with evaluation_precision(self.config.training, self.state.device):
            result = evaluate_core(
                model.to(self.state.device),
                self.corpus.tokenizer,
                options.bundle,
                tasks=options.tasks or None,
                max_per_task=options.max_per_task,
                batch_size=options.batch_size,
                resume_file=checkpoint.parent / "core.json",
            )
        return result.to_dict()

    def _publish(self, name: str, *, source: Path, record: dict[str, Any]) -> None:
        """Make the rung's final folder of a folder's files, linked and not copied, and a record."""
        files = storage.read_json(source / storage.MANIFEST_NAME)["files"]
        hashes = {file: entry["sha256"] for file, entry in files.items() if file != "rung.json"}
        with storage.atomic_folder(self.final(name), overwrite=True, sha256=hashes) as temporary:
            shutil.copytree(source, temporary, copy_function=storage.link_or_copy, dirs_exist_ok=True)
            (temporary / storage.MANIFEST_NAME).unlink()
            storage.write_json(temporary / "rung.json", record)

    def _recorded(self) -> None:
        # Bring the ladder's own record up to date.
        if self.state.is_main_process:
            names = [rung.name for rung in self.plan.rungs if storage.is_complete(self.final(rung.name))]
            storage.write_json(
                self.folder / "ladder.json", ladder_record(self.config, finished=names, state=self.state)
            )
            if self.on_record is not None:
                self.on_record(self.folder)
