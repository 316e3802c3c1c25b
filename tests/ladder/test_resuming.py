"""A run that was interrupted, killed or told to stop ends with the same bits; two processes train the same family."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ladder_fixtures import NAMES, Finished
from safetensors.torch import load_file
from transformers import TrainerCallback

from hf_progressive import storage
from hf_progressive.config import LadderConfig, load_ladder_config
from hf_progressive.ladder.rung_loop import run_ladder
from hf_progressive.training import training_run
from hf_progressive.training.checkpoints import newest_complete_checkpoint

ROOT = Path(__file__).parents[2]


def final_files(run: Path) -> dict[str, object]:
    """Everything in the rungs' final folders, but for the times in rung.json and that file's digest."""
    found: dict[str, object] = {}
    for name in NAMES:
        final = run / name / "final"
        for path in (path for path in final.rglob("*") if path.is_file()):
            found[path.relative_to(run).as_posix()] = path.read_bytes()
        record, manifest = (storage.read_json(final / file) for file in ("rung.json", storage.MANIFEST_NAME))
        del record["seconds"], record["throughput"], manifest["files"]["rung.json"]
        if record["cold"]:
            for times in ("seconds", "evaluation_seconds", "throughput"):
                del record["cold"][times]
        found |= {f"{name}/final/rung.json": record, f"{name}/final/{storage.MANIFEST_NAME}": manifest}
    return found


def test_a_ladder_s_record_that_a_kill_left_behind_is_caught_up(finished: Finished) -> None:
    path, run, _ = finished
    record = storage.read_json(run / "ladder.json")
    assert record["complete"]
    storage.write_json(run / "ladder.json", {**record, "finished": NAMES[:-1], "complete": False})
    told: list[Path] = []
    run_ladder(load_ladder_config(path), run, on_record=told.append)
    assert storage.read_json(run / "ladder.json") == record
    assert told == [run]


class _Interruption(TrainerCallback):
    """Break off at a given step, as a failing machine would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: object, state: object, control: object, **kwargs: object) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def test_an_interrupted_run_ends_with_the_same_bits(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, run, _ = finished
    config = load_ladder_config(path)
    build = training_run.ProgressiveTrainer.__init__

    def interrupted(self: object, *args: object, **kwargs: object) -> None:
        build(self, *args, **kwargs)
        self.add_callback(_Interruption(step=9))

    monkeypatch.setattr(training_run.ProgressiveTrainer, "__init__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_ladder(config, tmp_path / "run")
    monkeypatch.undo()
    run_ladder(config, tmp_path / "run")
    assert final_files(tmp_path / "run") == final_files(run)


class _Told(TrainerCallback):
    """Let SIGTERM come within a given step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: object, state: object, control: object, **kwargs: object) -> None:
        if state.global_step == self.step - 1:
            signal.raise_signal(signal.SIGTERM)


def test_sigterm_leaves_a_checkpoint_of_that_step_and_its_penalty(
    finished: Finished,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Step 7 of the second rung, where no checkpoint is due: it goes on in silence, with the same bits."""
    path, run, _ = finished
    config = load_ladder_config(path)
    build = training_run.ProgressiveTrainer.__init__

    def told(self: object, *args: object, **kwargs: object) -> None:
        build(self, *args, **kwargs)
        if kwargs["penalty"] is not None:
            self.add_callback(_Told(step=7))

    monkeypatch.setattr(training_run.ProgressiveTrainer, "__init__", told)
    with pytest.raises(SystemExit) as caught:
        run_ladder(config, tmp_path / "run")
    monkeypatch.undo()
    assert caught.value.code == 143
    left = newest_complete_checkpoint(tmp_path / "run" / NAMES[1] / "checkpoints")
    assert left.name == "checkpoint-7"
    assert (left / "phi" / "penalty.json").samefile(left.parent / "phi" / "penalty.json")  # once on the disk
    again = LadderConfig(**{**vars(config), "phi": dataclasses.replace(config.phi, gamma=0.0)})
    record = storage.read_json(tmp_path / "run" / "ladder.json")
    storage.write_json(tmp_path / "run" / "ladder.json", {**record, "config": again.to_dict()})
    with pytest.raises(ValueError, match="checkpoint-7 was trained with another penalty: its subspace differ"):
        run_ladder(again, tmp_path / "run")
    storage.write_json(tmp_path / "run" / "ladder.json", record)
    caplog.clear()
    run_ladder(config, tmp_path / "run")
    assert not [e for e in caplog.records if e.name.startswith("hf_progressive") and e.levelname == "WARNING"]
    assert final_files(tmp_path / "run") == final_files(run)


def marks_in(folder: Path) -> int:
    """Count checkpoints and records, while folders come and go."""
    names = [name for _, folders, files in os.walk(folder) for name in (*folders, *files)]
    return sum(name.startswith("checkpoint-") or name == "rung.json" for name in names)


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(finished: Finished, tmp_path: Path) -> None:
    path, run, _ = finished
    command = [sys.executable, str(ROOT / "examples" / "run_ladder.py"), "--config", str(path)]
    command += ["--output-dir", str(tmp_path / "run")]
    draw, kills = random.Random(7), 0
    while kills < 5:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 120
        marks = marks_in(tmp_path)
        # Wait until this attempt has done something, then strike at a random moment.
        while process.poll() is None and time.monotonic() < deadline:
            if marks_in(tmp_path) > marks:
                break
            time.sleep(0.05)
        time.sleep(draw.uniform(0.0, 1.5))
        if process.poll() is not None:
            assert process.returncode == 0, process.stderr.read()
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert kills >= 3, "the run was over before it could be killed often enough to mean anything"
    subprocess.run(command, check=True, capture_output=True)
    assert final_files(tmp_path / "run") == final_files(run)
    report = {"plots", "report.html", "report.md"}  # which the command writes, beside what `run_ladder` does
    assert {path.name for path in (tmp_path / "run").iterdir()} - report == {path.name for path in run.iterdir()}
    assert not [p for p in (tmp_path / "run").rglob("*") if p.suffix == ".tmp" or p.name in (".saving", "trained")]


@pytest.mark.slow
def test_two_processes_train_the_same_family(finished: Finished, tmp_path: Path) -> None:
    path, run, results = finished
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command += [str(ROOT / "examples" / "run_ladder.py"), "--config", str(path), "--output-dir", str(tmp_path / "run")]
    subprocess.run(
        command,
        check=True,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
    )
    for name, result in zip(NAMES, results, strict=True):
        other = json.loads((tmp_path / "run" / name / "final" / "rung.json").read_text())
        assert other["environment"]["processes"] == 2
        assert other["bits_per_byte"] == pytest.approx(result.bits_per_byte, abs=2e-5)
        for key, tolerance in (("loss", 1e-5), ("grad_norm", 1e-3)):
            ours, theirs = ([entry[key] for entry in record["training_log"]] for record in (result.record, other))
            assert theirs == pytest.approx(ours, rel=tolerance)
        # In norm: Adam turns the rounding of a gradient entry near zero into a whole step of that entry.
        one, two = (load_file(folder / name / "final" / "model.safetensors") for folder in (run, tmp_path / "run"))
        for key, value in one.items():
            assert (two[key] - value).norm() <= 1e-2 * value.norm(), key


def test_a_finished_run_is_not_run_again(finished: Finished) -> None:
    path, run, results = finished
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*.safetensors")}
    again = run_ladder(load_ladder_config(path), run)
    assert [result.record for result in again] == [result.record for result in results]
    assert {file: file.stat().st_mtime_ns for file in run.rglob("*.safetensors")} == before
