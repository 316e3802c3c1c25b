"""The loopback Hub's Xet storage: xorbs of compressed chunks, and the shards that say which chunks make a file.

Written after the protocol's description in huggingface/hub-docs (docs/xet/xorb.md, shard.md, upload-protocol.md) and
checked against hf_xet 1.8. A shard is believed only once every file in it has been put together from chunks that have
arrived and has the SHA-256 the shard states; the file is then an object like any other, for HTTP downloads.
Chunk and file hashes (BLAKE3 Merkle trees) are taken as names, not checked.
"""

import hashlib
import itertools
import json
import struct
import time
from collections.abc import Iterator

import pyarrow
from aiohttp import web
from hub_storage import HubStorage

SHARD_HEADER_BYTES = 48
ENTRY_BYTES = 48
BOOKEND = b"\xff" * 32
WITH_VERIFICATION, WITH_METADATA = 1 << 31, 1 << 30
STORED, LZ4, GROUPED_LZ4 = range(3)
TOKEN = "xet-write-token"


def hash_name(raw: bytes) -> str:
    """The protocol's text form of a hash: four little-endian 64-bit numbers."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", raw))


def read_chunks(xorb: bytes) -> list[bytes]:
    """The chunks of a serialized xorb, decompressed; its footer, which repeats what they say, is left."""
    chunks, position = [], 0
    while position < len(xorb) and xorb[position] == 0:
        packed = int.from_bytes(xorb[position + 1 : position + 4], "little")
        scheme = xorb[position + 4]
        size = int.from_bytes(xorb[position + 5 : position + 8], "little")
        data = xorb[position + 8 : position + 8 + packed]
        if scheme != STORED:
            data = pyarrow.decompress(data, size, codec="lz4", asbytes=True)
        chunks.append(ungroup(data) if scheme == GROUPED_LZ4 else data)
        position += 8 + packed
    return chunks


def ungroup(grouped: bytes) -> bytes:
    """Undo the grouping of bytes by their position in 4-byte words.

    >>> ungroup(b"aebfcgd")
    b'abcdefg'
    """
    groups, start, result = [], 0, bytearray(len(grouped))
    for position in range(4):
        size = len(range(position, len(grouped), 4))
        groups.append(grouped[start : start + size])
        start += size
    for position, group in enumerate(groups):
        result[position::4] = group
    return bytes(result)


def read_files(shard: bytes) -> Iterator[tuple[str, list[tuple[str, int, int]]]]:
    """The files a shard describes: their SHA-256 and the chunks, [start, end) of which xorb, that make them."""
    entries = (shard[start : start + ENTRY_BYTES] for start in itertools.count(SHARD_HEADER_BYTES, ENTRY_BYTES))
    for header in entries:
        if header[:32] == BOOKEND:
            return
        flags, count = struct.unpack("<II", header[32:40])
        terms = []
        for entry in itertools.islice(entries, count):
            _, _, start, end = struct.unpack("<4I", entry[32:48])
            terms.append((hash_name(entry[:32]), start, end))
        if flags & WITH_VERIFICATION:
            next(itertools.islice(entries, count - 1, count))
        if not flags & WITH_METADATA:
            raise ValueError("a file of a repository needs its SHA-256")
        yield hash_name(next(entries)[:32]), terms


class XetStorage:
    """Routes of the Xet storage, which has a token of its own: the Hub's must not arrive here."""

    def __init__(self, storage: HubStorage) -> None:
        self.storage = storage
        self._chunks: dict[str, list[bytes]] = {}

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/v1/chunks/{prefix}/{hash}", self.find_chunk),
            web.post("/v1/xorb-grants/{prefix}/{hash}", self.grant_xorb),
            web.post("/v1/xorbs/{prefix}/{hash}", self.put_xorb),
            web.post("/v2/shards", self.put_shard),
        ]

    def connection(self, origin: str) -> web.Response:
        """What the Hub answers a client that may write: where the storage is, and a token for it."""
        expiry = int(time.time()) + 3600
        headers = {"X-Xet-Cas-Url": origin, "X-Xet-Access-Token": TOKEN, "X-Xet-Token-Expiration": str(expiry)}
        return web.json_response({"casUrl": origin, "accessToken": TOKEN, "exp": expiry}, headers=headers)

    def _require_token(self, request: web.Request) -> None:
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise web.HTTPUnauthorized(text="not a token of the storage")

    async def find_chunk(self, request: web.Request) -> web.Response:
        self._require_token(request)
        return web.Response(status=404)  # no deduplication across uploads

    async def grant_xorb(self, request: web.Request) -> web.Response:
        self._require_token(request)
        return web.Response(status=404)  # the client then sends the xorb here

    async def put_xorb(self, request: web.Request) -> web.Response:
        self._require_token(request)
        name = request.match_info["hash"]
        known = name in self._chunks
        self._chunks[name] = read_chunks(await request.read())
        return web.json_response({"was_inserted": not known})

    async def put_shard(self, request: web.Request) -> web.Response:
        self._require_token(request)
        for sha256, terms in read_files(await request.read()):
            if any(xorb not in self._chunks for xorb, _, _ in terms):
                return web.Response(status=400, text="the shard names a xorb that has not arrived")
            content = b"".join(b"".join(self._chunks[xorb][start:end]) for xorb, start, end in terms)
            if hashlib.sha256(content).hexdigest() != sha256:
                return web.Response(status=400, text=f"the chunks do not make the file {sha256}")
            self.storage.write_object(content)
        return web.Response(text=json.dumps({"type": "result", "result": 1}) + "\n")
