"""Whatever the Hub, or somebody between, answers: files are fetched, or one line says why not."""

import random
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from hub_family import write_run
from hub_fixtures import TOKEN
from hub_server import HubServer
from huggingface_hub import constants
from mutations import mutated_bytes, mutated_json

from hf_progressive.growth.source import GrowthSource
from hf_progressive.hub import transport
from hf_progressive.hub.fetch import locate_files

httpx = transport._utils.httpx
FILES = ("config.json", "rung.json", "generation_config.json")
STATUSES = (200, 204, 206, 304, 307, 400, 401, 403, 404, 416, 429, 500, 503)
HEADERS = ("etag", "x-repo-commit", "x-linked-etag", "x-linked-size", "content-length", "location", "content-type")
ODD_HEADERS = ("", "x", "-1", "9" * 30, '"../../x"', "../../../x", "http://127.0.0.1:1/x", "/", "application/x\x7f")
MOST_SECONDS = 2  # of two processors: the server's answers are made by this process, too


class Crooked(httpx.BaseTransport):
    """Answers of a sound Hub, changed on the way."""

    def __init__(self, endpoint: str) -> None:
        self._hub, self._inner, self.draw = httpx.URL(endpoint), httpx.HTTPTransport(), random.Random(0)
        self.changes = 0

    def handle_request(self, request: "httpx.Request") -> "httpx.Response":
        """Ask the Hub, and change what it says."""
        request.url = request.url.copy_with(scheme=self._hub.scheme, host=self._hub.host, port=self._hub.port)
        answer = self._inner.handle_request(request)
        content, headers, status = answer.read(), dict(answer.headers), answer.status_code
        draw = self.draw
        if draw.random() < 0.4 and self.changes:
            self.changes -= 1
            match draw.randrange(4):
                case 0:
                    status = draw.choice(STATUSES)
                case 1:
                    headers[draw.choice(HEADERS)] = draw.choice(ODD_HEADERS)
                case 2:
                    headers.pop(draw.choice(HEADERS), None)
                case _ if "json" in headers.get("content-type", "") and content:
                    content = mutated_json(content, draw)
                    headers["content-length"] = str(len(content))
                case _:
                    content = mutated_bytes(content, draw)
        return httpx.Response(status, headers=headers, content=content, request=request)


@pytest.fixture
def crooked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Crooked]:
    """A client whose every answer comes through `Crooked`."""
    with HubServer(tmp_path / "hub", token=TOKEN) as server:
        final = write_run(tmp_path / "run") / "d4" / "final"
        server.storage.create_repository("org/d4", private=False)
        server.storage.commit("org/d4", {name: (final / name).read_bytes() for name in FILES}, "All")
        middle = Crooked(server.endpoint)
        huggingface_hub.set_client_factory(lambda: httpx.Client(transport=middle, follow_redirects=True))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(transport, "ATTEMPTS", 2)
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        yield middle
        huggingface_hub.set_client_factory(default_connections())


def default_connections() -> object:
    """Return what makes the client's own connections."""
    from huggingface_hub.utils._http import default_client_factory

    return default_client_factory


def attack(crooked: Crooked, numbers: range, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faults, fetched = [], 0
    for number in numbers:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / f"cache{number}"))
        crooked.draw, crooked.changes = random.Random(number), 2
        began = time.process_time()
        try:
            place, commit = locate_files("org/d4", FILES)
            GrowthSource(name="org/d4", folder=place, revision=commit).read_config()
            fetched += 1
        except (ValueError, OSError) as error:
            if "\n" in str(error) or not str(error) or TOKEN in str(error):
                faults.append(f"{number}: {str(error)[:300]!r}")
        except BaseException as error:
            faults.append(f"{number}: {type(error).__name__}: {str(error)[:200]}")
        if (spent := time.process_time() - began) > MOST_SECONDS:
            faults.append(f"{number}: {spent:.1f} s")
    assert not faults, f"{len(faults)} of {len(numbers)}:\n" + "\n".join(faults[:30])
    assert fetched
    known = {"hub", "run", *(f"cache{number}" for number in numbers)}
    assert {path.name for path in folder.iterdir()} <= known


def test_a_hub_s_answers_may_be_anything(crooked: Crooked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attack(crooked, range(12), tmp_path, monkeypatch)


@pytest.mark.slow
def test_a_hub_s_answers_may_be_anything_at_all(
    crooked: Crooked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack(crooked, range(1000, 1150), tmp_path, monkeypatch)
