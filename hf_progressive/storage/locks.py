"""Locks between processes: files that the operating system locks, and lets go of with the process that holds them."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout


@contextlib.contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Take a lock if nobody holds it, and tell whether that was so; its file is created, with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    with contextlib.suppress(Timeout):
        lock.acquire(blocking=False)
    try:
        yield lock.is_locked
    finally:
        lock.release()


@contextlib.contextmanager
def wait_lock(path: Path) -> Iterator[None]:
    """Wait until nobody holds a lock, and take it; its file is created, with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path):
        yield
