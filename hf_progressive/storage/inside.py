"""What a folder that comes from outside may name: its own files, and nothing beyond it."""

import re
from pathlib import Path, PurePosixPath, PureWindowsPath

_BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def require_inside_name(name: object, where: str) -> str:
    """Return a file's name relative to a folder if it is one that stays within; `where` says who gives it.

    >>> require_inside_name("phi/fisher.safetensors", "manifest.json")
    'phi/fisher.safetensors'
    >>> require_inside_name("../rung.json", "manifest.json")
    Traceback (most recent call last):
        ...
    ValueError: manifest.json: names '../rung.json', which is no file inside the folder; fetch or write it again
    """
    text = name if isinstance(name, str) else ""
    # A name that one system takes for a path is none on any: folders travel.
    parts = {*PurePosixPath(text).parts, *PureWindowsPath(text).parts}
    outside = PurePosixPath(text).is_absolute() or PureWindowsPath(text).anchor or ".." in parts
    if not parts or outside or not text.isprintable():
        raise ValueError(f"{where}: names {name!r}, which is no file inside the folder; fetch or write it again")
    return text


def require_plain_name(name: object, where: str) -> str:
    """Return a name that is to be a file's or a folder's, if it is one without folders in it."""
    text = require_inside_name(name, where)
    if "/" in text or "\\" in text or text.startswith("."):
        raise ValueError(f"{where}: {name!r} cannot name a file or a folder; leave out '/', '\\' and a '.' in front")
    return text


def require_own_file(path: Path, folder: Path) -> None:
    """Raise a ValueError if a file of a folder is a symbolic link that leads out of it.

    In the Hub's cache, and in folders that its client has filled from there, files are links to blobs; these pass.
    """
    real, root = path.resolve(), folder.resolve()
    is_blob = real.parent.name == "blobs" and real.parent.parent.name.startswith("models--")
    if not real.is_relative_to(root) and not (is_blob and _BLOB.fullmatch(real.name)):
        raise ValueError(f"{path}: is a link to {real}, outside its checkpoint; put a copy of the file there")
