"""Tasks: what each needs of the others, and what it makes.

Files and folders are named by their path below the folder of all tasks' files, whose first part is the name of the
task that makes them: `TASK/final`.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Task:
    """What one process does at a time."""

    name: str
    """Unique name, which its result and its folder bear."""

    needs: tuple[str, ...] = ()
    """What must be there before it begins. Where the task that makes it failed, this one fails too."""

    uses: tuple[str, ...] = ()
    """What it goes on from where that is there. It waits until that is, or until the task that makes it has ended."""

    makes: tuple[str, ...] = ()
    """What it leaves for others."""

    only_if_needed: bool = False
    """Done for the tasks that need it alone: without one that is still to be done it may stay undone."""

    held: bool = False
    """Not done among these tasks; what it needs and uses is kept for those who may do it later."""

    title: str = ""
    """What people call it; empty for what passes without a line."""

    flops: float = 0.0
    """What it costs, to tell the time that is left."""

    work: object = None
    """What is to be done, for whoever carries it out."""


def maker_of(path: str) -> str:
    """Return the name of the task that makes a file or folder."""
    return path.partition("/")[0]


def connected(tasks: Iterable[Task]) -> list[Task]:
    """Return tasks, each with what the others need or use of it as what it makes.

    >>> first, second = connected([Task(name="a"), Task(name="b", needs=("a/final",))])
    >>> first.makes, second.makes
    (('a/final',), ())
    """
    tasks = list(tasks)
    paths = sorted({path for task in tasks for path in (*task.needs, *task.uses)})
    return [
        dataclasses.replace(task, makes=tuple(path for path in paths if maker_of(path) == task.name)) for task in tasks
    ]
