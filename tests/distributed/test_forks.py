"""Forks wait for threads of compiled code, which glibc starts here as PyTorch's libraries do."""

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch.distributed
from transformers import TrainingArguments

from hf_progressive.distributed import forks
from hf_progressive.training import trainer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="threads are looked at in /proc")
BYTES = 1 << 25


class Shuffling:
    """A thread that Python does not know, which computes for a while: glibc's `strfry` of many bytes."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None)
        self._text = ctypes.create_string_buffer(b"x" * BYTES)
        self._thread, self._joined = ctypes.c_ulong(), False
        start = ctypes.cast(self._libc.strfry, ctypes.c_void_p)
        assert self._libc.pthread_create(ctypes.byref(self._thread), None, start, self._text) == 0

    def has_ended(self) -> bool:
        self._joined = self._joined or self._libc.pthread_tryjoin_np(self._thread, None) == 0
        return self._joined

    def end(self) -> None:
        if not self._joined:
            self._libc.pthread_join(self._thread, None)


@pytest.fixture
def shuffling() -> Iterator[Shuffling]:
    yield (thread := Shuffling())
    thread.end()


@pytest.mark.parametrize(("in_a_launch", "version"), [(True, (3, 11, 7)), (False, (3, 11, 7)), (True, (3, 11, 10))])
def test_a_fork_waits_in_a_launch_under_a_python_that_needs_it(
    in_a_launch: bool, version: tuple[int, ...], monkeypatch: pytest.MonkeyPatch, shuffling: Shuffling
) -> None:
    hooks: list[Callable[[], None]] = []
    monkeypatch.setattr(forks, "_LONGEST_SECONDS", 60.0)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: in_a_launch)
    with monkeypatch.context() as within:
        within.setattr(sys, "version_info", version)
        within.setattr(os, "register_at_fork", lambda before: hooks.append(before))
        forks.fork_while_threads_rest.__wrapped__()
    for hook in hooks:
        hook()
    assert shuffling.has_ended() == (in_a_launch and version < (3, 11, 10))


def test_a_trainer_s_workers_are_forked_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []
    monkeypatch.setattr(trainer, "fork_while_threads_rest", lambda: asked.append(True))
    trainer.ProgressiveTrainer(torch.nn.Linear(1, 1), TrainingArguments(str(tmp_path), use_cpu=True))
    assert asked == [True]


def test_it_goes_on_beside_a_thread_that_never_rests(monkeypatch: pytest.MonkeyPatch, shuffling: Shuffling) -> None:
    monkeypatch.setattr(forks, "_LONGEST_SECONDS", 0.05)
    forks.wait_for_rest()
    assert not shuffling.has_ended()


def test_threads_of_python_s_own_may_work_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "_LONGEST_SECONDS", 60.0)
    over = threading.Event()
    working = threading.Thread(target=lambda: [time.monotonic() for _ in iter(over.is_set, True)])
    working.start()
    began = time.monotonic()
    forks.wait_for_rest()
    over.set()
    working.join()
    assert time.monotonic() - began < 30
