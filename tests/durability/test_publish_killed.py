"""Killed before and after any of its requests to the Hub, publishing leaves one commit of the whole, under its tag."""

import logging
import os
import signal
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from aiohttp import web
from durable_works import FORKED
from hub_fixtures import TOKEN, run_dir
from hub_server import Handler, HubServer
from huggingface_hub import constants

from hf_progressive.publishing import prepare_publication

__all__ = ["run_dir"]

logger = logging.getLogger(__name__)


class KillingHub(HubServer):
    """A Hub that kills its client at a request, before it does what is asked or after."""

    client: BaseProcess
    at, after = 0, False

    @web.middleware
    async def _apply_faults(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self.at -= 1
        if self.at != 0:
            return await handler(request)
        if self.after:
            await request.read()
            await handler(request)
        assert self.client.pid
        os.kill(self.client.pid, signal.SIGKILL)
        return web.Response(status=500)


def _publish(rung: Path, repo_id: str, endpoint: str) -> None:
    from hf_progressive.publishing import publish_rung

    logging.disable()
    os.environ["HF_TOKEN"] = TOKEN
    constants.ENDPOINT, constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_XET = endpoint, False, True
    publish_rung(rung, repo_id)


def publish(server: KillingHub, rung: Path, repo_id: str, *, at: int = 0, after: bool = False) -> int | None:
    server.client = FORKED.Process(target=_publish, args=(rung, repo_id, server.endpoint))
    server.at, server.after = at, after
    server.client.start()
    server.client.join(60)
    return server.client.exitcode


@pytest.mark.slow
def test_killed_at_any_request_it_leaves_one_whole_commit(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rung = run_dir / "d4" / "final"
    with KillingHub(tmp_path / "hub", token=TOKEN) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)  # the card links to the Hub it is on
        assert publish(server, rung, "org/whole") == 0
        requests = len(server.requests)
        kills = 0
        for after in (False, True):
            for at in range(1, requests + 1):
                repo_id = f"org/killed-{at}-{after}"
                code = publish(server, rung, repo_id, at=at, after=after)
                assert code in (-signal.SIGKILL, 0), at  # later ones ask less often: the Hub has the files
                kills += code != 0
                assert publish(server, rung, repo_id) == 0
                expected = {name: file.sha256 for name, file in prepare_publication(rung, repo_id).files.items()}
                stored = server.storage.read_commit(server.storage.head(repo_id))["files"]
                held = {name: entry["sha256"] for name, entry in stored.items() if name != ".gitattributes"}
                assert held == expected
                commits = [commit["title"] for commit in server.storage.history(repo_id)]
                assert commits.count("Publish d4") == 1, at
                tags = server.storage.repository(repo_id)["tags"]
                assert list(tags.values()) == [server.storage.head(repo_id)]
        assert kills >= 2 * requests - 4
    logger.info("publish: %d requests, %d kills, each left one whole commit", requests, kills)
