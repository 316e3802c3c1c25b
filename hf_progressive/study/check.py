"""Proof of the instrument on cases whose result is known beforehand."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_progressive import storage
from hf_progressive.config import RecipeConfig, StudyConfig
from hf_progressive.data import Corpus, prepare_corpus
from hf_progressive.distributed.processes import current_processes
from hf_progressive.storage.locks import wait_lock
from hf_progressive.study.folder import StudyFolder
from hf_progressive.study.plan import StudyPlan, plan_study
from hf_progressive.study.points import Point, transfer
from hf_progressive.study.run import run_study
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
        """Return the result in one line.

        Returns:
            What was found, or what is wrong.
        """
        if not self.passed:
            return f"the instrument fails its check: {'; '.join(self.problems)} (see {self.study})"
        return (
            f"the instrument passes its check: branches equal plain runs, the baseline's own checkpoint has η 1, a"
            f" random child has η {self.random_eta:.3f} in [{self.random_low:.3f}, {self.random_high:.3f}]"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the check as plain values.

        Returns:
            Its fields, `passed` and `problems`.
        """
        return {**dataclasses.asdict(self), "passed": self.passed, "problems": self.problems}


def check_instrument(config: StudyConfig, output_dir: str | os.PathLike[str]) -> InstrumentCheck:
    """Run a study's first step with recipes whose η is known.

    - A baseline that branches off a longer run must equal one that was trained by itself with the same schedule, to
      the last bit of its bits per byte: that is what lets a branch count as a run of its own.
    - A "child" that goes on from its baseline's own checkpoint after c FLOPs reaches the target after C_cold − c more,
      so with a parent of c FLOPs its η is (C_cold − (C_cold − c)) / c = 1.
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
    record = run_study(study, root / "branches")
    if record["failed"]:
        failure = record["failed"][0]
        raise ValueError(f"{failure['task']}: {failure['reason']}; delete {root} and check again")
    corpus = prepare_corpus(ladder.data, ladder.model.context, root / "branches" / "data")
    with wait_lock(root / ".alone.lock"):
        plain = _train_alone(plan_study(study, corpus.fingerprint), corpus, root / "alone")
    baselines = next(
        row["points"] for row in record["cold"] if row["rung"] == ladder.rungs[1].name and row["seed"] == 0
    )
    branch = next(point for point in baselines if point["fraction"] == _COLD_FRACTIONS[0])
    outcome = record["headline"]["rungs"][0]
    return InstrumentCheck(
        branch_difference=abs(branch["bits_per_byte"] - plain),
        baseline_eta=_baseline_eta([Point(**{key: point[key] for key in _POINT_KEYS}) for point in baselines]),
        random_eta=outcome["eta"],
        random_low=outcome["eta_low"],
        random_high=outcome["eta_high"],
        study=str(root),
    )


def _train_alone(plan: StudyPlan, corpus: Corpus, root: Path) -> float:
    # Bits per byte of the first seed's shortest baseline, trained with no longer run beside it.
    cold = plan.cold[plan.rungs[1], plan.config.seeds[0]][0]
    group = cold.group
    start = dataclasses.replace(group.start, groups=[])
    alone = dataclasses.replace(group, start=start, runs=[])
    run = dataclasses.replace(cold, group=alone)
    alone.runs.append(run)
    folder = StudyFolder(root, dataclasses.replace(plan, tasks=[start, run]))
    result = folder.result(run)
    if result is None:
        worker = Worker(folder=folder, corpus=corpus, state=current_processes())
        storage.write_json(folder.result_path(start), worker.make_start(start))
        result = worker.train_run(run, f"{start.rung.name} by itself")
        storage.write_json(folder.result_path(run), result)
    assert result["branched_at"] == 0
    return float(result["bits_per_byte"])


def _baseline_eta(baselines: list[Point]) -> float:
    # The baseline's own points, as a child would see them that begins at the baseline's checkpoint.
    head_start = min(point.flops for point in baselines) / 2
    child = [dataclasses.replace(point, flops=point.flops - head_start) for point in baselines]
    eta = transfer(child, baselines, parent_flops=head_start).eta
    assert eta is not None
    return eta
