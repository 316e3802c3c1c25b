"""Locks are seen by other processes, and go with the process that holds them."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hf_progressive.storage.agreement import agreed
from hf_progressive.storage.locks import try_lock, wait_lock


@contextlib.contextmanager
def another_process(context: str, path: Path) -> Iterator[None]:
    """A process that stays in a context of `hf_progressive.storage` until it is killed."""
    program = "from hf_progressive.storage.agreement import *; from hf_progressive.storage.locks import *\n"
    program += f"from pathlib import Path; path = Path({str(path)!r})\n"
    program += f"with {context} as got: print(got, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() in (b"True", b"None")
        try:
            yield
        finally:
            process.kill()


@pytest.mark.parametrize("context", ["try_lock(path)", "wait_lock(path)"])
def test_a_lock_keeps_others_out_until_its_process_is_killed(context: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "lock"
    with another_process(context, path), try_lock(path) as free:
        assert not free
    with wait_lock(path), try_lock(tmp_path / "other") as free:
        assert free
    with try_lock(path) as free:
        assert free


def test_a_content_is_shared_until_its_last_user_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    with another_process("agreed(path, 'one')", path):
        with agreed(path, "two") as alike:
            assert not alike
        with agreed(path, "one") as alike:
            assert alike
        with agreed(path, "two") as alike:  # one user left, the other is still there
            assert not alike
    assert path.read_text() == "one"
    with agreed(path, "two") as alike:  # it was killed, and what it left behind does not count
        assert alike
        assert path.read_text() == "two"
        assert len(list((tmp_path / ".study.yaml.users").iterdir())) == 1
    assert not list((tmp_path / ".study.yaml.users").iterdir())
