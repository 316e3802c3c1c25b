"""Trackers of experiments, offline: each training run of a ladder is a run of its own there, also when it went on."""

import contextlib
import json
import sqlite3
import struct
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ladder_fixtures import RUNGS, ladder_mapping, write_ladder
from transformers import TrainerCallback

from hf_progressive.config import load_ladder_config
from hf_progressive.ladder.rung_loop import run_ladder
from hf_progressive.records.rung import RungRecord
from hf_progressive.training import training_run

pytestmark = pytest.mark.slow

TRAININGS = ["l1w16", "l2w16", "l2w16 cold"]
Logs = dict[str, list[dict[str, float]]]


class _Stop(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if (args.run_name, state.global_step) == ("l2w16", 5):
            raise KeyboardInterrupt


def ladder_with_a_break(folder: Path, tracker: str) -> Path:
    """Run a ladder that reports to a tracker, stopped once in its second rung."""
    training = ladder_mapping(Path())["training"] | {"tokens_per_parameter": 0.1, "evaluations": 2, "checkpoints": 2}
    training["arguments"] = {"report_to": [tracker]}
    changes = {"rungs": RUNGS[:2], "cold": ["l2w16"], "phi": {"ewc_lambda": 0.0, "gamma": 0.0}, "training": training}
    config, run = load_ladder_config(write_ladder(folder, **changes)), folder / "run"
    build = training_run.ProgressiveTrainer.__init__

    def with_stop(trainer: Any, *args: Any, callbacks: Any = (), **kwargs: Any) -> None:
        build(trainer, *args, callbacks=[*callbacks, _Stop()], **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_run.ProgressiveTrainer, "__init__", with_stop)
        with pytest.raises(KeyboardInterrupt):
            run_ladder(config, run)
    run_ladder(config, run)
    return run


def check(run: Path, logs: Logs) -> None:
    """Compare what reached a tracker, by its runs' names, with the records."""
    assert sorted(logs) == TRAININGS
    for name, entries in logs.items():
        record = RungRecord.read(run / name.split()[0] / "final" / "rung.json")
        curve = record.cold.curve if name.endswith(" cold") else record.curve
        steps = {point.step: point.loss for point in curve}
        reached = {entry["train/global_step"]: entry["eval/loss"] for entry in entries if "eval/loss" in entry}
        assert reached == pytest.approx(steps)
        if name == "l2w16":
            losses = {entry["train/global_step"]: entry["train/loss"] for entry in entries if "train/loss" in entry}
            assert losses == pytest.approx({entry["step"]: entry["loss"] for entry in record.training_log})


def test_weights_and_biases_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    run = ladder_with_a_break(tmp_path, "wandb")
    assert wandb.run is None
    logs, opened = _wandb_logs(tmp_path / "wandb")
    check(run, logs)
    assert sorted(name for name, _ in opened) == ["l1w16", "l2w16", "l2w16", "l2w16 cold"]
    assert len({identity for _, identity in opened}) == 3  # where it went on, its run does too


def _wandb_logs(folder: Path) -> tuple[Logs, list[tuple[str, str]]]:
    from wandb.proto.wandb_internal_pb2 import Record

    logs, opened = defaultdict(list), []
    for path in sorted(folder.glob("offline-run-*/run-*.wandb")):
        names: list[str] = []
        identity = ""
        for data in _level_log(path.read_bytes()):
            record = Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "run":
                names.append(record.run.display_name)
                identity = record.run.run_id
            if record.WhichOneof("record_type") == "history":
                keys = (("/".join(item.nested_key) or item.key, item.value_json) for item in record.history.item)
                logs[names[0]].append({key: json.loads(value) for key, value in keys})
        opened.append((names[0], identity))
    return dict(logs), opened


def _level_log(content: bytes) -> Iterator[bytes]:
    # Of a log in LevelDB's format: blocks of 32 KiB, parts with checksum, length and place (whole, first, middle,
    # last); https://github.com/google/leveldb/blob/main/doc/log_format.md. A header of 7 bytes begins W&B's file.
    place, whole = 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        whole = (b"" if kind in (1, 2) else whole) + content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield whole


def test_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    pytest.importorskip("trackio", reason="trackio is not installed")
    run = ladder_with_a_break(tmp_path, "trackio")
    logs, identities = defaultdict(list), defaultdict(set)
    with contextlib.closing(sqlite3.connect(tmp_path / "trackio" / "huggingface.db")) as database:
        for name, identity, metrics in database.execute("SELECT run_name, run_id, metrics FROM metrics ORDER BY id"):
            logs[name].append(json.loads(metrics))
            identities[name].add(identity)
    check(run, dict(logs))
    assert {len(found) for found in identities.values()} == {1}  # where it went on, its run does too
