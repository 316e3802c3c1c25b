"""Two processes touch the same names: neither takes the other's work for a killed process's, or replaces it unasked.

The other process acts within the call of the first, at the moment that matters.
"""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_progressive import storage
from hf_progressive.storage import durable, locks
from hf_progressive.storage.locks import try_lock
from hf_progressive.storage.temporary_names import ASIDE, temporary_sibling


def fill(folder: Path, text: str, *, overwrite: bool = False, meanwhile: Callable[[], object] = lambda: None) -> None:
    with storage.atomic_folder(folder, overwrite=overwrite) as temporary:
        (temporary / "a.txt").write_text(text)
        meanwhile()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def before(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, act: Callable[..., object]) -> None:
    """Let something happen right before a function is called for the first time."""
    function, acted = getattr(module, name), []

    def acting(*args: Any, **options: Any) -> Any:
        if not acted:
            acted.append(True)
            act(*args)
        return function(*args, **options)

    monkeypatch.setattr(module, name, acting)


def test_what_another_process_made_meanwhile_is_replaced_only_if_asked(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(FileExistsError, match="out exists already; choose another folder, or allow it"):
        fill(target, "second", meanwhile=lambda: fill(target, "first"))
    assert (target / "a.txt").read_text() == "first"
    shutil.rmtree(target)
    fill(target, "second", overwrite=True, meanwhile=lambda: fill(target, "first"))
    assert (target / "a.txt").read_text() == "second"
    shutil.rmtree(target)
    with pytest.raises(FileExistsError, match="out exists already; it is not a folder"):
        fill(target, "second", overwrite=True, meanwhile=lambda: target.write_text("mine"))
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_another_process_made_just_now_is_replaced_only_if_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    target = tmp_path / "out"
    before(monkeypatch, os, "rename", lambda *_: fill(target, "first"))
    if overwrite:
        fill(target, "second", overwrite=True)
    else:
        with pytest.raises(FileExistsError, match="out exists already"):
            fill(target, "second")
    assert (target / "a.txt").read_text() == ("second" if overwrite else "first")
    assert names(tmp_path) == ["out"]


def test_a_folder_that_is_being_deleted_is_its_deleters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "out", "old")

    def clean(aside: Path) -> None:
        storage.remove_leftovers(tmp_path)
        storage.remove_unfinished(tmp_path / "out")
        assert aside.is_dir()

    before(monkeypatch, shutil, "rmtree", clean)
    storage.remove_folder(tmp_path / "out")
    assert names(tmp_path) == []


def test_a_lock_stays_while_its_folder_is_yet_to_come(tmp_path: Path) -> None:
    lock = tmp_path / f"{temporary_sibling(tmp_path / 'out').name}.lock"
    with try_lock(lock):
        storage.remove_leftovers(tmp_path)
        assert names(tmp_path) == [lock.name]
    storage.remove_leftovers(tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("stands", [False, True])
def test_a_folder_that_had_stepped_aside_returns_unless_the_new_one_came(tmp_path: Path, stands: bool) -> None:
    """A kill between the two moves by which a folder is replaced where two names cannot be exchanged."""
    fill(tmp_path / "out", "old")
    aside = temporary_sibling(tmp_path / "out", suffix=ASIDE)
    (tmp_path / "out").rename(aside)
    if stands:
        fill(tmp_path / "new", "new")
        (tmp_path / "new").rename(tmp_path / "out")
    with try_lock(aside.with_name(f"{aside.name}.lock")):  # somebody is at it
        storage.remove_leftovers(tmp_path)
        assert aside.is_dir()
    storage.remove_leftovers(tmp_path)
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "a.txt").read_text() == ("new" if stands else "old")


def test_a_replaced_folder_can_return_until_the_new_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "out", "old")
    monkeypatch.setattr(durable, "_exchange", lambda first, second: False)
    rename, seen = os.rename, []

    def renaming(source: Path, target: Path) -> None:
        if not (tmp_path / "out").exists():
            seen.append([path.name for path in tmp_path.iterdir() if path.name.endswith(ASIDE)])
            storage.remove_leftovers(tmp_path)  # another process starts just now
            assert not (tmp_path / "out").exists()
        rename(source, target)

    monkeypatch.setattr(os, "rename", renaming)
    fill(tmp_path / "out", "new", overwrite=True)
    assert [len(asides) for asides in seen] == [1]
    assert (tmp_path / "out" / "a.txt").read_text() == "new"
    assert names(tmp_path) == ["out"]


def test_a_folder_that_is_replaced_while_it_is_checked_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "out", "old")
    before(monkeypatch, durable, "require_own_file", lambda *_: fill(tmp_path / "out", "longer", overwrite=True))
    storage.check_manifest(tmp_path / "out")
    (tmp_path / "out" / "a.txt").write_text("damaged")
    with pytest.raises(ValueError, match="7 bytes, the manifest says 6"):
        storage.check_manifest(tmp_path / "out")


def test_leftovers_of_a_name_are_not_those_of_a_longer_one(tmp_path: Path) -> None:
    other = tmp_path / ".study.json.backup.0a1b2c3d.tmp"
    for path in (other, tmp_path / ".study.json.0a1b2c3d.tmp"):
        path.touch()
    storage.remove_unfinished_files(tmp_path / "study.json")
    assert names(tmp_path) == [other.name]


def test_what_asks_for_the_umask_is_a_leftover_of_the_same_file(tmp_path: Path) -> None:
    beside = temporary_sibling(temporary_sibling(tmp_path / "study.json"))
    beside.touch()
    storage.remove_unfinished_files(tmp_path / "study.json")
    assert names(tmp_path) == []


def test_a_file_that_is_being_written_is_its_writers(tmp_path: Path) -> None:
    """As by `report` beside a ladder that starts."""
    with storage.atomic_file(tmp_path / "report.html") as temporary:
        for text in ("begun", "written anew"):
            temporary.write_text(text)
            storage.remove_leftovers(tmp_path)
            storage.remove_unfinished_files(tmp_path / "report.html")
            assert names(tmp_path) == [temporary.name]
    assert (tmp_path / "report.html").read_text() == "written anew"
    temporary.write_text("killed")
    storage.remove_leftovers(tmp_path)
    assert names(tmp_path) == ["report.html"]


def test_a_file_that_another_process_took_for_a_leftover_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before(monkeypatch, locks.fcntl, "flock", lambda *_: storage.remove_leftovers(tmp_path))
    with storage.atomic_file(tmp_path / "a.json") as temporary:
        assert temporary.exists()
        storage.remove_leftovers(tmp_path)
        temporary.write_text("{}")
    assert names(tmp_path) == ["a.json"]


def test_a_file_system_without_locks_is_written_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    storage.write_json(tmp_path / "a.json", {})
    temporary_sibling(tmp_path / "a.json").touch()
    storage.remove_unfinished_files(tmp_path / "a.json")
    assert names(tmp_path) == ["a.json"]
