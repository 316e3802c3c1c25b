"""Killed at any call that changes the disk, and again while recovering, each command ends with the same bits.

One process does the work and keeps the state of its folder before each such call: what SIGKILL would leave there. From
each state others go on. `HF_PROGRESSIVE_EVERY_KILL=1` goes on from all of them, which takes some ten minutes of one
core; otherwise from one of a few, drawn by a seed.
"""

import logging
import os
import random
import shutil
import signal
from pathlib import Path

import pytest
from durable_calls import StatesKept, die_at
from durable_works import WORKS, assert_nothing_is_half, carry_out, left_in

logger = logging.getLogger(__name__)

ALL = "HF_PROGRESSIVE_EVERY_KILL" in os.environ
SEED = 5
CALLS_OF_A_RECOVERY = 40
"""Within so many calls of a recovery it is killed, too."""


@pytest.mark.slow
@pytest.mark.parametrize("name", WORKS)
def test_killed_at_any_call_it_ends_with_the_same_bits(name: str, tmp_path: Path) -> None:
    work, run, kept, draw = WORKS[name], tmp_path / "run", tmp_path / "kept", random.Random(SEED)
    (tmp_path / "given").mkdir()
    work.give(tmp_path / "given")
    states = StatesKept(run, kept, every=1 if ALL else work.every, by_kind=work.by_kind, seed=SEED)
    code, lines = carry_out(name, tmp_path, states)
    assert code == 0, lines
    whole = left_in(run)
    kills = 1  # the last is of a work that was done
    for state in [*sorted(path for path in kept.iterdir() if path.is_dir()), run.rename(tmp_path / "whole")]:
        assert_nothing_is_half(state)
        state.rename(run)
        if draw.random() < 0.4:
            code, lines = carry_out(name, tmp_path, die_at(draw.randint(1, CALLS_OF_A_RECOVERY)))
            assert code in (0, -signal.SIGKILL), lines
            kills += code != 0
        code, lines = carry_out(name, tmp_path)
        where = state.with_suffix(".txt").read_text() if state.with_suffix(".txt").exists() else "at the end"
        assert code == 0, (where, lines)
        left = left_in(run)
        assert {path for path in left | whole if left.get(path) != whole.get(path)} == set(), where
        shutil.rmtree(run)
        kills += 1
    calls, all_states, kinds = (kept / "counts.txt").read_text().split()
    figures = "%s: %s calls, %s states, of which %s to go on from; %d kills, 0 differing bits"
    logger.info(figures, name, calls, all_states, kinds, kills)
