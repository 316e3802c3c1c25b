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
_ROUNDING = 1e-9
_WIDEST = 0.5  # of η, half the interval: a wider one would pass anything
_TRUNK_SHARE = 0.4  # of the part at a constant rate, after which a trunk grows into itself


@dataclass(frozen=True, kw_only=True)
class InstrumentCheck:
    """What the check found."""

    branch_difference: float
    """Largest difference in bits per byte between a baseline that branched off a longer run and one trained alone."""

    baseline_eta: float
    """η of a child that is its baseline's own checkpoint, where arithmetic says 1."""

    random_eta: float | None = None
    """η of a child with nothing of its parent in it, where 0 is right; None where a seed did not match."""

    random_low: float | None = None
    """Lower end of its interval."""

    random_high: float | None = None
    """Upper end of its interval; None where a seed matched at the smallest budget already."""

    has_chains: bool = True
    """Whether the study has chains, which a random child is for."""

    trunk_difference: float | None = None
    """Largest difference in bits per byte between a trunk that grows into its own size, with Adam's moments and no
    re-warm, and its baseline, whose run it is; None of a study without trunks."""

    trunk_cost: float | None = None
    """The last-model cost of that trunk, where arithmetic says 1."""

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
        if self.trunk_difference:
            found.append(
                f"a trunk that never grows differs from its baseline by {self.trunk_difference:.3g} bits per byte"
            )
        if self.trunk_cost is not None and abs(self.trunk_cost - 1) > _ROUNDING:
            found.append(f"a trunk that never grows has a last-model cost of {self.trunk_cost:.6f} instead of 1")
        return found + (self._random_problems() if self.has_chains else [])

    def _random_problems(self) -> list[str]:
        found = []
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
        passed = ["branches equal plain runs", "the baseline's own checkpoint has η 1"]
        if self.trunk_cost is not None:
            passed.append(f"a trunk that never grows has a last-model cost of {self.trunk_cost:.2f}")
        if self.has_chains:
            passed.append(
                f"a random child has η {self.random_eta:.3f} in [{self.random_low:.3f}, {self.random_high:.3f}]"
            )
        return f"the instrument passes its check: {', '.join(passed)}"

    def to_dict(self) -> dict[str, Any]:
        """Return the check as plain values: its fields, `passed` and `problems`."""
        return {**dataclasses.asdict(self), "passed": self.passed, "problems": self.problems}


def check_instrument(config: StudyConfig, output_dir: str | os.PathLike[str]) -> InstrumentCheck:
    """Run a small part of a study with recipes whose result is known.

    - A baseline that branches off a longer run must equal one that was trained by itself with the same schedule, to
      the last bit of its bits per byte: that is what lets a branch count as a run of its own.
    - A "child" that goes on from its baseline's own checkpoint after c FLOPs reaches the target after C_scratch − c
      more, so with a parent of c FLOPs its η is (C_scratch − (C_scratch − c)) / c = 1.
    - Where the study has trunks, one that grows into its own size, with Adam's moments and without a re-warm, is its
      baseline's run in two pieces: to the last bit, and at a last-model cost of 1.
    - Where it has chains, a child grown by the method `random` has nothing of its parent in it: η = 0 within its
      interval.

    Args:
        config: The study, of whose ladder the first rung that is measured is used, and the one before it in chains.
        output_dir: The folder for the runs; started again, it goes on.

    Returns:
        What was found.

    Raises:
        ValueError: A run failed.
    """
    root = Path(output_dir)
    has_trunks = any(recipe.trunk for recipe in config.recipes)
    parts = ([_check_trunk(config, root)] if has_trunks else []) + (
        [] if config.of_trunks else [_check_chain(config, root)]
    )
    found = {key: value for part in parts for key, value in part.items()}
    found["branch_difference"] = max(part["branch_difference"] for part in parts)
    return InstrumentCheck(**found, has_chains=not config.of_trunks, study=str(root))


def _check_chain(config: StudyConfig, root: Path) -> dict[str, Any]:
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
    record = _finished(study, root / "branches")
    outcome = record.headline.rungs[0]
    return {
        **_check_baselines(study, record, ladder.rungs[1].name, root, "branches"),
        "random_eta": outcome.eta,
        "random_low": outcome.eta_low,
        "random_high": outcome.eta_high,
    }


def _check_trunk(config: StudyConfig, root: Path) -> dict[str, Any]:
    end = next(rung for rung in config.ladder.rungs if rung.name == config.measured_rungs[0])
    ladder = dataclasses.replace(config.ladder, rungs=(end,), cold="none")
    until = _TRUNK_SHARE * (1 - ladder.training_of(end.name).decay_fraction)
    settings = {
        "trunk.moments": "grown",
        "trunk.rewarm_fraction": 0.0,
        "growth.method": "exact",
        "growth.options": {},
        "phi.ewc_lambda": 0.0,
        "phi.gamma": 0.0,
    }
    same = dataclasses.replace(end, name=f"{end.name}-itself", until=until, growth={}, phi={})
    study = StudyConfig(
        name=f"{config.name}-check",
        ladder=ladder,
        seeds=config.seeds[:1],
        cold_fractions=_COLD_FRACTIONS,
        child_fractions=_COLD_FRACTIONS,
        recipes=(RecipeConfig(name="into itself", trunk=(same,), set=settings),),
    )
    record = _finished(study, root / "trunk")
    trunk, cold = record.recipes[0].points[0].finished, record.cold[0].finished
    cost = record.headline.last_model_cost
    return {
        **_check_baselines(study, record, end.name, root, "trunk"),
        "trunk_difference": max(
            abs(one.bits_per_byte - other.bits_per_byte) for one, other in zip(trunk, cold, strict=True)
        ),
        "trunk_cost": None if cost is None else cost.value,
    }


def _finished(study: StudyConfig, folder: Path) -> StudyRecord:
    record = StudyRecord.from_dict(run_study(study, folder))
    if record.failed:
        failure = record.failed[0]
        raise ValueError(f"{failure.task}: {failure.reason}; delete {folder.parent} and check again")
    return record


def _check_baselines(study: StudyConfig, record: StudyRecord, rung: str, root: Path, folder: str) -> dict[str, float]:
    ladder, seed = study.ladder, study.seeds[0]
    corpus = prepare_corpus(ladder.data, ladder.model.context, root / folder / "data")
    shortest = plan_study(study, corpus.fingerprint).cold[rung, seed][0]
    alone = _trained_alone(shortest, corpus, root / "alone")
    baselines = next(runs.finished for runs in record.cold if runs.rung == rung and runs.seed == seed)
    branch = next(run for run in baselines if run.fraction == _COLD_FRACTIONS[0])
    points = [Point(fraction=run.fraction, flops=run.flops, bits_per_byte=run.bits_per_byte) for run in baselines]
    return {"branch_difference": abs(branch.bits_per_byte - alone), "baseline_eta": _baseline_eta(points)}


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
