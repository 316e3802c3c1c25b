"""Files and folders appear whole or not at all, and damage to them is noticed."""

import contextlib
import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hf_progressive.storage import (
    MANIFEST_NAME,
    atomic_file,
    atomic_folder,
    check_manifest,
    durable,
    finite_or_none,
    is_complete,
    read_json,
    sha256_file,
    write_json,
)

EMPTY_SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def fill(folder, text="new", **options):
    with atomic_folder(folder, **options) as temporary:
        (temporary / "sub").mkdir()
        (temporary / "a.txt").write_text(text)
        (temporary / "sub" / "b.txt").write_text("b")
    return folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_sha256_agrees_with_the_system(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(os.urandom(9 << 20))
    expected = subprocess.run(["sha256sum", file], capture_output=True, text=True, check=True).stdout.split()[0]
    assert sha256_file(file) == expected
    (tmp_path / "empty").touch()
    assert sha256_file(tmp_path / "empty") == EMPTY_SHA256


@pytest.mark.parametrize(("name", "kind"), [("folder", "a folder"), ("pipe", "no file")])
def test_what_is_no_file_is_not_replaced_by_one(tmp_path, name, kind):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with (
        pytest.raises(FileExistsError, match=f"{name}: is {kind}; give the name of a file"),
        atomic_file(tmp_path / name),
    ):
        raise AssertionError
    assert (tmp_path / "folder").is_dir()
    assert (tmp_path / "pipe").is_fifo()
    assert names(tmp_path) == ["folder", "pipe"]


def test_a_link_that_leads_back_to_itself_is_no_place_for_a_folder(tmp_path):
    (tmp_path / "round").symlink_to(tmp_path / "round")
    with pytest.raises(FileExistsError, match="round: is a link that leads back to itself; choose another folder"):
        fill(tmp_path / "round")
    assert names(tmp_path) == ["round"]


def test_a_file_is_replaced_only_when_the_block_succeeds(tmp_path):
    target = tmp_path / "new" / "file"
    with atomic_file(target) as temporary:
        temporary.write_text("one")
        assert not target.exists()
        assert temporary.parent == target.parent

    def fail():
        with atomic_file(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert target.read_text() == "one"
    assert names(tmp_path / "new") == ["file"]


@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_appears_whole_or_not_at_all(tmp_path, exists):
    target = tmp_path / "out"
    if exists:
        fill(target, "old")

    def fail():
        with atomic_folder(target, overwrite=True) as temporary:
            (temporary / "a.txt").write_text("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert names(tmp_path) == (["out"] if exists else [])
    assert not exists or (target / "a.txt").read_text() == "old"

    fill(target, overwrite=True)
    assert (target / "a.txt").read_text() == "new"
    assert names(tmp_path) == ["out"]
    check_manifest(target)
    assert set(read_json(target / MANIFEST_NAME)["files"]) == {"a.txt", "sub/b.txt"}


@pytest.mark.parametrize("write", [atomic_folder, atomic_file])
def test_folders_that_were_made_for_nothing_go_again(tmp_path, write):
    (tmp_path / "there").mkdir()
    with pytest.raises(ZeroDivisionError), write(tmp_path / "there" / "a" / "b" / "new"):
        raise ZeroDivisionError
    assert list((tmp_path / "there").iterdir()) == []
    with contextlib.suppress(ZeroDivisionError), write(tmp_path / "there" / "a" / "b" / "new"):
        (tmp_path / "there" / "a" / "other").touch()
        raise ZeroDivisionError
    assert [path.name for path in (tmp_path / "there").rglob("*")] == ["a", "other"]


def test_an_existing_folder_is_refused(tmp_path):
    fill(tmp_path / "out", "old")
    with pytest.raises(FileExistsError, match="out exists already"):
        fill(tmp_path / "out")
    assert (tmp_path / "out" / "a.txt").read_text() == "old"


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(FileExistsError, match="out exists already; it is not a folder"):
        fill(tmp_path / "out", overwrite=True)
    assert (tmp_path / "out").read_text() == "mine"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("dangling", [False, True])
def test_through_a_link_the_folder_behind_it_is_written(tmp_path, dangling):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "out")
    if not dangling:
        fill(tmp_path / "disk" / "out", "old")
    fill(tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "out" / "a.txt").read_text() == "new"
    assert names(tmp_path) + names(tmp_path / "disk") == ["disk", "link", "out"]


def test_known_digests_are_used_and_the_others_computed(tmp_path):
    digest = sha256_file(fill(tmp_path / "out", sha256={"a.txt": "0" * 64}) / "sub" / "b.txt")
    files = read_json(tmp_path / "out" / MANIFEST_NAME)["files"]
    assert files == {"a.txt": {"size": 3, "sha256": "0" * 64}, "sub/b.txt": {"size": 1, "sha256": digest}}


def test_a_file_without_a_digest_is_checked_by_its_size(tmp_path):
    folder = fill(tmp_path / "out", sha256={"a.txt": None})
    assert read_json(folder / MANIFEST_NAME)["files"]["a.txt"] == {"size": 3}
    (folder / "a.txt").write_text("nex")
    check_manifest(folder)
    (folder / "a.txt").write_text("longer")
    with pytest.raises(ValueError, match="6 bytes, the manifest says 3"):
        check_manifest(folder)


def test_a_folder_being_replaced_is_never_absent_on_linux(tmp_path):
    target = fill(tmp_path / "out")
    exchanged = durable._exchange(fill(tmp_path / "x"), fill(tmp_path / "y"))
    assert exchanged == (sys.platform == "linux"), "set TMPDIR to a file system that can exchange two names"
    absent, done = [], threading.Event()

    def watch():
        while not done.is_set():
            if not (target / MANIFEST_NAME).exists():
                absent.append(1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(50):
        fill(target, overwrite=True)
    done.set()
    watcher.join()
    assert not (exchanged and absent)
    assert names(tmp_path) == ["out", "x", "y"]


def test_without_an_exchange_a_failing_move_brings_the_old_folder_back(tmp_path, monkeypatch):
    target = fill(tmp_path / "out", "old")
    monkeypatch.setattr(durable, "_exchange", lambda first, second: False)
    fill(target, "newer", overwrite=True)
    assert (target / "a.txt").read_text() == "newer"

    rename = os.rename

    def failing(source, destination):
        if destination == target and (tmp_path / "armed").exists():
            (tmp_path / "armed").unlink()
            raise OSError(errno.EIO, "the move failed")
        rename(source, destination)

    (tmp_path / "armed").touch()
    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="the move failed"):
        fill(target, "newest", overwrite=True)
    assert (target / "a.txt").read_text() == "newer"
    assert names(tmp_path) == ["out"]


WRITE_AND_WAIT = """
import sys, time
from hf_progressive.storage import atomic_folder
with atomic_folder(sys.argv[1], overwrite=True) as folder:
    (folder / "weights").write_text("half")
    print(flush=True)
    time.sleep(60)
"""


def writing(target):
    """Start a process that is in the middle of writing a folder."""
    process = subprocess.Popen([sys.executable, "-c", WRITE_AND_WAIT, target], stdout=subprocess.PIPE)
    process.stdout.readline()
    return process


def test_leftovers_of_the_dead_go_and_the_work_of_the_living_stays(tmp_path):
    dead, living = writing(tmp_path / "out"), writing(tmp_path / "out")
    other = writing(tmp_path / "other")
    for process in (dead, other):
        process.kill()
        process.wait()
    assert len(list(tmp_path.glob(".*.tmp"))) == 3
    fill(tmp_path / "out")
    assert len(list(tmp_path.glob(".out.*.tmp"))) == 1, "what was killed is gone, what is being written is not"
    (tmp_path / ".x.json.01234567.tmp").touch()
    (tmp_path / "deep" / ".old.01234567.tmp").mkdir(parents=True)  # of a version without locks
    (tmp_path / "data" / ".own.01234567.tmp").mkdir(parents=True)
    (tmp_path / ".hidden.tmp").touch()
    durable.remove_leftovers(tmp_path, within=["deep"])
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.tmp"))
    assert [name for name in left if not name.startswith(".out.")] == [".hidden.tmp", "data/.own.01234567.tmp"]
    assert len(left) == 3
    living.kill()
    living.wait()
    durable.remove_leftovers(tmp_path)
    assert names(tmp_path) == [".hidden.tmp", "data", "deep", "out"]


def test_a_write_that_fails_leaves_the_old_folder(tmp_path):
    target = fill(tmp_path / "out", "old")
    code = (
        "import resource, sys; from hf_progressive.storage import atomic_folder\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "with atomic_folder(sys.argv[1], overwrite=True) as folder: (folder / 'a.txt').write_text('x' * 2000)"
    )
    run = subprocess.run([sys.executable, "-c", code, target], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "out: File too large (disk at /" in run.stderr
    assert (target / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_a_folder_that_cannot_be_created_is_refused_in_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"out: cannot be created \(.*/file is a file\); choose another") as raised:
        fill(tmp_path / "file" / "out")
    assert "\n" not in str(raised.value)
    with pytest.raises(OSError, match="out: cannot be created"):
        fill(Path("/proc/out"))


def test_a_file_that_cannot_be_created_is_refused_by_its_own_name(tmp_path):
    (tmp_path / "file").touch()
    for path, text in (
        (tmp_path / "file" / "o.json", rf"o.json: cannot be created \({tmp_path}/file is a file\); choose another"),
        (Path("/proc/o.json"), r"/proc/o.json: cannot be created \(No such file or directory\); choose a place on"),
    ):
        with pytest.raises(OSError, match=text) as raised:
            write_json(path, {})
        assert "\n" not in str(raised.value)
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("damage", "text", "seen_without_contents"),
    [
        (lambda f: (f / "sub" / "b.txt").unlink(), "sub/b.txt is missing", True),
        (lambda f: (f / "a.txt").write_text("longer"), "6 bytes, the manifest says 3", True),
        (lambda f: (f / "a.txt").write_text("nex"), "SHA-256 differs", False),
        (lambda f: (f / MANIFEST_NAME).unlink(), "no such file", True),
        (lambda f: (f / MANIFEST_NAME).write_text("{"), "not valid JSON", True),
        (lambda f: (f / MANIFEST_NAME).write_text("{}"), 'no "files" table', True),
    ],
)
def test_damage_to_a_folder_is_noticed(tmp_path, damage, text, seen_without_contents):
    folder = fill(tmp_path / "out")
    check_manifest(folder)
    assert is_complete(folder)
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=text) as raised:
        check_manifest(folder)
    assert "\n" not in str(raised.value)
    assert is_complete(folder) is not seen_without_contents


def test_json_is_strict(tmp_path):
    write_json(tmp_path / "x.json", {"é": [1, None]})
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"é": [1, None]}
    with pytest.raises(ValueError, match="not all finite"):
        write_json(tmp_path / "x.json", {"x": float("nan")})
    assert read_json(tmp_path / "x.json") == {"é": [1, None]}
    (tmp_path / "y.json").write_text("[1]")
    with pytest.raises(ValueError, match="holds a JSON list, expected an object"):
        read_json(tmp_path / "y.json")
    assert finite_or_none(float("-inf")) is None
    assert finite_or_none(None) is None
    assert finite_or_none(0.5) == 0.5
