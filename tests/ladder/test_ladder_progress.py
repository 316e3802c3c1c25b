import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hf_progressive.ladder import ladder_progress
from hf_progressive.planning.ladder_plan import RungPlan
from hf_progressive.training.callbacks import ProgressBar


def rung(name: str, parent: str | None, flops: float) -> RungPlan:
    size = SimpleNamespace(tokens=2000, flops=2 * flops)
    return cast(RungPlan, SimpleNamespace(name=name, parent=parent, tokens=1000, flops=flops, size=size))


def test_a_ladder_says_which_training_begins_and_what_is_left(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 10.0, 40.0])
    monkeypatch.setattr(ladder_progress.time, "monotonic", lambda: next(clock))
    small, large = rung("small", None, 1e9), rung("large", "small", 3e9)
    watched = ladder_progress.LadderProgress([(small, False), (large, False), (large, True)], finished=1)
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            watched.begin()
            watched.end()
    assert [record.getMessage() for record in caplog.records] == [
        "2 of 4: small, from scratch, 1,000 tokens",
        "3 of 4: large, grown from small, 1,000 tokens; about 1 min 30 s left for the whole",  # 10 s × 9e9 / 1e9
        "4 of 4: baseline of large, from scratch, 2,000 tokens; about 1 min 00 s left for the whole",  # 40 s × 6 / 4
    ]


def test_where_bars_are_off_lines_stand_in_for_them(caplog: pytest.LogCaptureFixture) -> None:
    bar = ProgressBar("l2", bits_per_nat_token=0.5)
    state: Any = SimpleNamespace(is_world_process_zero=True, max_steps=10, global_step=0)
    bar.on_train_begin(SimpleNamespace(disable_tqdm=True), state, None)
    state.global_step = 5
    with caplog.at_level(logging.INFO):
        bar.on_step_end(None, state, None)
        bar.on_log(None, state, None, {"loss": 3.25, "tokens_per_second": 12_300.0})
        bar.on_log(None, state, None, {"eval_loss": 3.0})
        bar.on_train_end(None, state, None)
    assert [record.getMessage() for record in caplog.records] == [
        "l2: step 5 of 10, loss 3.250, tokens/s 12.3k, bits/byte 1.5000"
    ]
