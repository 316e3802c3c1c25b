"""The rung loop: every rung in turn, then the baselines.

Every step leaves complete files or none, so that a run killed at any moment and started again in the same folder goes
on where it was and ends with the same bits. Under `accelerate launch` the first process writes and the others wait.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_progressive import storage
from hf_progressive.config import LadderConfig
from hf_progressive.config.checks import require_config
from hf_progressive.data import prepare_corpus, reading_ahead
from hf_progressive.distributed.lost_processes import ended_with_the_others
from hf_progressive.distributed.processes import current_processes, main_process_first
from hf_progressive.ladder import external_model
from hf_progressive.ladder.ladder_progress import LadderProgress
from hf_progressive.ladder.live_record import kept_up_to_date
from hf_progressive.ladder.preparation import CORPUS_NAME
from hf_progressive.ladder.run_folder import claim, exclusive
from hf_progressive.ladder.rung_work import LadderRun, RungWork
from hf_progressive.ladder.steps import BASELINE, TRAINED_ELSEWHERE, TRAINED_HERE, Step, carry_out
from hf_progressive.planning.ladder_plan import plan_ladder
from hf_progressive.storage.full_disk import FullDiskNamed


@dataclass(frozen=True, kw_only=True)
class RungResult:
    """A finished rung: its checkpoint's folder and its record."""

    folder: Path
    """The trained checkpoint, `RUN/NAME/final`."""

    record: dict[str, Any]
    """What `rung.json` holds."""

    def __repr__(self) -> str:
        return f"<RungResult {self.name}: {self.bits_per_byte:.4f} bits per byte, {self.folder}>"

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
        keys = ("name", "parent", "tokens", "bits_per_byte", "flops_to_match", "saving", "eta", "last_model_cost")
        return {**{key: self.record[key] for key in (*keys, "max_abs_logit_diff")}, "folder": str(self.folder)}


def run_ladder(
    config: LadderConfig,
    output_dir: str | os.PathLike[str],
    *,
    on_record: Callable[[Path], object] | None = None,
    on_progress: Callable[[Path], object] | None = None,
) -> list[RungResult]:
    """Train a ladder, or the rest of one.

    Args:
        config: The ladder.
        output_dir: The run folder. If it holds a run of the same configuration, that run is continued.
        on_record: Called on the first process with the run folder whenever a record was written, for a report.
        on_progress: Called on the first process with the run folder whenever `progress.json` was written, which is at
            the beginning of every step of the work and every few seconds while it trains, for a page to watch.

    Returns:
        The rungs, from the smallest.

    Raises:
        ValueError: The configuration is wrong, the corpus unusable, or the folder holds a run of another one.
        OSError: A file could not be read or written.
        FloatingPointError: A loss is no longer finite; the message names the last good checkpoint.
    """
    require_config(config, LadderConfig, "load_ladder_config")
    state = current_processes()
    folder = Path(output_dir)
    first = folder / config.rungs[0].name / "final"
    plan = plan_ladder(config, first if storage.is_complete(first) else None, processes=state.num_processes)
    names = [rung.name for rung in config.rungs]
    with FullDiskNamed(folder), ended_with_the_others(state), exclusive(folder, names, state):
        claim(folder, config, state)
        with main_process_first(state):
            corpus = prepare_corpus(config.corpus, config.model.context, folder / CORPUS_NAME)
        plan = external_model.starting_behind(plan, corpus)
        run = LadderRun(config=config, plan=plan, folder=folder, corpus=corpus, state=state, on_record=on_record)
        progress = _progress(run)
        watched = kept_up_to_date(folder, plan, progress, state, on_progress)
        with reading_ahead(corpus, plan.corpus_blocks), watched as live:
            for rung in plan.rungs:
                if storage.is_complete(run.final(rung.name)):
                    if state.is_main_process:
                        run.drop_trained(rung.name)
                elif rung.origin is not None:
                    carry_out(TRAINED_ELSEWHERE, RungWork(run=run, rung=rung, live=live))
                else:
                    _train(TRAINED_HERE, RungWork(run=run, rung=rung, live=live), progress)
            for rung in plan.rungs:
                if rung.trains_baseline and run.record(rung.name).cold is None:
                    _train(BASELINE, RungWork(run=run, rung=rung, is_baseline=True, live=live), progress)
        run.on_first_process(run.catch_up)
        return [RungResult(folder=run.final(rung.name), record=run.record(rung.name).to_dict()) for rung in plan.rungs]


def _progress(run: LadderRun) -> LadderProgress:
    rungs = [rung for rung in run.plan.rungs if rung.origin is None]
    finished = {rung.name for rung in run.plan.rungs if storage.is_complete(run.final(rung.name))}
    baselines = [rung for rung in run.plan.rungs if rung.trains_baseline]
    compared = {rung.name for rung in baselines if rung.name in finished and run.record(rung.name).cold is not None}
    left = [(rung, False) for rung in rungs if rung.name not in finished]
    left += [(rung, True) for rung in baselines if rung.name not in compared]
    return LadderProgress(left, len(rungs) + len(baselines) - len(left))


def _train(steps: tuple[Step, ...], work: RungWork, progress: LadderProgress) -> None:
    if work.run.state.is_main_process:
        progress.begin()
    carry_out(steps, work)
    progress.end()
