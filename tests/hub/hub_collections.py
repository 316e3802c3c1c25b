"""The loopback Hub's collections."""

import re
import uuid
from collections.abc import Callable
from typing import Any

from aiohttp import web
from hub_storage import HubStorage

DESCRIPTION_LIMIT = 150


class Collections:
    """Routes of the collections; `require_write(request, namespace)` refuses whoever may not write there."""

    def __init__(self, storage: HubStorage, require_write: Callable[[web.Request, str], None]) -> None:
        self.storage, self.require_write = storage, require_write

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/api/collections", self.create),
            web.get("/api/collections/{namespace}/{slug}", self.read),
            web.post("/api/collections/{namespace}/{slug}/items", self.add_item),
        ]

    async def create(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.require_write(request, body["namespace"])
        if len(body.get("description") or "") > DESCRIPTION_LIMIT:
            return web.json_response({"error": f"description is over {DESCRIPTION_LIMIT} characters"}, status=400)
        for collection in self.storage.collections():
            if collection["title"] == body["title"] and collection["owner"]["name"] == body["namespace"]:
                return web.json_response({"error": "exists already", "slug": collection["slug"]}, status=409)
        name = re.sub(r"[^a-z0-9]+", "-", body["title"].lower()).strip("-")
        collection = {
            "slug": f"{body['namespace']}/{name}-{uuid.uuid4().hex[:24]}",
            "title": body["title"],
            "description": body.get("description"),
            "owner": {"name": body["namespace"], "type": "org"},
            "private": body.get("private", False),
            "items": [],
            "lastUpdated": "2025-01-01T00:00:00.000Z",
            "position": 0,
            "theme": "blue",
            "upvotes": 0,
        }
        self.storage.write_collection(collection)
        return web.json_response(collection)

    def _find(self, request: web.Request) -> dict[str, Any]:
        slug = f"{request.match_info['namespace']}/{request.match_info['slug']}"
        for collection in self.storage.collections():
            if collection["slug"] == slug:
                if collection["private"]:
                    self.require_write(request, collection["owner"]["name"])
                return collection
        raise web.HTTPNotFound(headers={"X-Error-Message": "Collection not found"})

    async def read(self, request: web.Request) -> web.Response:
        return web.json_response(self._find(request))

    async def add_item(self, request: web.Request) -> web.Response:
        self.require_write(request, request.match_info["namespace"])
        collection, body = self._find(request), await request.json()
        item = body["item"]
        if not self.storage.has_repository(item["id"]):
            return web.json_response({"error": f"{item['id']} does not exist"}, status=404)
        if item["id"] in [known["id"] for known in collection["items"]]:
            return web.json_response({"error": "Item already in collection"}, status=409)
        entry = {"_id": uuid.uuid4().hex[:24], "position": len(collection["items"]), **item}
        if body.get("note"):
            entry["note"] = {"text": body["note"], "html": body["note"]}
        collection["items"].append(entry)
        self.storage.write_collection(collection)
        return web.json_response(collection)
