"""Running a study in a folder that several processes may share.

STUDY/study.yaml STUDY/study.json
STUDY/data/              tokenizer and blocks, shared by all seeds
STUDY/results/           one JSON file per finished task
STUDY/weights/NAME/      of an initial model: init/, and parent/ (the parent with its estimates, where Φ is on);
                         of a training run: checkpoints/, final/ and stable/ (the weights after and before the decay)
STUDY/locks/
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from hf_progressive import storage
from hf_progressive.config import StudyConfig
from hf_progressive.config.checks import require_config
from hf_progressive.data import Corpus, prepare_corpus
from hf_progressive.distributed.processes import current_processes
from hf_progressive.ladder.run_folder import make_run_folder, require_own_kind
from hf_progressive.storage.agreement import agreed
from hf_progressive.storage.full_disk import FullDiskNamed
from hf_progressive.storage.locks import wait_lock
from hf_progressive.study.plan import StudyPlan, plan_study
from hf_progressive.study.progress import Progress
from hf_progressive.study.rates import with_best_rates
from hf_progressive.study.record import study_record
from hf_progressive.study.results import StudyResults
from hf_progressive.study.runner import TaskFolder, run_tasks
from hf_progressive.study.tasks import Task
from hf_progressive.study.work import Worker

CONFIG_NAME, RECORD_NAME = "study.yaml", "study.json"


def run_study(
    config: StudyConfig,
    output_dir: str | os.PathLike[str],
    *,
    on_record: Callable[[dict[str, Any]], object] | None = None,
) -> dict[str, Any]:
    """Carry out a study, or the rest of one.

    Started several times on one folder, the processes share the work. A process killed at any moment leaves a task
    that the next one takes up from its newest complete checkpoint. Where learning rates are to be tried, that comes
    first; what follows takes the best of them.

    Args:
        config: The study.
        output_dir: The study's folder. Results that are there and still belong to the study are used.
        on_record: Called with the record whenever this process wrote study.json.

    Returns:
        What study.json holds.

    Raises:
        ValueError: The configuration is wrong, the corpus unusable, or processes with another configuration work in
            the folder.
        OSError: A file could not be read or written.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("a study's runs train in one process each; start the command itself several times instead")
    require_config(config, StudyConfig, "load_study_config")
    ladder, root = config.ladder, Path(output_dir)
    plan_study(config, fingerprint="")  # what cannot be grown is said before anything is written
    make_run_folder(root)
    require_own_kind(root, "a study")
    _require_own_name(root, config.name)
    with (
        FullDiskNamed(root),
        agreed(root / CONFIG_NAME, yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True)) as alike,
    ):
        if not alike:
            raise ValueError(
                f"{root}: processes with another configuration work in this folder; wait for them, or choose another"
            )
        corpus = prepare_corpus(ladder.data, ladder.model.context, root / "data")
        plan = plan_study(config, corpus.fingerprint)
        if plan.tried:
            choosing = _Round(root, plan, plan.rate_tasks, corpus, on_record, chooses_rates=True)
            if choosing.folder.unfinished():  # otherwise the record that is there says more
                choosing.run()
            best = with_best_rates(config, plan.tried, choosing.folder.result)
            plan = plan_study(best, corpus.fingerprint)
        return _Round(root, plan, plan.tasks, corpus, on_record).run()


def _require_own_name(root: Path, name: str) -> None:
    # A study whose configuration changed goes on with the results that still belong to it; another one would replace
    # the record that is there.
    try:
        there = storage.read_json(root / RECORD_NAME).get("name")
    except (FileNotFoundError, ValueError):  # a damaged one is made anew from the results
        return
    if there not in (None, name):
        raise ValueError(
            f"{root}: holds the study {there!r}, not {name!r}; choose another output folder, or name this one so"
        )


class _Round:
    # Some of a plan's tasks, carried out to the last, with the record kept up to date.
    def __init__(
        self,
        root: Path,
        plan: StudyPlan,
        tasks: Sequence[Task],
        corpus: Corpus,
        on_record: Callable[[dict[str, Any]], object] | None,
        *,
        chooses_rates: bool = False,
    ) -> None:
        self.root, self.plan, self.corpus, self.on_record = root, plan, corpus, on_record
        self.chooses_rates = chooses_rates
        self.folder, self.state = TaskFolder(root, tasks), current_processes()
        self.worker = Worker(folder=self.folder, corpus=corpus, state=self.state)
        self.progress = Progress(self.folder)

    def run(self) -> dict[str, Any]:
        self.write_record()
        run_tasks(self.folder, lambda task: self.worker.carry_out(task, self.progress.title(task)), self._finished)
        return self.write_record()

    def _finished(self, task: Task) -> None:
        self.progress.report(task)
        self.write_record()

    def write_record(self) -> dict[str, Any]:
        with wait_lock(self.root / ".record.lock"):
            results = StudyResults(plan=self.plan, result=self.folder.result)
            found = study_record(results, self.corpus, self.state, chooses_rates=self.chooses_rates)
            record = found.to_dict()
            storage.remove_unfinished_files(self.root / RECORD_NAME)
            storage.write_json(self.root / RECORD_NAME, record)
        if self.on_record is not None:
            self.on_record(record)
        return record
