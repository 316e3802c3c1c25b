"""What a kill between a checkpoint and the deletion of the one before leaves, resuming deletes."""

from pathlib import Path

from hf_progressive import storage
from hf_progressive.training.checkpoints import finish_rotation


def checkpoint(folder: Path, step: int) -> Path:
    with storage.atomic_folder(folder / f"checkpoint-{step}") as path:
        (path / "trainer_state.json").write_text("{}")
    return folder / f"checkpoint-{step}"


def test_only_a_run_that_resumes_with_its_newest_checkpoint_deletes_older_ones(tmp_path: Path) -> None:
    older, newer = checkpoint(tmp_path, 2), checkpoint(tmp_path, 10)
    finish_rotation(newer, None)
    finish_rotation(older, 1)  # who goes back loses nothing
    assert older.is_dir()
    assert newer.is_dir()
    finish_rotation(newer, 1)
    assert not older.exists()
    assert newer.is_dir()
