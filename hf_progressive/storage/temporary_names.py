"""Names beside a file or folder, under which it is written before it has its own, or steps aside for a new one."""

import re
import uuid
from pathlib import Path

ASIDE = ".old.tmp"
"""End of the name of a folder that steps aside for a new one: it is whole, and returns if that does not come."""

_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}(\.old)?\.tmp")


def temporary_sibling(path: Path, *, suffix: str = ".tmp") -> Path:
    """Return a new name beside a path, for what is to become the path or steps aside for it.

    Beside a temporary path it is one of what that stands for.
    """
    return path.with_name(f".{stood_for(path.name) or path.name}.{uuid.uuid4().hex[:8]}{suffix}")


def stood_for(name: str) -> str | None:
    """Return the name of what `temporary_sibling` named a file or folder for; None of another name.

    >>> stood_for(temporary_sibling(Path("runs/final")).name), stood_for("notes.tmp")
    ('final', None)
    """
    found = _TEMPORARY.fullmatch(name)
    return found["name"] if found else None


def is_temporary(name: str) -> bool:
    """Tell whether a file or folder was named by `temporary_sibling`."""
    return stood_for(name) is not None
