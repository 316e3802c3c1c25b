"""How far a study has come, for people: one line per finished task, with the time that is left."""

import logging
import time

from hf_progressive.ladder.ladder_progress import describe_seconds
from hf_progressive.study.runner import TaskFolder
from hf_progressive.study.tasks import Task

logger = logging.getLogger(__name__)


class Progress:
    """Says what was done and how long the rest will take.

    The time left goes by what the whole folder gained since this process began, other processes' work included.
    """

    def __init__(self, folder: TaskFolder) -> None:
        self._folder = folder
        self._titled = [task for task in folder.tasks if task.title and not task.held]
        self._began = time.monotonic()
        self._left_at_start = self._flops_left()

    def _flops_left(self) -> float:
        return sum(task.flops for task in self._folder.unfinished())

    def _done(self) -> int:
        return sum(self._folder.result(task.name) is not None for task in self._titled)

    def title(self, task: Task) -> str:
        """Return what the progress bar of a task that is about to begin is called: its place, and its title."""
        return f"{self._done() + 1}/{len(self._titled)} {task.title}"

    def report(self, task: Task) -> None:
        """Log a finished task; one without a title passes without a line."""
        result = self._folder.result(task.name)
        if not task.title or result is None or "failed" in result:
            return
        left, elapsed = self._flops_left(), time.monotonic() - self._began
        gained = self._left_at_start - left
        rest = f"; about {describe_seconds(left * elapsed / gained)} left" if gained > 0 and left > 0 else ""
        logger.info(
            "%d/%d %s of the budget: %.4f bits per byte in %s%s",
            self._done(),
            len(self._titled),
            task.title,
            result["bits_per_byte"],
            describe_seconds(result["seconds"]),
            rest,
        )
