"""What a process left that was killed between two calls: found and removed, unless another one still holds it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from hf_progressive import storage
from hf_progressive.storage import durable
from hf_progressive.storage.locks import try_lock


@pytest.mark.parametrize("held", [False, True])
def test_a_lock_without_its_folder_goes_unless_it_is_held(tmp_path: Path, held: bool) -> None:
    lock = tmp_path / ".out.0a1b2c3d.tmp.lock"
    lock.touch()
    if held:
        with try_lock(lock), storage.atomic_folder(tmp_path / "out"):
            pass
    else:
        with storage.atomic_folder(tmp_path / "out"):
            pass
    assert lock.exists() == held
    assert {path.name for path in tmp_path.iterdir()} == {"out", *([lock.name] if held else [])}


def test_a_refusal_removes_what_was_left_beside_the_whole_folder(tmp_path: Path) -> None:
    with storage.atomic_folder(tmp_path / "out"):
        pass
    (tmp_path / ".out.0a1b2c3d.tmp").mkdir()
    (tmp_path / ".other.0a1b2c3d.tmp").mkdir()
    with pytest.raises(FileExistsError, match="exists already"), storage.atomic_folder(tmp_path / "out"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.0a1b2c3d.tmp", "out"]


def test_a_lock_that_another_process_took_for_a_leftover_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the opening of the lock's file and its locking, somebody removes it."""
    removed: list[Path] = []

    @contextlib.contextmanager
    def too_late(path: Path) -> Iterator[bool]:
        with try_lock(path) as free:
            if not removed:
                removed.append(path)
                path.unlink()
            yield free

    monkeypatch.setattr(durable, "try_lock", too_late)
    with storage.atomic_folder(tmp_path / "out") as temporary:
        assert removed == [temporary.with_name(f"{temporary.name}.lock")]
        storage.remove_unfinished(tmp_path / "out")
        assert temporary.is_dir(), "the folder of a living process was taken for one of a dead"
