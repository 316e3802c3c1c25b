"""Every call by which a process changes what is on the disk: counted, the state of the disk kept, or met with a kill.

A state is what SIGKILL before that call would leave, for the system keeps what a process has written. Between two
states that differ in a file written at one go stands a third, in which that file is written half: libraries that are
not in Python write where no call is seen.
"""

import contextlib
import functools
import os
import random
import re
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hf_progressive.storage import durable

CALLS = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "open"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

_PASSING = re.compile(r"\.tmp(/|$)|(^|/)\.saving(/|$)|\.lock$|(^|/)progress\.json$")
"""Paths that the next start removes, or where it is of no importance what stands there."""

_Facts = tuple[int, int, int]
"""A file's inode, size and time; zeros of a folder."""

Met = Callable[[int, str], object]
"""Called before a durable call with its number, from 1, and what it is; it may raise, or not come back."""


def watch(root: Path, met: Met) -> None:
    """Call `met` before each durable call of this process below a folder, from now to the process's end."""
    watched, process, turn, count = os.fspath(root), os.getpid(), threading.RLock(), 0
    met_now = threading.local()

    def meet(call: str, path: Any, folder: int = -1) -> None:
        nonlocal count
        if os.getpid() != process or getattr(met_now, "busy", False) or isinstance(path, int):
            return
        place = os.fsdecode(path)
        if not place.startswith("/"):
            place = os.path.join(os.readlink(f"/proc/self/fd/{folder}") if folder >= 0 else os.getcwd(), place)
        if not place.startswith(watched):
            return
        with turn:
            met_now.busy = True
            try:
                count += 1
                met(count, f"{call} {os.path.relpath(place, watched)} in {watched}")
            finally:
                met_now.busy = False

    def audit(event: str, given: tuple[Any, ...]) -> None:
        if event in CALLS and not (event == "open" and not (isinstance(given[2], int) and given[2] & _WRITES)):
            at = {"os.remove": 1, "os.rmdir": 1, "os.mkdir": 2}.get(event)
            meet(event, given[0], given[at] if at is not None else -1)

    exchange = durable._exchange

    def fsync(descriptor: Any) -> None:
        # Nothing is flushed: the system outlives the process.
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        meet("os.fsync", os.readlink(f"/proc/self/fd/{number}"))

    def exchanging(first: Path, second: Path) -> bool:
        meet("renameat2", second)
        return exchange(first, second)

    os.fsync, durable._exchange = fsync, exchanging
    sys.addaudithook(audit)


def die_at(number: int) -> Met:
    """Kill the process at a call."""
    return functools.partial(_die_at, number)


def _die_at(number: int, count: int, call: str) -> None:
    if count == number:
        os.kill(os.getpid(), signal.SIGKILL)


def raise_from(number: int, error: int) -> Met:
    """Let a call, and all after it that write, fail with an error of the system."""
    return functools.partial(_raise_from, number, error)


def _raise_from(number: int, error: int, count: int, call: str) -> None:
    if count >= number and not call.startswith(("os.remove", "os.rmdir")):
        raise OSError(error, os.strerror(error))


def vanish_at(number: int) -> Met:
    """Let all that is in the folder be gone at a call."""
    return functools.partial(_vanish_at, number)


def _vanish_at(number: int, count: int, call: str) -> None:
    if count == number:
        root = Path(call.partition(" ")[2].partition(" in ")[2])
        for path in root.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


class StatesKept:
    """Keep states of a folder before its durable calls.

    With `by_kind`, states that differ only in what the next start removes are of one kind, of which one is kept, drawn
    by chance; otherwise each is a kind of its own.

    Args:
        root: The folder.
        kept: Where a numbered copy of each goes, with `calls.txt`, which names the calls.
        every: Keep of one kind of so many only.
        by_kind: Whether to keep one state of a kind, or all.
        seed: Draws which.
    """

    def __init__(self, root: Path, kept: Path, *, every: int, by_kind: bool, seed: int):
        self.root, self.kept, self.every, self.by_kind = root, kept, every, by_kind
        self.draw = random.Random(seed)
        self.first = self.draw.randrange(every)
        self.calls = self.states = self.kinds = self.alike = 0
        self.files: dict[str, _Facts] = {}
        self.lasting: dict[str, _Facts] = {}
        kept.mkdir()

    def __call__(self, count: int, call: str) -> None:
        self.calls = count
        files = dict(_files(self.root))
        if files == self.files:
            return
        before = {facts[0]: facts for facts in self.files.values()}
        written = [path for path, facts in files.items() if before.get(facts[0]) != facts and facts[1]]
        for half in written:
            self._meet(files, f"before {call}, {half} half written", half)
        self._meet(files, f"before {call}")
        self.files = files

    def _meet(self, files: dict[str, _Facts], call: str, half: str | None = None) -> None:
        lasting = {path: facts for path, facts in files.items() if not _PASSING.search(path)}
        if half in lasting:
            lasting[half] = (0, 1, 0)
        if self.states == 0 or lasting != self.lasting or not self.by_kind:
            self.kinds, self.alike, self.lasting = self.kinds + 1, 0, lasting
        self.states, self.alike = self.states + 1, self.alike + 1
        if self.kinds % self.every == self.first and self.draw.random() < 1 / self.alike:
            copy = self.kept / f"{self.kinds:04d}"
            shutil.rmtree(copy, ignore_errors=True)
            copy_folder(self.root, copy)
            copy.with_suffix(".txt").write_text(call)
            if half is not None:
                content = (copy / half).read_bytes()
                (copy / half).unlink()  # its other names keep the whole
                (copy / half).write_bytes(content[: len(content) // 2])

    def write_counts(self) -> None:
        """Say how many calls, states and kinds of states there were."""
        (self.kept / "counts.txt").write_text(f"{self.calls} {self.states} {self.kinds}")


def _files(root: Path) -> Iterator[tuple[str, _Facts]]:
    for place, folders, files in os.walk(root):
        for name in folders:
            yield os.path.relpath(os.path.join(place, name), root), (0, 0, 0)
        for name in files:
            with contextlib.suppress(FileNotFoundError):
                found = os.lstat(os.path.join(place, name))
                path = os.path.relpath(os.path.join(place, name), root)
                yield path, (found.st_ino, found.st_size, found.st_mtime_ns)


def copy_folder(source: Path, target: Path) -> None:
    """Copy a folder with its times and hard links."""
    first: dict[int, str] = {}
    for place, _, files in os.walk(source):
        there = os.path.join(target, os.path.relpath(place, source))
        os.makedirs(there, exist_ok=True)
        for name in files:
            one, other = os.path.join(place, name), os.path.join(there, name)
            with contextlib.suppress(FileNotFoundError):
                inode = os.lstat(one).st_ino
                if inode in first:
                    os.link(first[inode], other)
                else:
                    first[inode] = shutil.copy2(one, other)
