"""A text that every machine with Python has: the sources of the packages installed on it."""

import hashlib
import importlib.util
import os
import site
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

LARGEST_FILE = 400_000  # bytes: longer files are mostly tables
SMALLEST_FILE = 200
WHEREVER_THEY_ARE = ("torch", "transformers")  # packages may lie in a folder that only sys.path names
ROWS_AT_ONCE = 2000


def source_folders() -> list[Path]:
    """Return the folders of installed packages and of the standard library."""
    named = [sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib")]
    found = [Path(path).resolve() for path in [*named, *site.getsitepackages()] if path and Path(path).is_dir()]
    for name in WHEREVER_THEY_ARE:
        spec = importlib.util.find_spec(name)
        found += [Path(place).resolve().parent for place in (spec.submodule_search_locations or [])] if spec else []
    return list(dict.fromkeys(found))


def source_files(folders: list[Path]) -> Iterator[bytes]:
    """Yield the .py files below some folders, in the order of their paths, each content once."""
    seen: set[bytes] = set()
    visited: set[str] = set()
    for root in folders:
        for folder, subfolders, names in os.walk(root):
            subfolders[:] = sorted(name for name in subfolders if name != "__pycache__")
            if folder in visited:
                subfolders.clear()
                continue
            visited.add(folder)
            for name in sorted(names):
                if not name.endswith(".py"):
                    continue
                try:
                    content = Path(folder, name).read_bytes()
                except OSError:
                    continue
                digest = hashlib.blake2b(content, digest_size=16).digest()
                if SMALLEST_FILE <= len(content) <= LARGEST_FILE and digest not in seen:
                    seen.add(digest)
                    yield content


def collect(path: Path, limit_bytes: int) -> dict[str, int]:
    """Write the source text of this machine into a parquet file, unless it is there.

    Args:
        path: The file.
        limit_bytes: Bytes of text at the most.

    Returns:
        How many files and bytes it holds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            temporary = path.with_suffix(".part")
            schema = pa.schema([("text", pa.string())])
            with pq.ParquetWriter(temporary, schema) as writer:
                for texts in _batches(limit_bytes):
                    writer.write_table(pa.table({"text": texts}, schema=schema))
            os.replace(temporary, path)
    texts = pq.read_table(path)["text"]
    return {"files": len(texts), "bytes": sum(chunk.nbytes for chunk in texts.chunks)}


def _batches(limit_bytes: int) -> Iterator[list[str]]:
    texts: list[str] = []
    total = 0
    for content in source_files(source_folders()):
        try:
            texts.append(content.decode("utf-8"))
        except UnicodeDecodeError:
            continue
        total += len(content)
        if len(texts) == ROWS_AT_ONCE:
            yield texts
            texts = []
        if total >= limit_bytes:
            break
    if texts:
        yield texts
