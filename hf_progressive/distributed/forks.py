"""Forks that find no thread of compiled code at work.

In Python 3.11 before 3.11.10 a forked process waits for ever if another thread of its parent was, at that moment,
being made known to the interpreter: the lock of the list of threads is taken in the copy, too, which waits for it
before it makes it anew (https://github.com/python/cpython/issues/112275). PyTorch's threads for Gloo (2.13) are made
known so, without the interpreter's lock, when they let go of a tensor after a collective. A data loader waits for
such a worker without end, and so does the rest of the launch; SIGTERM does not end it.
"""

import functools
import os
import sys
import threading
import time
from pathlib import Path

import torch.distributed

_THREADS = Path("/proc/self/task")
_PAUSE_SECONDS, _LONGEST_SECONDS = 0.0005, 0.5  # a thread that computes all the time must not hold up the forks
_TELLING = ("State:", "voluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:")


@functools.cache
def fork_while_threads_rest() -> None:
    """Let this process's forks wait a moment for the threads of a launch to rest, where Python needs that."""
    if sys.version_info < (3, 11, 10) and _THREADS.is_dir():
        os.register_at_fork(before=_wait_in_a_launch)


def _wait_in_a_launch() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        wait_for_rest()


def wait_for_rest() -> None:
    """Wait until no thread but Python's own has run for a moment, half a second at most."""
    deadline = time.monotonic() + _LONGEST_SECONDS
    before, now = None, _foreign_threads()
    while (now != before or not all("\tS" in told[0] for told in now.values())) and time.monotonic() < deadline:
        time.sleep(_PAUSE_SECONDS)  # and they may have the interpreter's lock
        before, now = now, _foreign_threads()


def _foreign_threads() -> dict[str, tuple[str, ...]]:
    # By number: whether each sleeps, and how often it went to sleep or was made to wait.
    own = {str(thread.native_id) for thread in threading.enumerate()}
    found = {}
    for number in {entry.name for entry in _THREADS.iterdir()} - own:
        try:
            lines = (_THREADS / number / "status").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):  # it has ended
            continue
        found[number] = tuple(line for line in lines if line.startswith(_TELLING))
    return found
