"""Locks between processes: files that the operating system locks, and lets go of with the process that holds them."""

import contextlib
import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

fcntl: Any = importlib.import_module("fcntl") if os.name == "posix" else None
"""Locks of open files; None on Windows, where a file that is open can be neither deleted nor opened by others."""


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


@contextlib.contextmanager
def file_in_use(path: Path) -> Iterator[None]:
    """Create a file and hold it while it is written, whatever its name is by then, against `remove_unless_in_use`.

    On Windows, where nobody else could open it then, it is neither created nor held.
    """
    if fcntl is None:
        yield
        return
    descriptor = _created(path)
    try:
        yield
    finally:
        os.close(descriptor)


def remove_unless_in_use(path: Path) -> None:
    """Delete a file, if it is there and no process that lives writes it in a block of `file_in_use`."""
    if fcntl is None:
        path.unlink(missing_ok=True)
        return
    try:
        descriptor = os.open(path, os.O_RDWR if os.access(path, os.W_OK) else os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        if _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _created(path: Path) -> int:
    # Between its making and its locking, another process may remove it as one that was left behind.
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        _lock(descriptor, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)


def _lock(descriptor: int, how: int) -> bool:
    # Whether nobody else has it; a file system without locks tells of none.
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True
