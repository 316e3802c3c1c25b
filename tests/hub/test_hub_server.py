"""The loopback Hub refuses what the Hub refuses, so that a careless client fails its tests."""

import hashlib
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import hub_fixtures
import pytest
from hub_fixtures import TOKEN
from hub_server import HubServer

server = hub_fixtures.server

CONTENT = b"weights" * 100
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def hub(server: HubServer) -> Iterator[HubServer]:
    ask(server, "POST", "/api/repos/create", {"name": "d4", "organization": "org", "visibility": "private"})
    return server


def ask(
    server: HubServer, method: str, path: str, body: object = None, *, token: str | None = TOKEN, origin: str = ""
) -> int:
    """Send one request and return the status of its answer."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    if path.endswith("/commit/main"):
        headers["Content-Type"] = "application/x-ndjson"
        data = "\n".join(json.dumps({"key": key, "value": value}) for key, value in body).encode()
    request = urllib.request.Request((origin or server.endpoint) + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.parametrize(
    ("content", "size", "token", "status"),
    [
        (CONTENT, len(CONTENT), None, 200),
        (CONTENT[:-1], len(CONTENT), None, 400),
        (CONTENT[:-1] + b"x", len(CONTENT), None, 400),
        (CONTENT, len(CONTENT) + 1, None, 400),
        (CONTENT, len(CONTENT), TOKEN, 400),  # the token must not leave the Hub
    ],
)
def test_uploads_are_checked(hub: HubServer, content: bytes, size: int, token: str | None, status: int) -> None:
    path = f"/storage/{SHA256}?size={size}"
    assert ask(hub, "PUT", path, content, token=token, origin=hub.storage_origin) == status
    assert hub.storage.has_object(SHA256, len(CONTENT)) == (status == 200)


def test_commits_are_checked(hub: HubServer) -> None:
    head = hub.storage.head("org/d4")
    header = ("header", {"summary": "Publish", "parentCommit": head})
    weights = ("lfsFile", {"path": "model.safetensors", "oid": SHA256, "size": len(CONTENT)})
    commit = "/api/models/org/d4/commit/main"
    assert ask(hub, "POST", commit, [header, weights]) == 400  # the object has not arrived
    hub.storage.write_object(CONTENT)
    inline = ("file", {"path": "model.safetensors", "content": "aGk=", "encoding": "base64"})
    assert ask(hub, "POST", commit, [header, inline]) == 400  # to be stored as a large file
    assert ask(hub, "POST", commit, [header, ("deletedFile", {"path": "none"})]) == 404
    stale = ("header", {"summary": "Publish", "parentCommit": "0" * 40})
    assert ask(hub, "POST", commit, [stale, weights]) == 412
    assert ask(hub, "POST", commit, [header, weights], token=None) == 401
    assert hub.storage.head("org/d4") == head
    assert ask(hub, "POST", commit, [header, weights]) == 200
    assert hub.storage.files("org/d4")["model.safetensors"] == CONTENT


def test_private_repositories_are_not_seen(hub: HubServer) -> None:
    file = "/org/d4/resolve/main/.gitattributes"
    assert ask(hub, "GET", file) == 200
    assert ask(hub, "GET", file, token=None) == 401
    assert ask(hub, "GET", file, token="hf_other") == 401
    assert ask(hub, "GET", "/api/models/org/none") == 404
    assert ask(hub, "POST", "/api/repos/create", {"name": "d4", "organization": "other"}) == 403
    assert ask(hub, "POST", "/api/repos/create", {"name": "d4", "organization": "org"}) == 409


def test_content_is_under_its_digest(hub: HubServer) -> None:
    for path in Path(hub.storage.root, "objects").iterdir():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
