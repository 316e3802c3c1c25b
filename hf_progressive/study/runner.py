"""Carrying out tasks: any number of processes share a folder, and each takes one task after the other.

    FOLDER/results/NAME.json  one per finished task; they stay
    FOLDER/weights/NAME/      what a task makes, kept only as long as a task that is still to be done needs it
    FOLDER/locks/NAME.lock    held by the process that works on a task, and gone with it

A process that is killed leaves a task without a result, which the next one takes again.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from hf_progressive import storage
from hf_progressive.storage.locks import try_lock, wait_lock
from hf_progressive.study.tasks import Task, maker_of
from hf_progressive.training.checkpoints import remove_leftovers

logger = logging.getLogger(__name__)

_POLL_SECONDS = 1.0

CarryOut = Callable[[Task], dict[str, Any]]
"""Does a task and returns its result; raises ValueError or FloatingPointError where it fails."""


class TaskFolder:
    """The files of some tasks, each of which stands after those that it needs anything of."""

    def __init__(self, root: Path, tasks: Sequence[Task]) -> None:
        self.root = root
        self.tasks = tasks
        self._read: dict[str, tuple[int, dict[str, Any]]] = {}  # results by name, as of a file's time

    def result_path(self, name: str) -> Path:
        """Return where a task's result is, or will be."""
        return self.root / "results" / f"{name}.json"

    def result(self, name: str) -> dict[str, Any] | None:
        """Return a task's result; None where it is not finished."""
        path = self.result_path(name)
        try:
            written = path.stat().st_mtime_ns
        except FileNotFoundError:
            return None
        known = self._read.get(name)
        if known is None or known[0] != written:
            try:
                known = self._read[name] = written, storage.read_json(path)
            except ValueError as error:
                raise ValueError(f"{error}; delete the file, and its task is done again") from None
        return known[1]

    def failed(self, name: str) -> bool:
        """Tell whether a task is finished and failed."""
        return "failed" in (self.result(name) or {})

    def path(self, made: str) -> Path:
        """Return the place of what a task makes, by its path among all tasks' files."""
        return self.root / "weights" / made

    def is_there(self, made: str) -> bool:
        """Tell whether what a task makes is there as a whole."""
        path = self.path(made)
        return storage.is_complete(path) if path.is_dir() else path.is_file()

    def lock(self, task: Task) -> contextlib.AbstractContextManager[bool]:
        """Return a context that takes a task, if no other process has it, and says whether it did."""
        return try_lock(self.root / "locks" / f"{task.name}.lock")

    def settling(self) -> contextlib.AbstractContextManager[object]:
        """Return a context in which no other process ends a task or deletes anything."""
        return wait_lock(self.root / "locks" / ".settling.lock")

    def unfinished(self) -> list[Task]:
        """Return tasks without a result, and those whose files have gone though another of these needs them."""
        found: list[Task] = []
        needed: set[str] = set()
        for task in reversed(self.tasks):
            if task.held:
                continue
            for_others = needed.intersection(task.makes)
            if self.result(task.name) is None:
                undone = not task.only_if_needed or bool(for_others)
            else:
                undone = not self.failed(task.name) and not all(self.is_there(path) for path in for_others)
            if undone:
                found.append(task)
                needed.update(task.needs)
        return found[::-1]

    def is_ready(self, task: Task, unfinished: Collection[str]) -> bool:
        """Tell whether everything that an unfinished task goes on from is there, or will never be."""
        return all(maker_of(path) not in unfinished for path in task.needs) and all(
            self.is_there(path) or maker_of(path) not in unfinished for path in task.uses
        )

    def prune(self) -> None:
        """Delete what no task needs or uses any more."""
        unfinished = self.unfinished()
        names = {task.name for task in unfinished}
        held = [task for task in self.tasks if task.held and self.result(task.name) is None]
        kept = {tuple(path.split("/")[:2]) for task in (*unfinished, *held) for path in (*task.needs, *task.uses)}
        for task in self.tasks:
            folder = self.path(task.name)
            if task.name in names or not folder.exists():
                continue
            for part in folder.iterdir():
                if (task.name, part.name) in kept:
                    continue
                if part.is_dir():
                    storage.remove_folder(part)
                else:
                    part.unlink()
            with contextlib.suppress(OSError):
                folder.rmdir()

    def remove_leftovers(self) -> None:
        """Delete what killed processes were writing: of tasks that no living one works on."""
        for task in self.tasks:
            if self.path(task.name).exists():
                with self.lock(task) as free:
                    if free:
                        remove_leftovers(self.path(task.name))


def run_tasks(
    folder: TaskFolder, carry_out: CarryOut, on_result: Callable[[Task], object] = lambda task: None
) -> None:
    """Take one task after the other until none is left, beside any other process that does the same.

    `on_result` is called after each that this process finished. When it returns no process will delete anything of
    these tasks any more.
    """
    with folder.settling():  # under which all results are written, and all is deleted
        folder.remove_leftovers()
        storage.remove_leftovers(folder.root / "results")
        folder.prune()  # a kill may have come before all was deleted
    while unfinished := folder.unfinished():
        task = _take_one(folder, carry_out, unfinished)
        if task is None:
            time.sleep(_POLL_SECONDS)
            continue
        on_result(task)
    with folder.settling():
        pass


def _take_one(folder: TaskFolder, carry_out: CarryOut, unfinished: Sequence[Task]) -> Task | None:
    # Carry out the first task that is ready and free, and return it.
    names = {task.name for task in unfinished}
    for task in unfinished:
        if not folder.is_ready(task, names):
            continue
        with folder.lock(task) as free:
            # Another process may have finished it since.
            if free and task.name in {other.name for other in folder.unfinished()}:
                result = _result(folder, carry_out, task)
                with folder.settling():
                    storage.write_json(folder.result_path(task.name), result)
                    folder.prune()
                return task
    return None


def _result(folder: TaskFolder, carry_out: CarryOut, task: Task) -> dict[str, Any]:
    for path in task.needs:
        if folder.failed(maker_of(path)):
            return {"name": task.name, "failed": f"{maker_of(path)} failed"}
    try:
        return carry_out(task)
    except (FloatingPointError, ValueError) as error:
        # One recipe that diverges must not end a search; the record says which, and deleting its result tries again.
        logger.warning("%s failed: %s", task.name, error)
        return {"name": task.name, "failed": " ".join(str(error).split())}
