"""Publishing and fetching where the disk of the Hub's client fills: one line that names it, and nothing half.

The client keeps on its disk what it is about to send or has got: that is a file system in memory of its own.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import test_disk
from durable_works import FORKED
from hub_fixtures import TOKEN, run_dir
from hub_server import HubServer
from huggingface_hub import constants
from test_disk import SPACE, clear, resize, the_error

from hf_progressive import cli
from hf_progressive.hub import fetch_rung
from hf_progressive.publishing import prepare_publication, publish_rung
from hf_progressive.storage import is_complete

__all__ = ["run_dir"]

disk = test_disk.disk
REPO_ID = "org/full"
SHARES = (0.0, 0.3, 0.6)
"""Of what the upload takes, this much is free."""


def _at_home(act: Callable[[], object], home: Path, endpoint: str, told: Path) -> None:
    for stream in (sys.stdout, sys.stderr):
        with told.open("ab") as file:
            os.dup2(file.fileno(), stream.fileno())
    os.environ |= {"HF_TOKEN": TOKEN, "HF_HOME": str(home), "HF_XET_CACHE": str(home / "xet")}
    constants.ENDPOINT, constants.HF_HUB_OFFLINE = endpoint, False
    constants.HUGGINGFACE_CO_URL_TEMPLATE = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    constants.HF_HOME, constants.HF_XET_CACHE, constants.HF_HUB_CACHE = map(str, (home, home / "xet", home / "hub"))
    code = cli.execute(lambda _: (0, {"done": str(act())}), argparse.Namespace(json=False))
    sys.stderr.flush()
    os._exit(code)


def carry_out(act: Callable[[], object], disk: Path, server: HubServer) -> tuple[int | None, list[str]]:
    told = disk.with_name("told.txt")
    told.write_text("")
    process = FORKED.Process(target=_at_home, args=(act, disk / "home", server.endpoint, told))
    process.start()
    process.join(120)
    return process.exitcode, told.read_text().splitlines()


def require_refusal(done: tuple[int | None, list[str]], disk: Path) -> None:
    code, lines = done
    assert code == cli.EXIT_BAD_INPUT, lines
    assert f"(disk at {disk}, " in the_error(lines), lines
    assert "free some space and start again" in the_error(lines), lines


@pytest.mark.slow
def test_the_clients_disk_is_full(run_dir: Path, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = (partial(publish_rung, run_dir / name / "final", REPO_ID) for name in ("d5", "d4"))
    with HubServer(tmp_path / "hub", token=TOKEN) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)  # the card links to the Hub it is on
        code, lines = carry_out(old, disk, server)
        assert code == 0, lines
        needed, before = shutil.disk_usage(disk).used, server.storage.repository(REPO_ID)
        for share in SHARES:
            clear(disk)
            resize(disk, f"size={max(4096, int(needed * share))}")  # 0 has no limit
            require_refusal(carry_out(new, disk, server), disk)
            assert server.storage.repository(REPO_ID) == before, share  # branches and tags
        resize(disk, f"size={SPACE}")
        code, lines = carry_out(new, disk, server)
        assert code == 0, lines
        expected, head = prepare_publication(run_dir / "d4" / "final", REPO_ID), server.storage.head(REPO_ID)
        stored = server.storage.read_commit(head)["files"]
        assert {name: entry["sha256"] for name, entry in stored.items() if name != ".gitattributes"} == {
            name: file.sha256 for name, file in expected.files.items()
        }
        titles = [commit["title"] for commit in server.storage.history(REPO_ID)]
        assert titles == ["Publish d4", "Publish d5", "initial commit"]
        assert server.storage.repository(REPO_ID)["tags"] == before["tags"] | {expected.tag: head}

        clear(disk)
        resize(disk, f"size={needed}")
        require_refusal(carry_out(partial(fetch_rung, REPO_ID), disk, server), disk)
        resize(disk, f"size={SPACE}")
        code, lines = carry_out(partial(fetch_rung, REPO_ID), disk, server)
        assert code == 0, lines
        assert is_complete(disk / "home" / "hub" / "models--org--full" / "snapshots" / server.storage.head(REPO_ID))
