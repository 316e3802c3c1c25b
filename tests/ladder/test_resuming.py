"""A run that was interrupted, killed or told to stop ends with the same bits; two processes train the same family."""

import dataclasses
import json
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from interrupted_runs import ON_CPUS, final_files, ladder_command, run_killed_again_and_again
from ladder_fixtures import NAMES, Finished
from safetensors.torch import load_file
from transformers import TrainerCallback

from hf_progressive import cli, storage
from hf_progressive.config import LadderConfig, load_ladder_config
from hf_progressive.ladder.rung_loop import run_ladder
from hf_progressive.publishing import follow
from hf_progressive.training import training_run
from hf_progressive.training.checkpoints import newest_complete_checkpoint
from hf_progressive.training.throughput import elapsed_at


def test_a_ladder_s_record_that_a_kill_left_behind_is_caught_up(finished: Finished) -> None:
    path, run, _ = finished
    record = storage.read_json(run / "ladder.json")
    assert record["complete"]
    storage.write_json(run / "ladder.json", {**record, "finished": NAMES[:-1], "complete": False})
    told: list[Path] = []
    run_ladder(load_ladder_config(path), run, on_record=told.append)
    assert storage.read_json(run / "ladder.json") == record
    assert told == [run]


def test_a_damaged_record_of_a_rung_is_written_anew(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, run, _ = finished
    shutil.copytree(run, tmp_path / "run")
    record = tmp_path / "run" / NAMES[0] / "final" / "rung.json"
    record.write_bytes(record.read_bytes()[:100])
    assert cli.main(["ladder", str(path), "--output-dir", str(tmp_path / "run")]) == cli.EXIT_DONE
    assert "the page is not written, and the run goes on" in capsys.readouterr().err
    assert storage.read_json(record)["name"] == NAMES[0]
    assert final_files(tmp_path / "run") == final_files(run)
    (tmp_path / "run" / "ladder.json").write_text("{")
    assert cli.main(["ladder", str(path), "--output-dir", str(tmp_path / "run")]) == cli.EXIT_BAD_INPUT
    assert "ladder.json: not valid JSON" in (told := capsys.readouterr().err)
    assert "delete it and start again with ladder.yaml beside it, and it is written anew" in told
    (tmp_path / "run" / "ladder.json").unlink()
    arguments = ["ladder", str(tmp_path / "run" / "ladder.yaml"), "--output-dir", str(tmp_path / "run")]
    assert cli.main(arguments) == cli.EXIT_DONE
    assert storage.read_json(tmp_path / "run" / "ladder.json")["complete"]


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
    newest = newest_complete_checkpoint(tmp_path / "run" / NAMES[0] / "checkpoints")
    before = elapsed_at(newest)
    assert before["seconds"] > before["evaluation_seconds"] > 0
    # As if it had taken long until then.
    monkeypatch.setattr(
        training_run,
        "elapsed_at",
        lambda checkpoint: (
            {"seconds": 900.0, "evaluation_seconds": 200.0} if checkpoint == newest else elapsed_at(checkpoint)
        ),
    )
    run_ladder(config, tmp_path / "run")
    assert final_files(tmp_path / "run") == final_files(run)
    first, second = (
        storage.read_json(tmp_path / "run" / name / "final" / "rung.json")["seconds"] for name in NAMES[:2]
    )
    assert 700 < first["train"] < 900
    assert 200 < first["evaluate"] < 300
    assert second["train"] < 100  # each rung's own alone


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
    assert (left / "phi" / "penalty.json").samefile(left.parent / "_phi" / "penalty.json")  # once on the disk
    again = LadderConfig(**{**vars(config), "phi": dataclasses.replace(config.phi, gamma=0.0)})
    record = storage.read_json(tmp_path / "run" / "ladder.json")
    storage.write_json(tmp_path / "run" / "ladder.json", {**record, "config": again.to_dict()})
    with pytest.raises(
        ValueError, match="checkpoint-7 was trained with another penalty: the two differ in subspace; pass"
    ):
        run_ladder(again, tmp_path / "run")
    storage.write_json(tmp_path / "run" / "ladder.json", record)
    caplog.clear()
    run_ladder(config, tmp_path / "run")
    assert not [e for e in caplog.records if e.name.startswith("hf_progressive") and e.levelname == "WARNING"]
    assert final_files(tmp_path / "run") == final_files(run)


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(finished: Finished, tmp_path: Path) -> None:
    path, run, _ = finished
    assert run_killed_again_and_again(ladder_command(path, tmp_path / "run"), tmp_path / "run", kills=5) >= 3
    assert final_files(tmp_path / "run") == final_files(run)
    report = {"plots", "report.html", "report.md"}  # which the command writes, beside what `run_ladder` does
    assert {path.name for path in (tmp_path / "run").iterdir()} - report == {path.name for path in run.iterdir()}
    assert not [p for p in (tmp_path / "run").rglob("*") if p.suffix == ".tmp" or p.name in (".saving", "trained")]


@pytest.mark.slow
def test_two_processes_train_the_same_family(finished: Finished, tmp_path: Path) -> None:
    path, run, results = finished
    command = ladder_command(path, tmp_path / "run", processes=2)
    subprocess.run(command, check=True, capture_output=True, env=ON_CPUS)
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


def test_a_finished_run_is_published_when_it_is_told_to_only_then(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, run, _ = finished
    copy = shutil.copytree(run, tmp_path / "run")
    published: list[tuple[Path, str]] = []
    monkeypatch.setattr(follow, "publish_family", lambda run, pattern, **_: published.append((run, pattern)) or [])
    command = ["ladder", str(path), "--output-dir", str(copy)]
    assert cli.main(command) == 0
    assert published == []
    assert cli.main([*command, "--set", "publish.repo_id=me/sums-{name}"]) == 0
    assert published == [(copy, "me/sums-{name}")]
