"""A disk that is full at each tenth of the way, or fails otherwise: one line, the old whole, and then the same bits.

The disk is a file system in memory of its own, whose size is set to a share of what the whole work takes.
"""

import errno
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from durable_calls import raise_from, vanish_at
from durable_works import WORKS, assert_nothing_is_half, carry_out, left_in

from hf_progressive.cli import EXIT_BAD_INPUT

SPACE = "64m"
TENTHS = {
    "grow": range(10),
    "prepare": range(10),
    "chain": (0, 2, 4, 6, 8),
    "trunk": (1, 3, 5, 7, 9),
    "study": (1, 4, 7),
}


def mount(disk: Path, *options: str) -> None:
    done = subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", disk], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting a file system needs root: {done.stderr.decode().strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, at the folder in which the works are done."""
    place = tmp_path / "run"
    place.mkdir()
    mount(place, "-o", f"size={SPACE}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def resize(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True)


def clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def the_error(lines: list[str]) -> str:
    """The one line that says why."""
    (line,) = [line for line in lines if "error:" in line]
    assert not [line for line in lines if "Traceback" in line or 'File "' in line], lines
    return line


@pytest.mark.slow
@pytest.mark.parametrize("name", WORKS)
def test_full_at_any_tenth_of_the_way(name: str, disk: Path, tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    WORKS[name].give(tmp_path / "given")
    code, lines = carry_out(name, tmp_path)
    assert code == 0, lines
    whole, needed = left_in(disk), shutil.disk_usage(disk).used
    refused = 0
    for tenth in TENTHS[name]:
        if name != "grow":  # which has an old checkpoint to keep
            clear(disk)
        before = left_in(disk)
        resize(disk, f"size={max(4096, shutil.disk_usage(disk).used + needed * tenth // 10)}")  # 0 has no limit
        code, lines = carry_out(name, tmp_path)
        resize(disk, f"size={SPACE}")
        if code != 0:
            refused += 1
            assert code == EXIT_BAD_INPUT, lines
            assert "free some space and start again" in the_error(lines), lines
            assert not [path for path in disk.rglob("*") if path.name.endswith(".tmp") or path.name == ".saving"]
            if name == "grow":
                assert left_in(disk) == before
        assert_nothing_is_half(disk)
        code, lines = carry_out(name, tmp_path)
        assert code == 0, lines
        left = left_in(disk)
        assert {path for path in left | whole if left.get(path) != whole.get(path)} == set(), tenth
    assert refused >= len(TENTHS[name]) - 1, "it was full too seldom to mean anything"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grow", "prepare", "chain", "study"])
def test_a_file_system_that_fails_otherwise(name: str, disk: Path, tmp_path: Path) -> None:
    """It cannot be written, its quota is used up, the folder is gone: one line each."""
    (tmp_path / "given").mkdir()
    WORKS[name].give(tmp_path / "given")
    resize(disk, "ro")
    code, lines = carry_out(name, tmp_path)
    assert code == EXIT_BAD_INPUT, lines
    assert "Read-only file system" in the_error(lines)
    resize(disk, "rw")
    draw = random.Random(name)
    code, lines = carry_out(name, tmp_path, raise_from(draw.randint(5, 40), errno.EDQUOT))
    assert code == EXIT_BAD_INPUT, lines
    assert "quota exceeded" in the_error(lines)
    amid = {"chain": 300, "study": 120}.get(name, draw.randint(25, 40))  # earlier, all that is gone is made again
    code, lines = carry_out(name, tmp_path, vanish_at(amid))
    assert code == EXIT_BAD_INPUT, lines
    assert str(disk) in the_error(lines)
