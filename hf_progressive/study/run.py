"""Running a study: one process takes one task after the other until none is left; several may share a folder."""

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from hf_progressive import storage
from hf_progressive.config import StudyConfig
from hf_progressive.data import prepare_corpus
from hf_progressive.distributed.processes import current_processes
from hf_progressive.storage.agreement import agreed
from hf_progressive.storage.full_disk import FullDiskNamed
from hf_progressive.storage.locks import wait_lock
from hf_progressive.study.folder import StudyFolder
from hf_progressive.study.plan import plan_study
from hf_progressive.study.progress import Progress
from hf_progressive.study.record import study_record
from hf_progressive.study.tasks import Run, Start, Task
from hf_progressive.study.work import Worker

logger = logging.getLogger(__name__)

CONFIG_NAME, RECORD_NAME = "study.yaml", "study.json"
_POLL_SECONDS = 1.0


def run_study(
    config: StudyConfig,
    output_dir: str | os.PathLike[str],
    *,
    on_record: Callable[[dict[str, Any]], object] | None = None,
) -> dict[str, Any]:
    """Carry out a study, or the rest of one.

    Started several times on one folder, the processes share the work. A process killed at any moment leaves a task
    that the next one takes up from its newest complete checkpoint.

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
    ladder, root = config.ladder, Path(output_dir)
    plan_study(config, fingerprint="")  # what cannot be grown is said before anything is written
    state = current_processes()
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
        folder = StudyFolder(root, plan)
        folder.remove_leftovers()
        worker = Worker(folder=folder, corpus=corpus, state=state)
        progress = Progress(folder)

        def write_record() -> dict[str, Any]:
            with wait_lock(root / ".record.lock"):
                record = study_record(folder, corpus, state)
                storage.write_json(root / RECORD_NAME, record)
            if on_record is not None:
                on_record(record)
            return record

        write_record()
        while unfinished := folder.unfinished():
            if _take_one(folder, worker, unfinished, progress):
                folder.prune(folder.unfinished())
                write_record()
            else:
                time.sleep(_POLL_SECONDS)
        return write_record()


def _take_one(folder: StudyFolder, worker: Worker, unfinished: list[Task], progress: Progress) -> bool:
    # Carry out the first task that is ready and free; tell whether there was one.
    for task in unfinished:
        if not is_ready(folder, task):
            continue
        with folder.lock(task) as free:
            # Another process may have finished it since.
            if not free or task.name not in {other.name for other in folder.unfinished()}:
                continue
            storage.write_json(folder.result_path(task), _carry_out(folder, worker, task, progress))
        progress.report(task)
        return True
    return False


def is_ready(folder: StudyFolder, task: Task) -> bool:
    """Tell whether everything that a task goes on from is there, or will never be.

    Args:
        folder: The study's files.
        task: A start or a run.

    Returns:
        Whether it can be carried out now.
    """
    if isinstance(task, Start):
        return task.parent is None or _is_settled(folder, task.parent)
    if not _is_settled(folder, task.start):
        return False
    if task.is_trunk or task.branch_step == 0 or folder.result(task.group.trunk) is not None:
        return True
    return folder.branch_checkpoint(task, exactly=True) is not None


def _is_settled(folder: StudyFolder, task: Task) -> bool:
    result = folder.result(task)
    return result is not None and ("failed" in result or folder.has_weights(task))


def _carry_out(folder: StudyFolder, worker: Worker, task: Task, progress: Progress) -> dict[str, Any]:
    needed = task.parent if isinstance(task, Start) else task.start
    failed = {"kind": "start" if isinstance(task, Start) else "run", "name": task.name}
    if needed is not None and "failed" in (folder.result(needed) or {}):
        return {**failed, "failed": f"{needed.name} failed"}
    try:
        if isinstance(task, Run):
            return worker.train_run(task, progress.title(task))
        return worker.make_start(task)
    except (FloatingPointError, ValueError) as error:
        # One recipe that diverges must not end a search; the record says which, and deleting its result tries again.
        logger.warning("%s failed: %s", task.name, error)
        return {**failed, "failed": " ".join(str(error).split())}
