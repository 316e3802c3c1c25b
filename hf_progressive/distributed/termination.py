"""SIGTERM outside of training: an orderly end, and a prompt one even where Python waits for other code.

The handler raises in the main thread, so that temporary folders go and the process group is left. Python runs it only
between two of its own instructions, though: never while a collective waits for a process that is gone. A thread
therefore ends the process, and what it started, when it has not come to its end by itself after some seconds. What it
leaves behind, the next start removes. While modules are imported there is nothing to tidy, and the process ends at
once. In training the trainer has a handler of its own, which ends it after a step.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

EXIT_CODE = 128 + signal.SIGTERM
"""Of a process that SIGTERM ended."""

GRACE_SECONDS = 10.0
"""What a process may take to come to its end by itself; launchers kill after 30."""


class Terminated(SystemExit):
    """SIGTERM came outside of training; the process exits with code 143."""


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end a block, and the process, with exit code 143.

    In a thread other than the first, where SIGTERM has a meaning already, and on Windows, it keeps that.

    Raises:
        SystemExit: SIGTERM came, as `Terminated`.
    """
    first = threading.current_thread() is threading.main_thread()
    if os.name != "posix" or not first or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    watch = _Watch()
    signal.signal(signal.SIGTERM, watch.heed)
    watch.begin()
    try:
        yield
    except SystemExit as error:
        if error.code == EXIT_CODE:
            watch.count_down()  # of the interpreter's own end too
        raise
    finally:
        if not watch.counting:
            watch.end()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


class _Watch:
    """The thread that makes sure of the end.

    The system writes a byte into a pipe when a signal comes, whatever Python is doing.
    """

    def __init__(self) -> None:
        self.counting = False
        self._process = os.getpid()
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._mask: set[int | signal.Signals] = set()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=self._hold_back, after_in_parent=self._let_through, after_in_child=self._leave_the_child_alone
            )

    def begin(self) -> None:
        self._before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        threading.Thread(target=self._read, name="sigterm", daemon=True).start()

    def end(self) -> None:
        signal.set_wakeup_fd(self._before)
        os.close(self._writing)

    def heed(self, number: int, frame: Any) -> None:
        if _imports(frame):
            end_now(EXIT_CODE)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: a second must not break what the first began
        self.count_down()
        raise Terminated(EXIT_CODE)

    def count_down(self) -> None:
        if not self.counting:
            self.counting = True
            timer = threading.Timer(GRACE_SECONDS, end_now, (EXIT_CODE,))
            timer.daemon = True
            timer.start()

    def _read(self) -> None:
        while numbers := os.read(self._reading, 64):
            # Another handler, such as the trainer's, looks after the signal itself.
            if signal.SIGTERM in numbers and signal.getsignal(signal.SIGTERM) == self.heed:
                self.count_down()
        os.close(self._reading)

    # A forked child shares the pipe, and its end is not this process's. No signal comes before it has let go of it.

    def _hold_back(self) -> None:
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def _let_through(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def _leave_the_child_alone(self) -> None:
        if self._process != os.getpid() and signal.getsignal(signal.SIGTERM) == self.heed:
            with contextlib.suppress(ValueError):  # forked by another thread than the first
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._let_through()


def _imports(frame: Any) -> bool:
    # Libraries that are half imported do not take an exception; some crash.
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def end_now(code: int) -> None:
    """End this process at once, and what it started."""
    for name in ("multiprocessing", "multiprocess"):  # the standard one, and that of datasets
        module = sys.modules.get(name)
        for child in module.active_children() if module else ():
            child.terminate()
    os._exit(code)
