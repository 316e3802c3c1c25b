"""A run folder is one run's: which configurations it continues, and who may work in it."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import yaml
from ladder_fixtures import NAMES, Finished, write_ladder

from hf_progressive import storage
from hf_progressive.config import LadderConfig, load_ladder_config, load_study_config
from hf_progressive.distributed.processes import current_processes
from hf_progressive.ladder.run_folder import claim, exclusive
from hf_progressive.records.run_progress import PROGRESS_NAME
from hf_progressive.report import write_report
from hf_progressive.study.run import run_study


@pytest.fixture
def config(tmp_path: Path) -> LadderConfig:
    return load_ladder_config(write_ladder(tmp_path))


def begun(config: LadderConfig, folder: Path, change: object) -> None:
    """Claim a run folder, then change the configuration that it remembers."""
    claim(folder, config, current_processes())
    (folder / "data").mkdir()
    record = storage.read_json(folder / "ladder.json")
    change(record["config"])
    storage.write_json(folder / "ladder.json", record)


def test_a_key_that_has_come_since_counts_as_its_default(config: LadderConfig, tmp_path: Path) -> None:
    def forget(remembered: dict) -> None:
        del remembered["publish"], remembered["training"]["keep_stable"], remembered["phi"]["fisher"]["definition"]

    begun(config, tmp_path / "run", forget)
    claim(tmp_path / "run", config, current_processes())
    other = dataclasses.replace(config, training=dataclasses.replace(config.training, keep_stable=True))
    with pytest.raises(ValueError, match=r"configuration \(training\.keep_stable: False there, True here\);"):
        claim(tmp_path / "run", other, current_processes())


def test_a_folder_in_which_nothing_was_made_takes_another_configuration(config: LadderConfig, tmp_path: Path) -> None:
    claim(tmp_path / "run", config, current_processes())
    claim(tmp_path / "run", dataclasses.replace(config, seed=7), current_processes())
    assert load_ladder_config(tmp_path / "run" / "ladder.yaml").seed == 7
    (tmp_path / "run" / "data").mkdir()
    with pytest.raises(ValueError, match="seed: 7 there, 8 here"):
        claim(tmp_path / "run", dataclasses.replace(config, seed=8), current_processes())


def test_of_many_differences_some_are_named(config: LadderConfig, tmp_path: Path) -> None:
    claim(tmp_path / "run", config, current_processes())
    (tmp_path / "run" / "l1").mkdir()
    training = dataclasses.replace(config.training, adam_beta1=0.5, adam_beta2=0.5, precision="float32")
    phi = dataclasses.replace(config.phi, ewc_lambda=9.0, gamma=9.0, schedule="cosine", until=0.25)
    with pytest.raises(ValueError, match=r"0\.25 here; .* and 1 more\); go back"):
        claim(tmp_path / "run", dataclasses.replace(config, training=training, phi=phi), current_processes())


def test_a_key_that_is_no_more_is_named(config: LadderConfig, tmp_path: Path) -> None:
    begun(config, tmp_path / "run", lambda remembered: remembered["training"].update(warp=9))
    with pytest.raises(ValueError, match=r"training\.warp: 9 there, None here"):
        claim(tmp_path / "run", config, current_processes())


def test_whoever_holds_the_folder_removes_what_killed_runs_left(tmp_path: Path) -> None:
    leftovers = ("l1/.init.0123abcd.tmp", "l1/checkpoints/.saving", "l1/cold/checkpoints/.checkpoint-3.0123abcd.tmp",
                 "l1/.saving", ".ladder.json.0123abcd.tmp", "plots/.curve.png.0123abcd.tmp")  # fmt: skip
    of_others = ("mine/.saving", "mine/.notes.0123abcd.tmp", "data/.tokenizer.0123abcd.tmp")
    kept = ("l1/checkpoints/checkpoint-3", *of_others)
    for name in (*leftovers, *kept):
        (tmp_path / name / "sub").mkdir(parents=True)
    with exclusive(tmp_path, ["l1", "l2"], current_processes()):
        assert not any((tmp_path / name).exists() for name in leftovers)
        assert all((tmp_path / name).exists() for name in kept)


def test_a_study_and_a_ladder_do_not_share_a_folder(finished: Finished, tmp_path: Path) -> None:
    path, run, _ = finished
    shutil.copytree(run, tmp_path / "run")
    before = contents(tmp_path / "run")
    study = {"ladder": {"base": str(path), "cold": "none"}, "recipes": [{"name": "exact"}], "seeds": [0]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    config = load_study_config(tmp_path / "study.yaml")
    with pytest.raises(ValueError, match=r"run: holds a ladder's run \(ladder\.json\); a study needs another folder"):
        run_study(config, tmp_path / "run")
    assert contents(tmp_path / "run") == before

    (tmp_path / "study").mkdir()
    for name in ("study.yaml", "study.json"):
        (tmp_path / "study" / name).write_text("{}")
        refusal = rf"study: holds a study \({name}\); a ladder's run needs another folder"
        with pytest.raises(ValueError, match=refusal), exclusive(tmp_path / "study", ["l1"], current_processes()):
            pass
        assert contents(tmp_path / "study") == {tmp_path / "study" / name: b"{}"}
        (tmp_path / "study" / name).unlink()


def test_a_study_does_not_replace_the_record_of_another(finished: Finished, tmp_path: Path) -> None:
    path, _, _ = finished
    study = {
        "name": "one",
        "ladder": {"base": str(path), "cold": "none"},
        "recipes": [{"name": "exact"}],
        "seeds": [0],
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "study.json").write_text('{"name": "other"}')
    before = contents(tmp_path / "folder")
    with pytest.raises(ValueError, match="folder: holds the study 'other', not 'one'; choose another output folder"):
        run_study(load_study_config(tmp_path / "study.yaml"), tmp_path / "folder")
    assert contents(tmp_path / "folder") == before


def contents(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_no_rung_has_the_name_of_what_the_run_writes(finished: Finished, tmp_path: Path) -> None:
    path, run, _ = finished
    shutil.copytree(run, tmp_path / "run")
    write_report(tmp_path / "run")
    visible = {entry.name for entry in (tmp_path / "run").iterdir() if not entry.name.startswith(".")}
    taken = {*visible, PROGRESS_NAME} - {*NAMES}
    assert {"data", "plots", "ladder.json", "report.html"} <= taken
    for name in taken:
        with pytest.raises(ValueError, match=rf"rungs\.0\.name: '{name}' is what the run itself writes"):
            load_ladder_config(path, [f"rungs.0.name={name}"])


def test_another_number_of_processes_is_told(
    config: LadderConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def before(processes: int) -> None:
        claim(tmp_path / "run", config, current_processes())
        (tmp_path / "run" / "data").mkdir(exist_ok=True)
        record = storage.read_json(tmp_path / "run" / "ladder.json")
        record["environment"]["processes"] = processes
        storage.write_json(tmp_path / "run" / "ladder.json", record)
        caplog.clear()
        claim(tmp_path / "run", config, current_processes())

    before(1)
    assert caplog.messages == []
    before(2)
    (told,) = caplog.messages
    assert "was begun with 2 processes and goes on with 1; every step reads the same tokens" in told
