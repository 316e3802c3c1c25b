"""Proof of the instrument on cases whose result is known beforehand."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_progressive.config import RecipeConfig, StudyConfig
from hf_progressive.data import Corpus, prepare_corpus
from hf_progressive.distributed.processes import current_processes
from hf_progressive.records.study import StudyRecord
from hf_progressive.study.model_tasks import model_tasks
from hf_progressive.study.models import FinishedModel
from hf_progressive.study.plan import plan_study
from hf_progressive.study.points import Point, transfer
from hf_progressive.study.run import run_study
from hf_progressive.study.runner import TaskFolder, run_tasks
from hf_progressive.study.work import Worker

_COLD_FRACTIONS = (0.5, 1.0)
_RANDOM_FRACTIONS = (0.5, 0.75, 1.0, 1.3)  # beyond 1, so that a child a little worse than its baseline crosses too
_SEEDS = 4  # of three, an interval is so wide that it may pass anything
_POINT_KEYS = ("fraction", "flops", "bits_per_byte")
_ROUNDING = 1e-9
_WIDEST = 0.5  # of η, half the interval: a wider one would pass anything


@dataclass(frozen=True, kw_only=True)
class InstrumentCheck:
    """What the check found."""

    branch_difference: float
    """Largest difference in bits per byte between a baseline that branched off a longer run and one trained alone."""

    baseline_eta: float
    """η of a child that is its baseline's own checkpoint, where arithmetic says 1."""

    random_eta: float | None
    """η of a child with nothing of its parent in it, where 0 is right; None where a seed did not match."""

    random_low: float | None
    """Lower end of its interval."""

    random_high: float | None
    """Upper end of its interval; None where a seed matched at the smallest budget already."""

    study: str
    """The folder of the runs."""

    @property
    def problems(self) -> list[str]:
        """What is not as it should be, one sentence each."""
        found = []
        if self.branch_difference != 0:
            found.append(f"a branch differs from a plain run by {self.branch_difference:.3g} bits per byte")
        if abs(self.baseline_eta - 1) > _ROUNDING:
            found.append(f"the baseline's own checkpoint has η {self.baseline_eta:.6f} instead of 1")
        low, high = self.random_low, self.random_high
        if low is None:
            found.append("the random child did not match its baseline in every seed")
        elif high is None:
            found.append("the random child matched its baseline at the smallest budget already")
        elif not low <= 0 <= high:
            found.append(f"the random child has η in [{low:.3f}, {high:.3f}], without 0")
        elif (high - low) / 2 > _WIDEST:
            found.append(f"the random child's η is uncertain by {(high - low) / 2:.2f}, which tells nothing")
        return found

    @property
    def passed(self) -> bool:
        """Whether all is as it should be."""
        return not self.problems

    def describe(self) -> str:
        """Return what was found, or what is wrong, in one line."""
        if not self.passed:
            return f"the instrument fails its check: {'; '.join(self.problems)} (see {self.study})"
        return (
            f"the instrument passes its check: branches equal plain runs, the baseline's own checkpoint has η 1, a"
            f" random child has η {self.random_eta:.3f} in [{self.random_low:.3f}, {self.random_high:.3f}]"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the check as plain values: its fields, `passed` and `problems`."""
        return {**dataclasses.asdict(self), "passed": self.passed, "problems": self.problems}


def check_instrument(config: StudyConfig, output_dir: str | os.PathLike[str]) -> InstrumentCheck:
    """Run a study's first step with recipes whose η is known.

    - A baseline that branches off a longer run must equal one that was trained by itself with the same schedule, to
      the last bit of its bits per byte: that is what lets a branch count as a run of its own.
    - A "child" that goes on from its baseline's own checkpoint after c FLOPs reaches the target after C_scratch − c
      more, so with a parent of c FLOPs its η is (C_scratch − (C_scratch − c)) / c = 1.
    - A child grown by the method `random` has nothing of its parent in it: η = 0 within its interval.

    Args:
        config: The study, whose ladder's first two rungs are used.
        output_dir: The folder for the runs; started again, it goes on.

    Returns:
        What was found.

    Raises:
        ValueError: A run failed.
    """
    root = Path(output_dir)
    ladder = dataclasses.replace(config.ladder, rungs=config.ladder.rungs[:2], cold="none")
    random = RecipeConfig(name="random", set={"growth.method": "random"}, parent_fraction=_RANDOM_FRACTIONS[-1])
    study = StudyConfig(
        name=f"{config.name}-check",
        ladder=ladder,
        seeds=tuple(range(_SEEDS)),
        cold_fractions=_COLD_FRACTIONS,
        child_fractions=_RANDOM_FRACTIONS,
        recipes=(random,),
    )
    record = StudyRecord.from_dict(run_study(study, root / "branches"))
    if record.failed:
        raise ValueError(f"{record.failed[0].task}: {record.failed[0].reason}; delete {root} and check again")
    corpus = prepare_corpus(ladder.data, ladder.model.context, root / "branches" / "data")
    shortest = plan_study(study, corpus.fingerprint).cold[ladder.rungs[1].name, 0][0]
    alone = _trained_alone(shortest, corpus, root / "alone")
    baselines = next(runs.finished for runs in record.cold if runs.rung == ladder.rungs[1].name and runs.seed == 0)
    branch = next(run for run in baselines if run.fraction == _COLD_FRACTIONS[0])
    outcome = record.headline.rungs[0]
    return InstrumentCheck(
        branch_difference=abs(branch.bits_per_byte - alone),
        baseline_eta=_baseline_eta([Point(**{key: getattr(run, key) for key in _POINT_KEYS}) for run in baselines]),
        random_eta=outcome.eta,
        random_low=outcome.eta_low,
        random_high=outcome.eta_high,
        study=str(root),
    )


def _trained_alone(model: FinishedModel, corpus: Corpus, root: Path) -> float:
    # Bits per byte of a model that is trained with no longer run beside it.
    folder = TaskFolder(root, model_tasks([model], lambda _: f"{model.initial.rung.name} by itself"))
    worker = Worker(folder=folder, corpus=corpus, state=current_processes())
    run_tasks(folder, lambda task: worker.carry_out(task, task.title))
    result = folder.result(model.name)
    assert result is not None
    if "failed" in result:
        raise ValueError(f"{model.name}: {result['failed']}; delete {root} and check again")
    assert result["branched_at"] == 0
    return float(result["bits_per_byte"])


def _baseline_eta(baselines: list[Point]) -> float:
    # The baseline's own points, as a child would see them that begins at the baseline's checkpoint.
    head_start = min(point.flops for point in baselines) / 2
    child = [dataclasses.replace(point, flops=point.flops - head_start) for point in baselines]
    eta = transfer(child, baselines, parent_flops=head_start).eta
    assert eta is not None
    return eta
