"""Locks between processes: files that the operating system locks, and lets go of with the process that holds them."""

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from hf_progressive import storage


@contextlib.contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Take a lock if nobody holds it.

    Args:
        path: The lock's file; it is created, with its folder.

    Yields:
        Whether the lock was free. It is let go at the end of the block, or with the process, however that ends.
    """
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
    """Wait until nobody holds a lock, and take it.

    Args:
        path: The lock's file; it is created, with its folder.

    Yields:
        Nothing; the lock is let go at the end of the block, or with the process, however that ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path):
        yield


@contextlib.contextmanager
def agreed(path: Path, text: str) -> Iterator[bool]:
    """Work with a file's content as long as nobody works with another.

    Any number of processes hold the same content at once, each by a lock of its own in a folder beside the file. Where
    there are none, the file is written anew.

    Args:
        path: The file.
        text: What it must hold.

    Yields:
        Whether it does: False where other processes hold another content.
    """
    members = path.with_name(f".{path.name}.users")
    members.mkdir(parents=True, exist_ok=True)
    own = members / f"{uuid.uuid4().hex}.lock"
    with contextlib.ExitStack() as stack:
        with wait_lock(path.with_name(f".{path.name}.lock")):
            if any([_is_held(member) for member in members.glob("*.lock")]):  # a list: the left ones go, every one
                agree = path.read_text(encoding="utf-8") == text
            else:
                with storage.atomic_file(path) as temporary:
                    temporary.write_text(text, encoding="utf-8")
                agree = True
            if agree:
                stack.callback(own.unlink, missing_ok=True)
                stack.enter_context(try_lock(own))
        yield agree


def _is_held(member: Path) -> bool:
    # What a process that was killed left behind is removed.
    with try_lock(member) as free:
        if free:
            member.unlink(missing_ok=True)
        return not free
