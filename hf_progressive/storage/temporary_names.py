"""Names beside a file or folder, under which it is written before it has its own."""

import re
import uuid
from pathlib import Path

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")


def temporary_sibling(path: Path) -> Path:
    """Return a new name beside a path, for what is to become the path or steps aside for it."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


def is_temporary(name: str) -> bool:
    """Tell whether a file or folder was named by `temporary_sibling`.

    >>> is_temporary(temporary_sibling(Path("runs/final")).name), is_temporary("notes.tmp")
    (True, False)
    """
    return _TEMPORARY.fullmatch(name) is not None
