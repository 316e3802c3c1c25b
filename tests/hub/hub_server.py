"""A loopback Hub: the HTTP interface of huggingface.co as far as publishing and loading models needs it.

Checked against huggingface_hub 2.4.0 (httpx2 2.16, hf_xet 1.8), transformers 5.23 and the `hf` command line of that
version, all of them unmodified: HF_ENDPOINT points the client here. Uploads are covered on the Xet path, which is the
client's default, and on the LFS path, in one piece and in parts (HF_HUB_DISABLE_XET=1). Downloads are covered on the
HTTP path, which the client takes for every file that comes without an `X-Xet-Hash`. Models only; no pull requests,
gating or quotas.

The server is strict where the Hub is: an upload must have the announced size and SHA-256, a commit may only name
objects that have arrived, its parent must be the head, metadata must be valid, and the storage, which stands on
another origin like the Hub's CDN, refuses a request that carries a token.
"""

import asyncio
import base64
import dataclasses
import json
import re
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

from aiohttp import web
from hub_collections import Collections
from hub_large_files import LargeFiles
from hub_metadata import metadata_errors
from hub_storage import FileEntry, HubStorage, lfs_entry
from hub_xet import XetStorage

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
FaultKind = Literal["status", "cut", "lose response", "slow", "conflict"]

REGULAR_LIMIT = 10_000_000
"""Bytes above which a file is not kept as a git blob."""

LFS_SUFFIXES = (".safetensors", ".bin", ".png")

GIT_ATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()

API = "/api/models/{namespace}/{name}"


def error(status: int, message: str, code: str | None = None) -> web.Response:
    headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return web.json_response({"error": message}, status=status, headers=headers)


class Refused(Exception):
    """Carries the answer to a request that goes no further."""

    def __init__(self, response: web.Response) -> None:
        super().__init__(response.status)
        self.response = response


@dataclasses.dataclass
class Fault:
    """What goes wrong, on which requests, how often.

    `status` answers with `status` and `headers` and does nothing; `cut` drops the connection once `after_bytes` of the
    body have come; `lose response` does the work and drops the connection instead of answering; `slow` waits `seconds`
    first; `conflict` lets somebody else commit first.
    """

    kind: FaultKind
    method: str
    path: str
    """A regular expression that the path must contain."""

    times: int = 1
    status: int = 500
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    after_bytes: int = 0
    seconds: float = 0.0
    struck: int = 0

    def strikes(self, request: web.Request) -> bool:
        if self.struck >= self.times or request.method != self.method or not re.search(self.path, request.path):
            return False
        self.struck += 1
        return True


