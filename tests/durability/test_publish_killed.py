"""Killed before and after any of its requests to the Hub, publishing leaves one commit of the whole, under its tag."""

import contextlib
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
REPO_ID = "org/killed"


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
            with contextlib.suppress(web.HTTPException):  # what it answers, such as that there is no such repository
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
    with KillingHub(tmp_path / "whole", token=TOKEN) as server:
        assert publish(server, rung, REPO_ID) == 0
        requests = len(server.requests)
    assert requests > 10
    # After a request the Hub holds what it does before the next one, so that only the last differs.
    for at, after in [*((at, False) for at in range(1, requests + 1)), (requests, True)]:
        with KillingHub(tmp_path / f"killed-{at}-{after}", token=TOKEN) as server:  # one that has no file yet
            monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)  # the card links to the Hub it is on
            assert publish(server, rung, REPO_ID, at=at, after=after) == -signal.SIGKILL, at
            assert publish(server, rung, REPO_ID) == 0
            require_one_whole_commit(server, rung)
    logger.info("publish: %d requests, %d kills, each left one whole commit", requests, requests + 1)


def require_one_whole_commit(server: HubServer, rung: Path) -> None:
    expected = {name: file.sha256 for name, file in prepare_publication(rung, REPO_ID).files.items()}
    stored = server.storage.read_commit(server.storage.head(REPO_ID))["files"]
    assert {name: entry["sha256"] for name, entry in stored.items() if name != ".gitattributes"} == expected
    assert [commit["title"] for commit in server.storage.history(REPO_ID)].count("Publish d4") == 1
    assert list(server.storage.repository(REPO_ID)["tags"].values()) == [server.storage.head(REPO_ID)]
