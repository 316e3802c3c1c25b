"""What the loopback Hub keeps on disk: objects under their digest, immutable commits, branches that move at once."""

import hashlib
import json
from pathlib import Path
from typing import Any

from hf_progressive.storage import read_json, write_json

FileEntry = dict[str, Any]
"""A file of a commit: `size`, `oid` (of its git blob or LFS pointer), `sha256` of its content, `lfs`."""


def git_blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def lfs_entry(sha256: str, size: int) -> FileEntry:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
    return {"size": size, "oid": git_blob_id(pointer.encode()), "sha256": sha256, "lfs": True}


class HubStorage:
    """Repositories under a folder; what is read back is what was written, whole."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("objects", "commits", "repositories", "collections"):
            (root / folder).mkdir(parents=True, exist_ok=True)

    # Objects

    def object_file(self, sha256: str) -> Path:
        return self.root / "objects" / sha256

    def has_object(self, sha256: str, size: int) -> bool:
        file = self.object_file(sha256)
        return file.exists() and file.stat().st_size == size

    def read_object(self, sha256: str) -> bytes:
        return self.object_file(sha256).read_bytes()

    def write_object(self, content: bytes) -> str:
        sha256 = hashlib.sha256(content).hexdigest()
        self.object_file(sha256).write_bytes(content)
        return sha256

    # Repositories

    def _repository_file(self, repo_id: str) -> Path:
        return self.root / "repositories" / f"{repo_id.replace('/', '--')}.json"

    def has_repository(self, repo_id: str) -> bool:
        return self._repository_file(repo_id).exists()

    def create_repository(self, repo_id: str, *, private: bool) -> None:
        self.write_repository({"id": repo_id, "private": private, "branches": {"main": ""}, "tags": {}})

    def repository(self, repo_id: str) -> dict[str, Any]:
        return read_json(self._repository_file(repo_id))

    def write_repository(self, repository: dict[str, Any]) -> None:
        write_json(self._repository_file(repository["id"]), repository)

    def head(self, repo_id: str) -> str:
        return str(self.repository(repo_id)["branches"]["main"])

    # Commits

    def _commit_file(self, oid: str) -> Path:
        return self.root / "commits" / f"{oid}.json"

    def has_commit(self, oid: str) -> bool:
        return self._commit_file(oid).exists()

    def read_commit(self, oid: str) -> dict[str, Any]:
        return read_json(self._commit_file(oid))

    def history(self, repo_id: str) -> list[dict[str, Any]]:
        """The commits of a repository's main branch, newest first."""
        commits, oid = [], self.head(repo_id)
        while oid:
            commits.append(self.read_commit(oid))
            oid = commits[-1]["parent"]
        return commits

    def files(self, repo_id: str) -> dict[str, bytes]:
        """What the head of a repository holds, by path."""
        files = self.read_commit(self.head(repo_id))["files"]
        return {path: self.read_object(entry["sha256"]) for path, entry in files.items()}

    def commit(
        self, repo_id: str, additions: dict[str, bytes | FileEntry], title: str, deletions: tuple[str, ...] = ()
    ) -> str:
        """Commit on the main branch: new files as content, or as the entry of an object that is stored already."""
        repository = self.repository(repo_id)
        parent = repository["branches"]["main"]
        files = dict(self.read_commit(parent)["files"]) if parent else {}
        for path in deletions:
            del files[path]
        for path, content in additions.items():
            if isinstance(content, bytes):
                sha256 = self.write_object(content)
                content = {"size": len(content), "oid": git_blob_id(content), "sha256": sha256, "lfs": False}
            files[path] = content
        commit = {"repository": repo_id, "parent": parent, "title": title, "files": dict(sorted(files.items()))}
        oid = hashlib.sha1(json.dumps(commit).encode()).hexdigest()
        write_json(self._commit_file(oid), commit | {"oid": oid})
        repository["branches"]["main"] = oid
        self.write_repository(repository)
        return oid

    # Collections

    def _collection_file(self, slug: str) -> Path:
        return self.root / "collections" / f"{slug.replace('/', '--')}.json"

    def collections(self) -> list[dict[str, Any]]:
        return [read_json(file) for file in sorted((self.root / "collections").glob("*.json"))]

    def write_collection(self, collection: dict[str, Any]) -> None:
        write_json(self._collection_file(collection["slug"]), collection)
