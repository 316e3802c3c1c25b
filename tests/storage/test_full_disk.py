"""A full disk: recognised whichever library met it, named in one line, and no obstacle once there is space again."""

import contextlib
import errno
import json
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from ladder_fixtures import RUNGS, write_ladder
from safetensors.torch import save_file
from tokenizers import Tokenizer, models

from hf_progressive import cli, storage
from hf_progressive.storage.full_disk import FullDiskError, FullDiskNamed

LIMIT = 4096
LARGE = torch.zeros(1 << 18)


def torch_save(path: Path) -> None:
    torch.save({"a": LARGE}, path)


def torch_save_into_file(path: Path) -> None:
    with open(path, "wb") as file:
        torch.save({"a": LARGE}, file)


WRITERS: dict[str, Callable[[Path], object]] = {
    "python": lambda path: path.write_bytes(bytes(1 << 20)),
    "safetensors": lambda path: save_file({"a": LARGE}, path),
    "torch": torch_save,
    "torch into a file": torch_save_into_file,
    "numpy": lambda path: LARGE.numpy().tofile(path),
    "arrow": lambda path: pyarrow.parquet.write_table(pyarrow.table({"a": np.random.rand(1 << 16)}), path),
    "tokenizers": lambda path: Tokenizer(models.WordLevel({str(i): i for i in range(10**4)})).save(str(path)),
    "json": lambda path: storage.write_json(path, list(range(10**5))),
}


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("writer", WRITERS)
def test_every_librarys_error_is_recognised(writer: str, tmp_path: Path) -> None:
    def write() -> None:
        with files_of_at_most(LIMIT), FullDiskNamed(tmp_path / "run"):
            WRITERS[writer](tmp_path / "file")

    with pytest.raises(FullDiskError, match="bytes free.; free some space and start again") as caught:
        write()
    assert caught.value.errno in (errno.EFBIG, errno.ENOSPC)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [ValueError("x: expected 28"), OSError(errno.EACCES, "no"), KeyboardInterrupt()])
def test_other_errors_stay_what_they_are(error: BaseException, tmp_path: Path) -> None:
    def fail() -> None:
        with FullDiskNamed(tmp_path):
            raise error

    with pytest.raises(type(error)) as caught:
        fail()
    assert caught.value is error


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MiB of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"mounting a file system needs root: {mounted.stderr.decode().strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def weights(run: Path) -> dict[str, bytes]:
    return {rung["name"]: (run / rung["name"] / "final" / "model.safetensors").read_bytes() for rung in RUNGS}


@pytest.mark.slow
def test_a_ladder_stops_in_one_line_at_any_level_and_ends_with_the_same_bits(
    small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At first there is space for a few KiB, then for more and more, until the ladder is done."""
    path = write_ladder(tmp_path)
    assert cli.main(["ladder", str(path), "--output-dir", str(tmp_path / "whole")]) == 0
    run, ballast, refusals = small_disk / "run", small_disk / "ballast", 0
    free_kib = [8, 40, 90, 150, 220, 300, 380, 460, 600, 800, 1000, 1300, 1700, 2200, 6000]
    for level in free_kib:
        ballast.unlink(missing_ok=True)
        with contextlib.suppress(OSError), open(ballast, "wb") as file:
            size = shutil.disk_usage(small_disk).free - (level << 10)
            file.write(bytes(max(0, size)))
        capsys.readouterr()
        code = cli.main(["ladder", str(path), "--output-dir", str(run)])
        lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
        if code == 0:
            break
        refusals += 1
        assert code == cli.EXIT_BAD_INPUT
        assert len(lines) == 1
        assert f"(disk at {small_disk}, " in lines[0]
        assert f"{run}" in lines[0]
        leftovers = [p for p in small_disk.rglob("*") if p.name.endswith(".tmp") or p.name == ".saving"]
        assert leftovers == []
        for manifest in run.rglob("manifest.json"):
            storage.check_manifest(manifest.parent)
    assert code == 0
    assert refusals >= 5, "the disk was full too seldom to mean anything"
    assert weights(run) == weights(tmp_path / "whole")
    assert json.loads((run / "ladder.json").read_text())["finished"] == [rung["name"] for rung in RUNGS]


@pytest.mark.parametrize(
    "words",
    [
        "unable to write to file </torch_991_3>: No space left on device (28)",
        "NCCL error: Error while creating shared memory segment /dev/shm/nccl-x: No space left on device (28)",
    ],
)
def test_full_shared_memory_is_not_taken_for_the_disk(words: str, tmp_path: Path) -> None:
    with (
        pytest.raises(FullDiskError, match=r"/dev/shm: No space left on device .* more shared memory") as caught,
        FullDiskNamed(tmp_path),
    ):
        raise RuntimeError(words)
    assert str(tmp_path) not in str(caught.value)
