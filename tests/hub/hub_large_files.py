"""The loopback Hub's large files: the LFS batch interface, uploads in one piece and in parts, downloads.

The addresses under /storage stand on another origin than the Hub's, as its storage and CDN do: a client that sends its
token there is refused, so that a leak of the token is a failed test.
"""

import hashlib
from typing import Any

from aiohttp import web
from hub_storage import HubStorage


def refuse_token(request: web.Request) -> None:
    if "Authorization" in request.headers:
        raise web.HTTPBadRequest(text="the token must not leave the Hub")


class LargeFiles:
    """Routes of the storage; `part_size` above 0 makes the client upload larger files in parts of so many bytes."""

    def __init__(self, storage: HubStorage, part_size: int) -> None:
        self.storage, self.part_size = storage, part_size
        self._parts: dict[tuple[str, int], bytes] = {}

    def routes(self) -> list[web.RouteDef]:
        return [
            web.put("/storage/{sha256}", self.put_object),
            web.put("/storage/{sha256}/{part}", self.put_part),
            web.post("/storage/{sha256}/complete", self.complete_parts),
            web.get("/storage/{sha256}", self.get_object),
        ]

    def upload_actions(self, sha256: str, size: int, origin: str, verify_url: str) -> dict[str, Any]:
        """What the client is to do for one object, in the LFS batch interface's terms; nothing for a known one."""
        if self.storage.has_object(sha256, size):
            return {}
        upload: dict[str, Any] = {"href": f"{origin}/storage/{sha256}?size={size}"}
        if self.part_size and size > self.part_size:
            count = -(-size // self.part_size)
            parts = {f"{number:05d}": f"{origin}/storage/{sha256}/{number}" for number in range(1, count + 1)}
            header = parts | {"chunk_size": str(self.part_size)}
            upload = {"href": f"{origin}/storage/{sha256}/complete?size={size}", "header": header}
        return {"actions": {"upload": upload, "verify": {"href": verify_url}}}

    def _keep(self, content: bytes, request: web.Request) -> web.Response:
        sha256, size = request.match_info["sha256"], int(request.query["size"])
        if len(content) != size or hashlib.sha256(content).hexdigest() != sha256:
            return web.Response(status=400, text=f"{len(content)} bytes arrived, not the {size} of {sha256}")
        self.storage.write_object(content)
        return web.Response(headers={"ETag": f'"{sha256}"'})

    async def put_object(self, request: web.Request) -> web.Response:
        refuse_token(request)
        return self._keep(await request.read(), request)

    async def put_part(self, request: web.Request) -> web.Response:
        refuse_token(request)
        content = await request.read()
        self._parts[request.match_info["sha256"], int(request.match_info["part"])] = content
        return web.Response(headers={"ETag": f'"{hashlib.md5(content).hexdigest()}"'})

    async def complete_parts(self, request: web.Request) -> web.Response:
        refuse_token(request)
        content = b""
        for part in (await request.json())["parts"]:
            piece = self._parts[request.match_info["sha256"], part["partNumber"]]
            if part["etag"] != f'"{hashlib.md5(piece).hexdigest()}"':
                return web.Response(status=400, text=f"part {part['partNumber']} has another ETag")
            content += piece
        return self._keep(content, request)

    async def get_object(self, request: web.Request) -> web.StreamResponse:
        refuse_token(request)
        return web.FileResponse(self.storage.object_file(request.match_info["sha256"]))  # answers Range too
