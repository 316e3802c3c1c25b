"""A study's folder: where results and weights are, what is still to be done, and what may go.

    STUDY/study.yaml STUDY/study.json
    STUDY/data/              tokenizer and blocks, shared by all seeds
    STUDY/results/NAME.json  one per finished task; they stay
    STUDY/weights/START/     init/ (the initial checkpoint), parent/ (the parent with its estimates, where Φ is on)
    STUDY/weights/RUN/       checkpoints/, final/ and stable/ (the weights after and before the decay)
    STUDY/locks/NAME.lock    held by the process that works on a task, and gone with it

Weights are kept only as long as a task that is still to be done needs them.
"""

import contextlib
import shutil
from pathlib import Path
from typing import Any

from hf_progressive import storage
from hf_progressive.storage.locks import try_lock
from hf_progressive.study.plan import StudyPlan
from hf_progressive.study.tasks import Run, Start, Task
from hf_progressive.training.checkpoints import remove_leftovers

OPTIMIZER_NAME = "optimizer.pt"
"""Trainer's file of Adam's moments, in the folder of the weights that they belong to."""


class StudyFolder:
    """The files of a study.

    Args:
        root: The study's folder.
        plan: What is to be in it.
    """

    def __init__(self, root: Path, plan: StudyPlan) -> None:
        self.root = root
        self.plan = plan
        self._read: dict[str, tuple[int, dict[str, Any]]] = {}  # results by name, as of a file's time
        self._children: dict[str, list[Start]] = {}
        for start in plan.graph.starts.values():
            if start.parent is not None:
                self._children.setdefault(start.parent.name, []).append(start)

    def result_path(self, task: Task) -> Path:
        """Return where a task's result is, or will be.

        Args:
            task: A start or a run.

        Returns:
            A JSON file.
        """
        return self.root / "results" / f"{task.name}.json"

    def result(self, task: Task) -> dict[str, Any] | None:
        """Return a task's result.

        Args:
            task: A start or a run.

        Returns:
            What was recorded; None where the task is not finished.
        """
        path = self.result_path(task)
        try:
            written = path.stat().st_mtime_ns
        except FileNotFoundError:
            return None
        known = self._read.get(task.name)
        if known is None or known[0] != written:
            known = self._read[task.name] = written, storage.read_json(path)
        return known[1]

    def weights(self, task: Task) -> Path:
        """Return the folder of a task's weights.

        Args:
            task: A start or a run.

        Returns:
            A folder, which may not be there.
        """
        return self.root / "weights" / task.name

    def parent_weights(self, start: Start) -> Path:
        """Return the checkpoint that a start is grown from.

        Args:
            start: A start with a parent.

        Returns:
            The parent's weights after its decay, or before it where the recipe says so.
        """
        assert start.parent is not None
        assert start.ladder is not None
        return self.weights(start.parent) / start.ladder.growth.parent

    def heirs(self, run: Run) -> list[Start]:
        """Return the starts that are grown from a run.

        Args:
            run: The run.

        Returns:
            Starts, none for most runs.
        """
        return self._children.get(run.name, [])

    def has_weights(self, task: Task) -> bool:
        """Tell whether a task's weights are there, as far as others need them.

        Args:
            task: A start or a run.

        Returns:
            Whether its initial checkpoint, or everything its heirs grow from, is complete.
        """
        if isinstance(task, Start):
            parts = [self.weights(task) / "init"]
            if task.estimates_inheritance:
                parts.append(self.weights(task) / "parent")
            return all(storage.is_complete(part) for part in parts)
        return all(
            storage.is_complete(self.parent_weights(heir))
            and (not heir.carry_moments or (self.parent_weights(heir) / OPTIMIZER_NAME).exists())
            for heir in self.heirs(task)
        )

    def unfinished(self) -> list[Task]:
        """Return the tasks that are still to be done, in the plan's order.

        Returns:
            Tasks without a result, and tasks whose weights have gone though another of these needs them.
        """
        names: set[str] = set()
        for task in reversed(self.plan.tasks):
            if isinstance(task, Run):
                wanted = any(heir.name in names for heir in self.heirs(task))
            else:
                wanted = any(run.name in names for group in task.groups for run in group.runs)
            result = self.result(task)
            if result is None:
                undone = wanted or isinstance(task, Run)  # a start is made for its runs alone
            else:
                undone = wanted and "failed" not in result and not self.has_weights(task)
            if undone:
                names.add(task.name)
        return [task for task in self.plan.tasks if task.name in names]

    def branch_checkpoint(self, run: Run, *, exactly: bool) -> Path | None:
        """Return the trunk's checkpoint that a run can go on from.

        Args:
            run: The run.
            exactly: Accept the one where its decay begins only, not an earlier one.

        Returns:
            A complete checkpoint; None where there is none.
        """
        if run.is_trunk:
            return None
        folder = self.weights(run.group.trunk) / "checkpoints"
        steps = [run.branch_step] if exactly else sorted(_steps_of(folder), reverse=True)
        paths = (folder / f"checkpoint-{step}" for step in steps if step <= run.branch_step)
        return next((path for path in paths if storage.is_complete(path)), None)

    def prune(self, unfinished: list[Task]) -> None:
        """Delete the weights that no task needs any more.

        Args:
            unfinished: The tasks that are still to be done.
        """
        names = {task.name for task in unfinished}
        for task in self.plan.tasks:
            folder = self.weights(task)
            if task.name in names or not folder.exists():
                continue
            if isinstance(task, Start):
                if not any(run.name in names for group in task.groups for run in group.runs):
                    shutil.rmtree(folder, ignore_errors=True)
                continue
            if not any(heir.name in names for heir in self.heirs(task)):
                for part in ("final", "stable"):
                    shutil.rmtree(folder / part, ignore_errors=True)
            if not (task.is_trunk and any(run.name in names for run in task.group.runs)):
                shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            with contextlib.suppress(OSError):
                folder.rmdir()

    def remove_leftovers(self) -> None:
        """Delete what killed processes were writing: of tasks that no living one works on."""
        for task in self.plan.tasks:
            if self.weights(task).exists():
                with self.lock(task) as free:
                    if free:
                        remove_leftovers(self.weights(task))

    def lock(self, task: Task) -> contextlib.AbstractContextManager[bool]:
        """Try to take a task, so that no other process does.

        Args:
            task: A start or a run.

        Returns:
            A context that says whether it was free. The lock goes with the process, however it ends.
        """
        return try_lock(self.root / "locks" / f"{task.name}.lock")


def _steps_of(folder: Path) -> list[int]:
    names = (path.name.rpartition("-") for path in folder.glob("checkpoint-*"))
    return [int(step) for _, _, step in names if step.isdigit()]


def link_weights(source: Path, target: Path) -> None:
    """Make a folder of another one's model, tokenizer and moments, linked where the file system can.

    Args:
        source: A checkpoint with a manifest.
        target: The folder to make.
    """
    left_out = {"trainer_state.json", "training_args.bin", "scheduler.pt", storage.MANIFEST_NAME}
    files = storage.read_json(source / storage.MANIFEST_NAME)["files"]
    kept = {name: entry.get("sha256") for name, entry in files.items() if _belongs(name, left_out)}
    with storage.atomic_folder(target, overwrite=True, sha256=kept) as temporary:
        for name in kept:
            storage.link_or_copy(source / name, temporary / name)


def _belongs(name: str, left_out: set[str]) -> bool:
    return "/" not in name and name not in left_out and not name.startswith("rng_state")
