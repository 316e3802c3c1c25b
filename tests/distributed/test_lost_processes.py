"""One process of a launch is gone: the others end soon, whatever they wait for, and one line says so."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed
from accelerate import PartialState
from test_processes import free_port

from hf_progressive.distributed import lost_processes
from hf_progressive.distributed.lost_processes import EXIT_CODE, ended_with_the_others

Work = Callable[[PartialState], object]


def two_processes(work: Work, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[int | None], list[str]]:
    """Let two processes work under each other's watch; return exit codes and what was written."""
    port, told = str(free_port()), folder / "told"
    monkeypatch.setattr(lost_processes, "_GRACE_SECONDS", 1.0)

    def process(rank: int) -> None:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
        os.environ.update(MASTER_PORT=port)
        with told.open("a") as file:
            os.dup2(file.fileno(), sys.stderr.fileno())
        PartialState._reset_state()
        state = PartialState(cpu=True)
        with ended_with_the_others(state):
            work(state)

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=process, args=(rank,)) for rank in range(2)]
    for one in processes:
        one.start()
    for one in processes:
        one.join(timeout=120)
    codes = [one.exitcode for one in processes]
    for one in processes:
        one.kill()
    return codes, [line for line in told.read_text().splitlines() if "hf-progressive" in line]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other(victim: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(state: PartialState) -> None:
        state.wait_for_everyone()
        if state.process_index == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        torch.distributed.barrier()

    codes, lines = two_processes(work, tmp_path, monkeypatch)
    assert codes[victim] == -signal.SIGKILL
    assert codes[1 - victim] == EXIT_CODE
    (line,) = lines
    assert ("process 1 on " if victim else "the first process") in line
    assert "is gone: it was killed, or its host or the network failed; start again" in line


def test_one_that_failed_has_said_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(state: PartialState) -> None:
        state.wait_for_everyone()
        if state.process_index == 1:
            raise ValueError("bad input")
        time.sleep(60)

    codes, lines = two_processes(work, tmp_path, monkeypatch)
    assert codes == [EXIT_CODE, 1]
    assert lines == []


@pytest.mark.parametrize("first", [0, 1])
def test_one_that_leaves_in_order_ends_nobody(first: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(state: PartialState) -> None:
        state.wait_for_everyone()
        if state.process_index != first:
            time.sleep(2)

    assert two_processes(work, tmp_path, monkeypatch) == ([0, 0], [])
