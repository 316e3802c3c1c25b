"""What a ladder tells while it trains: which training run of how many, its curve as it grows, and that it stopped."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ladder_fixtures import RUNGS, ladder_mapping, write_ladder
from transformers import TrainerCallback

from hf_progressive.config import load_ladder_config
from hf_progressive.ladder import live_record
from hf_progressive.ladder.rung_loop import run_ladder
from hf_progressive.records.run_progress import PROGRESS_NAME, ProgressRecord, read_progress
from hf_progressive.records.rung import RungRecord
from hf_progressive.training import training_run

SHORT = {
    "rungs": RUNGS[:2],
    "cold": ["l2w16"],
    "phi": {"ewc_lambda": 0.0, "gamma": 0.0},
    "training": ladder_mapping(Path())["training"] | {"tokens_per_parameter": 0.1, "evaluations": 2, "checkpoints": 2},
}


class _Stop(TrainerCallback):
    def __init__(self, title: str, step: int) -> None:
        self.title, self.step = title, step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if (args.run_name, state.global_step) == (self.title, self.step):
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[ProgressRecord], list[ProgressRecord]]:
    """A run folder, what it told until it was stopped in its second rung, and what when it went on."""
    folder = tmp_path_factory.mktemp("live")
    config, run = load_ladder_config(write_ladder(folder, **SHORT)), folder / "run"
    before: list[ProgressRecord] = []
    after: list[ProgressRecord] = []
    build = training_run.ProgressiveTrainer.__init__

    def with_stop(trainer: Any, *args: Any, callbacks: Any = (), **kwargs: Any) -> None:
        build(trainer, *args, callbacks=[*callbacks, _Stop("l2w16", 6)], **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(live_record, "SECONDS_BETWEEN", 0.0)
        patch.setattr(live_record, "_TIMES_ITS_COST", 0.0)
        patch.setattr(training_run.ProgressiveTrainer, "__init__", with_stop)
        with pytest.raises(KeyboardInterrupt):
            run_ladder(config, run, on_progress=lambda at: before.append(read_progress(at)))
        patch.setattr(training_run.ProgressiveTrainer, "__init__", build)
        assert (run / PROGRESS_NAME).is_file()
        run_ladder(config, run, on_progress=lambda at: after.append(read_progress(at)))
    return run, before, after


@pytest.mark.slow
def test_every_step_of_the_work_and_every_log_is_told(told: Any) -> None:
    _, before, after = told
    assert [(t.name, t.parent, t.is_baseline) for t in before[0].trainings] == [
        ("l1w16", None, False), ("l2w16", "l1w16", False), ("l2w16", None, True)
    ]  # fmt: skip
    steps = [(record.current, record.activity) for record in (*before, *after)]
    assert list(dict.fromkeys(steps)) == [
        *((0, name) for name in ("initialize", "train", "average", "estimate for the next rung", "evaluate on CORE")),
        *((1, name) for name in ("initialize", "train", "average", "estimate for the next rung", "evaluate on CORE")),
        *((2, name) for name in ("initialize", "train")),
    ]
    shares = [record.share for record in (*before, *after)]
    assert shares[0] == 0.0
    assert shares[-1] == 1.0


@pytest.mark.slow
def test_the_curve_grows_and_is_that_of_the_rung_s_record(told: Any) -> None:
    run, before, after = told
    of_first = [r.training for r in before if r.current == 0 and r.activity == "train" and r.training]
    points = [len(t.curve) + len(t.losses) for t in of_first]
    assert list(dict.fromkeys(points)) == list(range(1, points[-1] + 1))
    recorded = RungRecord.read(run / "l1w16" / "final" / "rung.json")
    assert of_first[-1].curve == recorded.curve
    assert [(e.step, e.loss) for e in of_first[-1].losses] == [(e["step"], e["loss"]) for e in recorded.training_log]
    assert of_first[-1].tokens == recorded.tokens
    assert of_first[-1].tokens_per_second > 0


@pytest.mark.slow
def test_a_run_that_went_on_tells_the_part_before_at_once(told: Any) -> None:
    _, before, after = told
    *_, last, stopped = before
    assert not last.stopped
    assert stopped.stopped
    assert stopped.state(time.time()) == "stopped"
    resumed = next(r.training for r in after if r.current == 1 and r.training)
    assert 0 < resumed.step <= stopped.training.step
    assert resumed.losses == stopped.training.losses[: len(resumed.losses)]
    assert resumed.curve == stopped.training.curve[: len(resumed.curve)]


@pytest.mark.slow
def test_a_finished_run_has_no_such_record(told: Any) -> None:
    run, _, after = told
    assert after[-1].seconds_left == pytest.approx(0.0)
    assert not (run / PROGRESS_NAME).exists()
    assert read_progress(run) is None


def begun(folder: Path) -> live_record.LiveRecord:
    plan: Any = SimpleNamespace(rungs=())
    return live_record.LiveRecord(folder, plan, live_record.LadderProgress([], 0))


def test_a_killed_run_is_known_by_its_process_or_by_its_silence(tmp_path: Path) -> None:
    begun(tmp_path).begin("train")
    record = read_progress(tmp_path)
    assert record is not None
    values = record.to_dict()
    assert record.state(record.time + 1e6) == "running"  # the process is this one
    gone = ProgressRecord.from_dict(values | {"started": "1"})  # another process has its number now
    assert gone.state(record.time) == "stopped"
    elsewhere = ProgressRecord.from_dict(values | {"host": "another", "silence": 60.0})
    assert elsewhere.state(record.time + 59) == "running"
    assert elsewhere.state(record.time + 61) == "silent"


def test_what_cannot_be_written_ends_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    live = begun(tmp_path)
    monkeypatch.setattr(live_record.storage, "write_json", full)
    for activity in ("initialize", "train"):
        live.begin(activity)
    assert [r.getMessage() for r in caplog.records] == [
        "how far the ladder is cannot be written, and it trains on: [Errno 28] No space left on device"
    ]


def test_logs_are_told_as_rarely_as_writing_them_is_dear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(live_record.time, "monotonic", lambda: clock[0])

    def slow(*args: object) -> None:
        clock[0] += 0.1

    live = begun(tmp_path)
    monkeypatch.setattr(live_record.storage, "write_json", slow)
    live.begin("train")
    written = clock[0]
    training = SimpleNamespace(batch_tokens=8)
    run: Any = SimpleNamespace(steps=10, training=training, curve=lambda *_: [])
    state: Any = SimpleNamespace(global_step=1, log_history=[])
    corpus: Any = None
    for seconds in (1.0, 18.0):
        clock[0] = written + seconds
        live.follow(run, corpus, state)
        assert clock[0] == written + seconds
    clock[0] = written + 20.5  # 200 × 0.1 s
    live.follow(run, corpus, state)
    assert clock[0] == pytest.approx(written + 20.6)
