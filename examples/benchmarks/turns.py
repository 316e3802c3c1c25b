"""Programs that take turns: each runs in a thread of its own, and only while it is told to.

Timings of programs that run one after the other differ by whatever else the machine did meanwhile. Here each runs for
a short while, again and again, beside the others in the same state of the machine.
"""

import gc
import threading
from collections.abc import Callable

import torch


class Ended(Exception):
    """Raised in a program's thread when it will get no further turn."""


class Player(threading.Thread):
    """A program that runs until it pauses, whenever it gets a turn.

    Args:
        name: What it is called.
        program: What it does; it gets `pause`, to be called where a turn ends. `pause` returns with the next turn, or
            raises `Ended`.
    """

    def __init__(self, name: str, program: Callable[[Callable[[], None]], None]) -> None:
        super().__init__(name=name, daemon=True)
        self.failure: str | None = None
        """Why it ended, if not because it was told to."""
        self._program: Callable[[Callable[[], None]], None] | None = program
        self._threads = torch.get_num_threads()
        self._mine, self._theirs = threading.Semaphore(0), threading.Semaphore(0)
        self._ending = False
        self._over = False
        self.start()

    def run(self) -> None:
        """Wait for the first turn, then run the program."""
        self._mine.acquire()
        torch.set_num_threads(self._threads)  # each thread has a number of its own
        try:
            if self._program is not None and not self._ending:
                self.failure = "ended by an error of its own, which is on stderr"
                self._program(self._pause)
                self.failure = "ended before its time"
        except Ended:
            self.failure = None
        except (RuntimeError, ValueError, ArithmeticError, OSError) as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
            self.failure = f"{type(error).__name__}: {lines[0][:300]}"
        finally:
            self._program = None
            self._over = True
            self._theirs.release()

    def turn(self) -> bool:
        """Give it a turn and wait until that is over.

        Returns:
            Whether it can have another.
        """
        if not self._over:
            self._mine.release()
            self._theirs.acquire()
        return not self._over

    def end(self) -> None:
        """Let it unwind, and forget what it held."""
        self._ending = True
        self.turn()
        self.join()
        gc.collect()

    def _pause(self) -> None:
        self._theirs.release()
        self._mine.acquire()
        if self._ending:
            raise Ended