class HubServer:
    """The server, on a thread of its own; a context manager.

    `token` is the one valid token, of a user who may write to the namespaces in `writable`. `requests` lists what was
    asked, in order, as (method, path, status), the status 0 where the connection was dropped.
    """

    def __init__(self, root: Path, *, token: str, writable: tuple[str, ...] = ("org",), part_size: int = 0) -> None:
        self.storage, self.token, self.writable = HubStorage(root), token, writable
        self.large_files = LargeFiles(self.storage, part_size)
        self.xet = XetStorage(self.storage)
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str, int]] = []
        self.times: list[float] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def inject(self, kind: FaultKind, method: str, path: str, **options: Any) -> Fault:
        """Make the next requests that match go wrong."""
        self.faults.append(Fault(kind, method, path, **options))
        return self.faults[-1]

    def asked(self, method: str, path: str) -> int:
        """How many requests with this method, and a path that contains the expression, were answered well."""
        return sum(m == method and bool(re.search(path, p)) and 200 <= status < 300 for m, p, status in self.requests)

    # Starting and stopping

    def __enter__(self) -> "HubServer":
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _start(self) -> None:
        app = web.Application(middlewares=[self._record, self._apply_faults], client_max_size=1 << 31)
        app.add_routes([*self.routes(), *self.large_files.routes(), *self.xet.routes()])
        app.add_routes(Collections(self.storage, self._require_write).routes())
        self._runner = web.AppRunner(app, shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        port = self._runner.addresses[0][1]
        self.endpoint = f"http://127.0.0.1:{port}"
        self.storage_origin = f"http://localhost:{port}"

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/api/whoami-v2", self.who_am_i),
            web.post("/api/validate-yaml", self.validate_yaml),
            web.post("/api/repos/create", self.create_repository),
            web.get(API, self.model_info),
            web.get(API + "/revision/{revision}", self.model_info),
            web.get(API + "/refs", self.list_refs),
            web.get(API + "/tree/{revision}", self.list_tree),
            web.get(API + "/tree/{revision}/{path:.+}", self.list_tree),
            web.post(API + "/tag/{revision}", self.create_tag),
            web.post(API + "/preupload/{revision}", self.preupload),
            web.post("/{namespace}/{name}.git/info/lfs/objects/batch", self.lfs_batch),
            web.post("/api/lfs/verify", self.verify_object),
            web.get(API + "/xet-write-token/{revision}", self.xet_connection),
            web.post(API + "/commit/{revision}", self.commit),
            web.get("/{namespace}/{name}/resolve/{revision}/{path:.+}", self.resolve),  # HEAD comes with GET
        ]

    # What every request passes through

    @web.middleware
    async def _record(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        status = 0
        try:
            response = await handler(request)
            status = response.status
        except Refused as refusal:
            response = refusal.response
            status = response.status
        finally:
            self.requests.append((request.method, request.path, status))
            self.times.append(time.monotonic())
        return response

    @web.middleware
    async def _apply_faults(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        fault = next((fault for fault in self.faults if fault.strikes(request)), None)
        if fault is None:
            return await handler(request)
        if fault.kind == "status":
            await request.read()
            return web.Response(status=fault.status, headers=fault.headers, text="<html>bad gateway</html>")
        if fault.kind == "cut":
            if fault.after_bytes:
                await request.content.readexactly(fault.after_bytes)
            self._drop(request)
        if fault.kind == "slow":
            await asyncio.sleep(fault.seconds)
        if fault.kind == "conflict":
            self.storage.commit(self._repo_id(request), {"NOTES.md": b"somebody else was here\n"}, "Notes")
        response = await handler(request)
        if fault.kind == "lose response":
            self._drop(request)
        return response

    def _drop(self, request: web.Request) -> None:
        assert request.transport is not None
        request.transport.abort()
        raise ConnectionResetError

    # Who may do what

    def _signed_in(self, request: web.Request) -> bool:
        header = request.headers.get("Authorization")
        if header not in (None, f"Bearer {self.token}"):
            raise Refused(error(401, "Invalid credentials in Authorization header"))
        return header is not None

    def _require_write(self, request: web.Request, namespace: str) -> None:
        if not self._signed_in(request):
            raise Refused(error(401, "Invalid username or password."))
        if namespace not in self.writable:
            raise Refused(error(403, f"You don't have the rights to write under the namespace {namespace!r}"))

    def _repo_id(self, request: web.Request) -> str:
        return f"{request.match_info['namespace']}/{request.match_info['name']}"

    def _readable(self, request: web.Request) -> dict[str, Any]:
        """The repository a request names, or the Hub's answer for one that is not there or may not be seen."""
        repo_id, signed_in = self._repo_id(request), self._signed_in(request)
        if self.storage.has_repository(repo_id):
            repository = self.storage.repository(repo_id)
            if signed_in or not repository["private"]:
                return repository
        raise Refused(error(404 if signed_in else 401, "Repository not found", "RepoNotFound"))

    def _writable(self, request: web.Request) -> dict[str, Any]:
        repository = self._readable(request)
        self._require_write(request, request.match_info["namespace"])
        return repository

    def _commit_at(self, request: web.Request) -> dict[str, Any]:
        repository = self._readable(request)
        revision = request.match_info.get("revision", "main")
        oid = repository["branches"].get(revision) or repository["tags"].get(revision) or revision
        if not self.storage.has_commit(oid):
            raise Refused(error(404, f"Invalid rev id: {revision}", "RevisionNotFound"))
        return self.storage.read_commit(oid)

    # Accounts, repositories, revisions

    async def who_am_i(self, request: web.Request) -> web.Response:
        if not self._signed_in(request):
            return error(401, "Invalid username or password.")
        organisations = [{"name": name, "type": "org"} for name in self.writable]
        return web.json_response({"type": "user", "name": "somebody", "orgs": organisations})

    async def validate_yaml(self, request: web.Request) -> web.Response:
        data, errors = metadata_errors((await request.json())["content"])
        warnings = [] if data else [{"message": "empty or missing yaml metadata in repo card"}]
        body = {"errors": [{"message": message} for message in errors], "warnings": warnings}
        return web.json_response(body, status=400 if errors else 200)

    async def create_repository(self, request: web.Request) -> web.Response:
        body = await request.json()
        namespace = body.get("organization") or "somebody"
        self._require_write(request, namespace)
        repo_id = f"{namespace}/{body['name']}"
        url = {"url": f"{self.endpoint}/{repo_id}", "name": repo_id}
        if self.storage.has_repository(repo_id):
            return web.json_response(url | {"error": "You already created this model repo"}, status=409)
        self.storage.create_repository(repo_id, private=body.get("visibility") == "private")
        self.storage.commit(repo_id, {".gitattributes": GIT_ATTRIBUTES}, "initial commit")
        return web.json_response(url)

    async def model_info(self, request: web.Request) -> web.Response:
        commit, repository = self._commit_at(request), self._readable(request)
        info = {"id": repository["id"], "private": repository["private"], "sha": commit["oid"], "tags": []}
        return web.json_response(info | {"siblings": [{"rfilename": path} for path in commit["files"]]})

    async def list_refs(self, request: web.Request) -> web.Response:
        repository = self._readable(request)
        listing: dict[str, list[Any]] = {"converts": []}
        for kind, prefix in (("branches", "refs/heads/"), ("tags", "refs/tags/")):
            listing[kind] = [
                {"name": name, "ref": prefix + name, "targetCommit": oid} for name, oid in repository[kind].items()
            ]
        return web.json_response(listing)

    async def list_tree(self, request: web.Request) -> web.Response:
        folder = request.match_info.get("path", "")
        prefix = f"{folder}/" if folder else ""
        files = self._commit_at(request)["files"]
        below = {path: entry for path, entry in files.items() if path.startswith(prefix)}
        if not below:
            return error(404, f"{folder} does not exist on the Hub", "EntryNotFound")
        listing: dict[str, Any] = {}
        for path, entry in below.items():
            name, slash, _ = path.removeprefix(prefix).partition("/")
            if slash and request.query.get("recursive") != "true":
                listing[name] = {"type": "directory", "path": prefix + name, "size": 0, "oid": "0" * 40}
                continue
            listing[path] = {"type": "file", "path": path, "size": entry["size"], "oid": entry["oid"]}
            if entry["lfs"]:
                listing[path]["lfs"] = {"oid": entry["sha256"], "size": entry["size"], "pointerSize": 134}
        return web.json_response(list(listing.values()))

    async def create_tag(self, request: web.Request) -> web.Response:
        commit, repository = self._commit_at(request), self._writable(request)
        tag = (await request.json())["tag"]
        if tag in repository["tags"]:
            return error(409, f"Tag {tag} already exists")
        repository["tags"][tag] = commit["oid"]
        self.storage.write_repository(repository)
        return web.json_response({"ref": f"refs/tags/{tag}"})

    # Uploading

    async def preupload(self, request: web.Request) -> web.Response:
        self._writable(request)
        commit = self._commit_at(request)
        answers = []
        for file in (await request.json())["files"]:
            path, sample = file["path"], base64.b64decode(file["sample"])
            large = path.endswith(LFS_SUFFIXES) or file["size"] > REGULAR_LIMIT or b"\0" in sample
            answer = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            if known := commit["files"].get(path):
                answer["oid"] = known["sha256"] if known["lfs"] else known["oid"]
            answers.append(answer)
        return web.json_response({"files": answers, "commitOid": commit["oid"]})

    async def lfs_batch(self, request: web.Request) -> web.Response:
        self._writable(request)
        verify_url = f"{self.endpoint}/api/lfs/verify"
        objects = [
            item | self.large_files.upload_actions(item["oid"], item["size"], self.storage_origin, verify_url)
            for item in (await request.json())["objects"]
        ]
        body = {"transfer": "basic", "objects": objects}
        return web.json_response(body, content_type="application/vnd.git-lfs+json")

    async def verify_object(self, request: web.Request) -> web.Response:
        if not self._signed_in(request):
            return error(401, "Invalid username or password.")
        body = await request.json()
        if not self.storage.has_object(body["oid"], body["size"]):
            return error(404, "the object has not arrived")
        return web.json_response({"message": "ok"})

    async def xet_connection(self, request: web.Request) -> web.Response:
        self._writable(request)
        return self.xet.connection(self.storage_origin)

    async def commit(self, request: web.Request) -> web.Response:
        repository = self._writable(request)
        head = self.storage.read_commit(repository["branches"]["main"])
        if request.content_type != "application/x-ndjson":
            return error(400, "expected application/x-ndjson")
        items = [json.loads(line) for line in (await request.text()).splitlines()]
        header = items[0]["value"]
        if items[0]["key"] != "header" or not header.get("summary"):
            return error(400, "a commit starts with a header that has a summary")
        if header.get("parentCommit", head["oid"]) != head["oid"]:
            return error(412, "A commit has happened since. Please refresh and try again.")
        additions: dict[str, bytes | FileEntry] = {}
        deletions: list[str] = []
        for item in items[1:]:
            self._apply(item["key"], item["value"], head, additions, deletions)
        oid = self.storage.commit(repository["id"], additions, header["summary"], tuple(deletions))
        url = f"{self.endpoint}/{repository['id']}/commit/{oid}"
        return web.json_response({"success": True, "commitOid": oid, "commitUrl": url})

    def _apply(
        self,
        key: str,
        value: dict[str, Any],
        head: dict[str, Any],
        additions: dict[str, bytes | FileEntry],
        deletions: list[str],
    ) -> None:
        path = value["path"]
        match key:
            case "file":
                additions[path] = content = base64.b64decode(value["content"], validate=True)
                if len(content) > REGULAR_LIMIT or path.endswith(LFS_SUFFIXES):
                    raise Refused(error(400, f"{path} must be stored as a large file"))
            case "lfsFile":
                if not self.storage.has_object(value["oid"], value["size"]):
                    raise Refused(error(400, f"the LFS pointer of {path} points to a file that does not exist"))
                additions[path] = lfs_entry(value["oid"], value["size"])
            case "deletedFile":
                if path not in head["files"]:
                    raise Refused(error(404, f"A file with this name doesn't exist: {path}", "EntryNotFound"))
                deletions.append(path)
            case _:
                raise Refused(error(400, f"unknown operation {key!r}"))

    # Downloading

    async def resolve(self, request: web.Request) -> web.StreamResponse:
        commit, path = self._commit_at(request), request.match_info["path"]
        entry = commit["files"].get(path)
        if entry is None:
            response = error(404, "Entry not found", "EntryNotFound")
        elif entry["lfs"]:
            response = web.Response(status=302)
            response.headers["Location"] = f"{self.storage_origin}/storage/{entry['sha256']}"
            response.headers["X-Linked-Size"] = str(entry["size"])
            response.headers["X-Linked-Etag"] = f'"{entry["sha256"]}"'
        else:
            response = web.Response(body=self.storage.read_object(entry["sha256"]))
            response.headers["ETag"] = f'"{entry["oid"]}"'
        response.headers["X-Repo-Commit"] = commit["oid"]
        return response
