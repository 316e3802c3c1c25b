"""SIGTERM outside of training, in processes of their own."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hf_progressive.distributed.termination import EXIT_CODE

PROGRAM = """
import hashlib, os, signal, sys, time
from hf_progressive.distributed import termination
from hf_progressive.storage import atomic_folder
termination.GRACE_SECONDS = 1.0

def ready():
    print("ready", flush=True)

with termination.ended_by_sigterm():
    {body}
print("went on", flush=True)
"""
SLEEPS = "with atomic_folder(sys.argv[1]) as folder: (folder / 'x').touch(); ready(); time.sleep(60)"
# One call of many minutes that lets other threads run and that no signal interrupts, as a collective is.
WAITS_IN_C = "ready(); hashlib.pbkdf2_hmac('sha256', b'', b'', (1 << 31) - 1)"
IMPORTS = "sys.path.insert(0, sys.argv[1]); import slow"
HAS_A_CHILD = """
    child = os.fork()
    if not child:
        time.sleep(60)
    os.kill(child, signal.SIGTERM)
    assert os.waitpid(child, 0)[1] == signal.SIGTERM
    time.sleep(1.5)"""


def start(body: str, *arguments: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM.format(body=body), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def told(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)  # from the launcher and to the whole group: twice is no more than once
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def test_it_ends_in_order(tmp_path: Path) -> None:
    assert told(start(SLEEPS, tmp_path / "out")) == (EXIT_CODE, "", "")
    assert list(tmp_path.iterdir()) == []


def test_it_ends_soon_where_python_waits(tmp_path: Path) -> None:
    began = time.monotonic()
    assert told(start(WAITS_IN_C)) == (EXIT_CODE, "", "")
    assert time.monotonic() - began < 60


def test_it_ends_at_once_while_modules_are_imported(tmp_path: Path) -> None:
    swallows = "import time\nprint('ready', flush=True)\ntry:\n    time.sleep(60)\nexcept BaseException:\n    pass\n"
    (tmp_path / "slow.py").write_text(swallows)
    assert told(start(IMPORTS, tmp_path)) == (EXIT_CODE, "", "")


def test_a_childs_end_is_not_its_parents() -> None:
    process = start(HAS_A_CHILD)
    assert process.communicate(timeout=120) == ("went on\n", "")
    assert process.returncode == 0


@pytest.mark.parametrize("meaning", ["signal.SIG_IGN", "print"])
def test_where_the_signal_has_a_meaning_already_it_keeps_it(meaning: str) -> None:
    body = f"""
    signal.signal(signal.SIGTERM, {meaning})
    with termination.ended_by_sigterm():
        assert signal.getsignal(signal.SIGTERM) is {meaning}
    signal.signal(signal.SIGTERM, signal.SIG_DFL)"""
    process = start(body)
    assert process.communicate(timeout=120) == ("went on\n", "")
