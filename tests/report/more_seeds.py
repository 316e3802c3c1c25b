"""The committed study of trunks as if its headline had got more seeds: what was measured, and made-up runs."""

import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hf_progressive.config import StudyConfig, strict_yaml
from hf_progressive.distributed.processes import current_processes
from hf_progressive.records.study import FinishedRun, StudyRecord, read_study
from hf_progressive.study.models import FinishedModel
from hf_progressive.study.plan import StudyPlan, plan_study
from hf_progressive.study.record import study_record
from hf_progressive.study.results import StudyResults

STUDY = Path(__file__).parents[2] / "examples" / "studies" / "trunk"
MORE, FEW = [0, 1, 2, 3, 4, 5], [0, 1, 2]
MADE_UP_NATS, MADE_UP_END = 0.093, 1.875


class MoreSeeds:
    """A study with six seeds of baseline and headline and three of the others, from the record of three of all.

    Args:
        missing: Names of tasks that are not finished.
    """

    def __init__(self, missing: tuple[str, ...] = ()) -> None:
        record = read_study(STUDY)
        self.known = {run.task: run for run in finished_runs(record)}
        self.headline = record.headline.recipe
        self.missing = missing
        self.plan = planned(record)
        self.works = {task.name: task.work for task in self.plan.tasks}
        self.data = record.data

    def result(self, task: str) -> dict[str, Any] | None:
        """What a task's file would hold: what was measured where it is in the record, else something made up."""
        work = self.works[task]
        if task in self.missing:
            return None
        if not isinstance(work, FinishedModel):
            return {"name": task, "estimates": {}, "seconds": 0.0}
        run = self.known.get(task)
        chance = random.Random(f"{work.initial.seed} {work.setup.trunk is None}").gauss(0, 0.004)
        bits = MADE_UP_END - MADE_UP_NATS * math.log(work.fraction) + chance
        return {
            "name": task,
            "bits_per_byte": bits if run is None else run.bits_per_byte,
            "loss": 1.0,
            "learning_rate": work.setup.learning_rate,
            "branched_at": 0,
            "tokens": work.tokens,
            "seconds": 300.0,
            "flops": {"train": work.flops, "estimates": 0.0, "spent": work.flops},
            "data": {"first_epoch": 0, "last_epoch": 0, "repeats_from_token": None},
        }

    def record(self) -> StudyRecord:
        """Return study.json."""
        corpus: Any = SimpleNamespace(summary=self.data.to_dict)
        return study_record(StudyResults(plan=self.plan, result=self.result), corpus, current_processes())


def finished_runs(record: StudyRecord) -> list[FinishedRun]:
    """All models of a record, those of the sweep included."""
    groups = [*record.cold, *(runs for recipe in record.recipes for runs in recipe.points)]
    swept = [row.point for row in record.learning_rates if isinstance(row.point, FinishedRun)]
    return [*(run for runs in groups for run in runs.finished), *swept]


def planned(record: StudyRecord) -> StudyPlan:
    """Lay out a record's study with more seeds of its headline."""
    config = record.config.to_dict() | {"seeds": MORE}
    for recipe in config["recipes"]:
        recipe["seeds"] = None if recipe["name"] == record.headline.recipe else FEW
    return plan_study(strict_yaml.build(StudyConfig, config), record.data.others["fingerprint"])
