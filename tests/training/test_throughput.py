"""Tokens per second and utilisation of a run whose every step, evaluation and checkpoint takes a known time."""

import json
from types import SimpleNamespace

import pytest
import torch

from hf_progressive.training import throughput
from hf_progressive.training.throughput import ThroughputMeter, elapsed_at

STEP_SECONDS, EVALUATION_SECONDS, SAVE_SECONDS, STABLE_SECONDS = 2.0, 7.0, 11.0, 5.0


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def run(meter, clock, *, steps, first=0, log_at=(), evaluate_at=(), save_at=(), stable_at=None, kept=None):
    """Call what Trainer calls, in its order; return what was logged."""
    state, logs = SimpleNamespace(global_step=first, stateful_callbacks={} if kept is None else kept), {}
    control = SimpleNamespace(should_log=False, should_evaluate=False, should_save=False)
    meter.on_train_begin(None, state, control)
    if 0 in evaluate_at and not first:
        clock.now += EVALUATION_SECONDS
        meter.on_evaluate(None, state, control)
    for step in range(first + 1, steps + 1):
        clock.now += STEP_SECONDS
        state.global_step = step
        control.should_log, control.should_evaluate, control.should_save = (
            step in chosen for chosen in (log_at, evaluate_at, save_at)
        )
        meter.on_step_end(None, state, control)
        if step == stable_at:
            clock.now += STABLE_SECONDS
            meter.saving(STABLE_SECONDS)
        if control.should_log:
            logs[step] = meter.at_log(step)
        if control.should_evaluate:
            clock.now += EVALUATION_SECONDS
            meter.on_evaluate(None, state, control)
        if control.should_save:
            clock.now += SAVE_SECONDS
            meter.on_save(None, state, control)
    meter.on_train_end(None, state, control)
    return logs


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(throughput, "time", SimpleNamespace(monotonic=clock))
    return clock


def new_meter(processes=1, **options):
    device = torch.device("cpu")
    return ThroughputMeter(step_tokens=512, flops_per_token=1e6, device=device, processes=processes, **options)


@pytest.mark.parametrize("stable_at", [None, 3, 4])
def test_only_training_counts_towards_the_speed(clock, stable_at, monkeypatch):
    monkeypatch.setattr(throughput, "peak_flops", lambda device: 1e9)
    meter = new_meter(processes=4)
    logs = run(meter, clock, steps=8, log_at=(4, 8), evaluate_at=(0, 4, 6), save_at=(4, 8), stable_at=stable_at)
    rate = 512 / STEP_SECONDS
    assert logs == {step: pytest.approx({"tokens_per_second": rate, "mfu": rate * 1e6 / (4 * 1e9)}) for step in (4, 8)}
    summary = meter.summary()
    saving = 2 * SAVE_SECONDS + (STABLE_SECONDS if stable_at else 0)
    assert summary["seconds"] == pytest.approx({"training": 16.0, "evaluation": 21.0, "saving": saving})
    assert (summary["tokens"], summary["processes"], summary["device"]) == (8 * 512, 4, "cpu")
    assert summary["tokens_per_second"] == pytest.approx(rate)


def test_a_continued_run_counts_what_it_did_itself(clock):
    meter = new_meter()
    logs = run(meter, clock, steps=8, first=6, log_at=(8,), evaluate_at=(8,))
    assert logs == {8: {"tokens_per_second": pytest.approx(256.0)}}  # no peak is known of a CPU
    assert meter.summary()["tokens"] == 2 * 512
    assert meter.summary()["mfu"] is None


def test_a_run_without_a_step_has_no_speed(clock):
    meter = new_meter()
    run(meter, clock, steps=8, first=8)
    assert (meter.summary()["tokens_per_second"], meter.summary()["tokens"]) == (None, 0)


def test_what_any_accelerator_was_given_counts_where_it_was_given(clock, monkeypatch):
    waited = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    device = torch.device("mps")
    run(ThroughputMeter(step_tokens=512, flops_per_token=1e6, device=device), clock, steps=2, evaluate_at=[1])
    assert waited == [device] * 3  # before and after the evaluation, and at the end


def test_a_run_that_went_on_has_taken_the_time_up_to_its_checkpoint_too(clock, tmp_path):
    kept = {}
    run(new_meter(), clock, steps=6, evaluate_at=(0, 6), save_at=(6,), kept=kept)
    (tmp_path / "trainer_state.json").write_text(json.dumps({"stateful_callbacks": kept}))
    meter = new_meter(started=clock.now - 3.0, before=elapsed_at(tmp_path))
    run(meter, clock, steps=8, first=6, evaluate_at=(8,))
    evaluation = 3 * EVALUATION_SECONDS
    assert meter.elapsed() == pytest.approx(
        {"seconds": 8 * STEP_SECONDS + evaluation + 3.0, "evaluation_seconds": evaluation}
    )
    (tmp_path / "trainer_state.json").write_text("{}")  # of an older version
    assert elapsed_at(tmp_path) == elapsed_at(None) == {"seconds": 0.0, "evaluation_seconds": 0.0}
