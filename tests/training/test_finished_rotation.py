"""What a kill between a checkpoint and the deletion of the one before leaves, resuming deletes, and nothing else."""

import json
from pathlib import Path

from hf_progressive import storage
from hf_progressive.training.checkpoints import finish_rotation, rotate


def checkpoint(folder: Path, step: int, best: Path | None = None) -> Path:
    with storage.atomic_folder(folder / f"checkpoint-{step}") as path:
        state = {"best_model_checkpoint": None if best is None else str(best)}
        (path / "trainer_state.json").write_text(json.dumps(state))
    return folder / f"checkpoint-{step}"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_only_a_run_that_resumes_with_its_newest_checkpoint_deletes_older_ones(tmp_path: Path) -> None:
    older, newer = checkpoint(tmp_path, 2), checkpoint(tmp_path, 10)
    finish_rotation(newer, None, of=tmp_path)
    finish_rotation(older, 1, of=tmp_path)  # who goes back loses nothing
    assert older.is_dir()
    assert newer.is_dir()
    finish_rotation(newer, 1, of=tmp_path)
    assert not older.exists()
    assert newer.is_dir()


def test_a_run_that_goes_on_from_another_s_checkpoint_deletes_none_of_that_one(tmp_path: Path) -> None:
    other, own = tmp_path / "other", tmp_path / "own"
    newest = [checkpoint(other, step) for step in (2, 4, 6)][-1]
    own.mkdir()
    finish_rotation(newest, 1, of=own)
    assert names(other) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]


def test_the_best_checkpoint_stays_and_counts(tmp_path: Path) -> None:
    best = checkpoint(tmp_path, 2)
    for step in (4, 5):
        checkpoint(tmp_path, step)
    newest = checkpoint(tmp_path, 6, best)
    finish_rotation(newest, 2, of=tmp_path)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-6"]
    rotate(checkpoint(tmp_path, 8, best), 3, str(best))
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-6", "checkpoint-8"]


def test_the_best_checkpoint_stays_where_the_folder_has_another_path_by_now(tmp_path: Path) -> None:
    checkpoint(tmp_path, 2)
    newest = checkpoint(tmp_path, 6, Path("runs/elsewhere/checkpoint-2"))
    finish_rotation(newest, 1, of=tmp_path)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-6"]
