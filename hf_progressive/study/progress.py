"""How far a study has come, for people: one line per finished task, with the time that is left."""

import logging
import time

from hf_progressive.study.folder import StudyFolder
from hf_progressive.study.tasks import Run, Task

logger = logging.getLogger(__name__)


class Progress:
    """Says what was done and how long the rest will take.

    The time left goes by what the whole folder gained since this process began, other processes' work included.

    Args:
        folder: The study's files.
    """

    def __init__(self, folder: StudyFolder) -> None:
        self._folder = folder
        self._began = time.monotonic()
        self._left_at_start = self._flops_left()

    def _flops_left(self) -> float:
        return sum(flops_spent(task) for task in self._folder.unfinished() if isinstance(task, Run))

    def title(self, run: Run) -> str:
        """Return what a run's progress bar is called.

        Args:
            run: The run.

        Returns:
            Its place among all runs, rung, recipe, seed and fraction.
        """
        runs = [task for task in self._folder.plan.tasks if isinstance(task, Run)]
        place = sum(self._folder.result(other) is not None for other in runs) + 1
        return (
            f"{place}/{len(runs)} {run.start.rung.name} {self._recipe(run)}, seed {run.start.seed}, {run.fraction:g}"
        )

    def _recipe(self, run: Run) -> str:
        # The first recipe that the run's group is measured for; what is a parent alone is none's.
        plan = self._folder.plan
        if any(run is swept for _, _, swept in plan.swept):
            return f"rate {run.group.learning_rate:g}"
        if run.start.parent is None:
            return "cold"
        return next((recipe for (recipe, _, _), runs in plan.children.items() if runs[0].group is run.group), "parent")

    def report(self, task: Task) -> None:
        """Log a finished run.

        Args:
            task: What was finished; starts pass without a line.
        """
        result = self._folder.result(task)
        if not isinstance(task, Run) or result is None or "failed" in result:
            return
        runs = [other for other in self._folder.plan.tasks if isinstance(other, Run)]
        done = sum(self._folder.result(other) is not None for other in runs)
        left, elapsed = self._flops_left(), time.monotonic() - self._began
        gained = self._left_at_start - left
        rest = f"; about {describe_seconds(left * elapsed / gained)} left" if gained > 0 and left > 0 else ""
        logger.info(
            "%d/%d %s %s, seed %d, %g of the budget: %.4f bits per byte in %s%s",
            done,
            len(runs),
            task.start.rung.name,
            self._recipe(task),
            task.start.seed,
            task.fraction,
            result["bits_per_byte"],
            describe_seconds(result["seconds"]),
            rest,
        )


def flops_spent(run: Run) -> float:
    """Return what a run costs the study: the steps that its trunk did not do for it.

    Args:
        run: The run.

    Returns:
        Training FLOPs.
    """
    own = run.steps if run.is_trunk else run.steps - run.branch_step
    return own / run.steps * run.flops


def describe_seconds(seconds: float) -> str:
    """Return a duration for people.

    Args:
        seconds: Seconds.

    Returns:
        Hours and minutes, minutes and seconds, or seconds.

    >>> describe_seconds(7325), describe_seconds(61), describe_seconds(5.4)
    ('2 h 02 min', '1 min 01 s', '5 s')
    """
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"
