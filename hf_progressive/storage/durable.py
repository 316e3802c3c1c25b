"""Durable files and folders: whole or absent, never half-written.

Everything the package writes goes through one of two moves. A file is written to a temporary sibling, flushed to
the disk and renamed. A folder is filled under a temporary name, a manifest with the size and SHA-256 of each of its
files is added last, and the whole is renamed. A reader that finds the name therefore finds complete content, and
`check_manifest` tells a bit flip, which the safetensors format itself does not notice, from sound data.

A killed process leaves its temporary names behind. A file that is being written is locked; while a folder is being
filled or deleted, a lock file beside it is held. So `remove_leftovers` tells what the dead left from what the living
are at.

This module imports neither torch nor transformers.
"""

import contextlib
import ctypes
import glob
import hashlib
import json
import math
import os
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from hf_progressive.storage.full_disk import FullDiskNamed
from hf_progressive.storage.inside import require_inside_name, require_own_file
from hf_progressive.storage.locks import file_in_use, remove_unless_in_use, try_lock
from hf_progressive.storage.new_places import creation_told, parents_made
from hf_progressive.storage.outside import parse_json
from hf_progressive.storage.permissions import share_as_umask_says
from hf_progressive.storage.temporary_names import ASIDE, is_temporary, stood_for, temporary_sibling

MANIFEST_NAME = "manifest.json"
"""Name of the manifest inside a folder written by `atomic_folder`."""

_HASH_CHUNK_BYTES = 1 << 22
_AT_FDCWD = -100  # linux/fcntl.h: a path is relative to the working directory
_RENAME_EXCHANGE = 2  # linux/fs.h


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Return the hexadecimal SHA-256 of a file's content.

    >>> import tempfile, pathlib
    >>> file = pathlib.Path(tempfile.mkdtemp(), "x"); _ = file.write_bytes(b"abc")
    >>> sha256_file(file)[:12]
    'ba7816bf8f01'
    """
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while chunk := handle.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def fsync_path(path: str | os.PathLike[str]) -> None:
    """Flush a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def link_or_copy(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Make a file a hard link to another one, or a copy where the file system cannot or the disk is another."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path that becomes `path`, flushed to the disk, when the block ends without an error.

    Raises:
        FileExistsError: `path` is a folder, or a device.
        OSError: The disk is full or not writable; what was at `path` is there still.
    """
    target = Path(path)
    if target.exists() and not target.is_file():  # a device, too, would be replaced by the rename
        raise FileExistsError(f"{target}: is {'a folder' if target.is_dir() else 'no file'}; give the name of a file")
    temporary = temporary_sibling(target)
    with contextlib.ExitStack() as stack:
        stack.enter_context(FullDiskNamed(target))
        with creation_told(target, "place"):
            stack.enter_context(parents_made(target))
            stack.enter_context(file_in_use(temporary))
        stack.callback(temporary.unlink, missing_ok=True)
        yield temporary
        share_as_umask_says(temporary)
        fsync_path(temporary)
        os.replace(temporary, target)
        fsync_path(target.parent)


@contextlib.contextmanager
def atomic_folder(
    path: str | os.PathLike[str], *, overwrite: bool = False, sha256: Mapping[str, str | None] | None = None
) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path`, with a manifest, when the block ends without an error.

    Args:
        path: The folder to create; of a symbolic link, the folder that it leads to.
        overwrite: Replace an existing folder, once the new one is complete. Otherwise an existing one is an error.
        sha256: Digests already known, by name relative to the folder, so that large files are not read twice; None for
            a file whose size alone is to be recorded. It is read when the block ends, so it may be filled meanwhile.

    Raises:
        FileExistsError: `path` exists and `overwrite` is not set, or it is not a folder.
        OSError: The disk is full or not writable; what was at `path` is there still.
    """
    target = Path(os.path.realpath(path) if Path(path).is_symlink() else path)
    if target.is_symlink():
        raise FileExistsError(f"{target}: is a link that leads back to itself; choose another folder")
    if target.name in ("", ".."):  # a folder that is stood in, or below, is not replaced under whoever stands there
        raise FileExistsError(f"{target}: is no name of a new folder; give one, such as {target / 'grown'}")
    remove_unfinished(target)
    if target.exists() and not (overwrite and target.is_dir()):
        raise _exists_already(target)
    temporary = temporary_sibling(target)
    with contextlib.ExitStack() as stack:
        stack.enter_context(FullDiskNamed(target))
        with creation_told(target, "folder"):
            stack.enter_context(parents_made(target))
            # The lock is taken before there is a folder, and let go when there is none: a folder without one is dead.
            stack.enter_context(_held(_lock_file(temporary)))
            temporary.mkdir()
        # Holds the unfinished folder after an error, the replaced one after an exchange.
        stack.callback(shutil.rmtree, temporary, ignore_errors=True)
        yield temporary
        write_manifest(temporary, sha256=sha256)
        _move_into_place(temporary, target, overwrite=overwrite)
        fsync_path(target.parent)


def _exists_already(target: Path) -> FileExistsError:
    remedy = "choose another folder, or allow it to be overwritten (overwrite=True, --overwrite)"
    return FileExistsError(f"{target} exists already; {remedy if target.is_dir() else 'it is not a folder'}")


def _move_into_place(new: Path, target: Path, *, overwrite: bool) -> None:
    if not target.exists():
        try:
            os.rename(new, target)
        except OSError:
            if not target.exists():
                raise
        else:
            return
    if not (overwrite and target.is_dir()):  # another process made it since this one began
        raise _exists_already(target)
    if not _exchange(new, target):
        _replace_in_two_steps(new, target)


def _lock_file(temporary: Path) -> Path:
    return temporary.with_name(f"{temporary.name}.lock")


@contextlib.contextmanager
def _held(lock: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        while True:
            lock.touch()  # try_lock would try for ever where no file can be made
            # Between its making and its locking, another process may remove it as one that was left behind.
            if stack.enter_context(try_lock(lock)) and lock.exists():
                break
        stack.callback(_remove_lock, lock)
        yield


def _remove_lock(lock: Path) -> None:
    with contextlib.suppress(OSError):  # Windows removes it on release, and not before
        lock.unlink()


def remove_unfinished(target: Path) -> None:
    """Delete what killed processes had begun to make of a folder, and left beside it."""
    for leftover in target.parent.glob(f".{glob.escape(target.name)}.*"):
        temporary = leftover.with_name(leftover.name.removesuffix(".lock"))
        if stood_for(temporary.name) == target.name:
            _remove_unless_held(temporary)


def remove_unfinished_files(target: Path) -> None:
    """Delete what killed processes had begun to write of a single file, and left beside it."""
    for leftover in target.parent.glob(f".{glob.escape(target.name)}.*"):
        if stood_for(leftover.name) == target.name:
            remove_unless_in_use(leftover)


def _remove_unless_held(temporary: Path) -> None:
    with try_lock(_lock_file(temporary)) as free:
        if not free:
            return
        target = temporary.with_name(str(stood_for(temporary.name)))
        if temporary.name.endswith(ASIDE) and temporary.is_dir() and not target.exists():
            os.rename(temporary, target)  # it had stepped aside for a new one, and the kill came before that one
        shutil.rmtree(temporary, ignore_errors=True)
        _remove_lock(_lock_file(temporary))


def remove_folder(folder: str | os.PathLike[str]) -> None:
    """Delete a folder such that a kill meanwhile leaves it whole, or what `remove_leftovers` removes."""
    aside = temporary_sibling(Path(folder))
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # on a full disk, where no lock can be made, deleting is what helps
            stack.enter_context(_held(_lock_file(aside)))
        os.rename(folder, aside)
        shutil.rmtree(aside)


def remove_leftovers(folder: str | os.PathLike[str], *, within: Collection[str] | None = None) -> None:
    """Delete what processes that were killed had begun to write in a folder, and not what a living one writes.

    Args:
        folder: A folder. What `atomic_file` is writing in it, `atomic_folder` filling or `remove_folder` deleting
            stays.
        within: Names of folders directly below it that are looked into; None looks into all.
    """
    root = Path(folder)
    for place, folders, files in os.walk(root):
        for name in files:
            if is_temporary(name):
                remove_unless_in_use(Path(place, name))
            elif is_temporary(name.removesuffix(".lock")):  # perhaps a living process's, whose folder is yet to come
                _remove_unless_held(Path(place, name.removesuffix(".lock")))
        for name in [name for name in folders if is_temporary(name)]:
            _remove_unless_held(Path(place, name))
            folders.remove(name)
        if within is not None and place == os.fspath(root):
            folders[:] = [name for name in folders if name in within]


def _exchange(first: Path, second: Path) -> bool:
    # A folder cannot be renamed over a full one, but Linux can swap two names at once, so that neither is ever absent.
    if sys.platform != "linux":
        return False
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):  # a C library older than the call
        return False
    names = os.fsencode(first), os.fsencode(second)
    return bool(renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)


def _replace_in_two_steps(new: Path, target: Path) -> None:
    # Elsewhere, as on NFS, the old folder steps aside for an instant, and is back if the move fails, or is killed.
    aside = temporary_sibling(target, suffix=ASIDE)
    with _held(_lock_file(aside)):
        os.rename(target, aside)
        try:
            os.rename(new, target)
        except BaseException:
            os.rename(aside, target)
            raise
        shutil.rmtree(aside)


def write_manifest(folder: str | os.PathLike[str], *, sha256: Mapping[str, str | None] | None = None) -> None:
    """Flush every file of a folder to the disk and write its manifest last; `sha256` is as for `atomic_folder`."""
    root, known = Path(folder), sha256 or {}
    files: dict[str, dict[str, int | str]] = {}
    for path in sorted(p for p in root.rglob("*") if p.is_file() and p.name != MANIFEST_NAME):
        name = path.relative_to(root).as_posix()
        share_as_umask_says(path)
        fsync_path(path)
        digest = known[name] if name in known else sha256_file(path)
        files[name] = {"size": path.stat().st_size} | ({} if digest is None else {"sha256": digest})
    for path in sorted(p for p in root.rglob("*") if p.is_dir()):
        fsync_path(path)
    write_json(root / MANIFEST_NAME, {"format": 1, "files": files})


def is_complete(folder: str | os.PathLike[str], *, contents: bool = False) -> bool:
    """Tell whether there is such a folder with a manifest and its files have the sizes stated there.

    Contents are read only if that is asked for: see `check_manifest`.
    """
    try:
        check_manifest(folder, contents=contents)
    except (ValueError, OSError):
        return False
    return True


def check_manifest(folder: str | os.PathLike[str], *, contents: bool = True) -> None:
    """Raise if a folder is not what its manifest says.

    Args:
        folder: A folder with a manifest.
        contents: Compare SHA-256, where it was recorded, as well as sizes.

    Raises:
        FileNotFoundError: There is no manifest.
        ValueError: A file is missing, truncated or altered.
    """
    root = Path(folder)
    manifest = read_json(root / MANIFEST_NAME)
    while True:
        try:
            _check_files(root, manifest, contents=contents)
            return
        except (ValueError, OSError):
            before, manifest = manifest, read_json(root / MANIFEST_NAME)
            if manifest == before:
                raise  # otherwise a new folder was put in its place meanwhile


def _check_files(root: Path, manifest: Mapping[str, Any], *, contents: bool) -> None:
    if not isinstance(manifest.get("files"), dict):
        raise ValueError(f'{root / MANIFEST_NAME}: has no "files" table; write the folder again')
    for name, entry in manifest["files"].items():
        path = root / require_inside_name(name, str(root / MANIFEST_NAME))
        if not isinstance(entry, dict) or type(entry.get("size")) is not int:
            raise ValueError(f"{root / MANIFEST_NAME}: has no size of {name}; fetch or write it again")
        if not path.is_file():
            raise ValueError(f"{root}: {name} is missing, though the manifest lists it; fetch or write it again")
        require_own_file(path, root)
        size = path.stat().st_size
        if size != entry["size"]:
            raise ValueError(f"{path}: {size} bytes, the manifest says {entry['size']}; it is truncated or altered")
        if contents and "sha256" in entry and sha256_file(path) != entry["sha256"]:
            raise ValueError(f"{path}: its SHA-256 differs from the manifest's; the file is damaged")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a JSON file atomically, indented.

    Raises:
        ValueError: The value holds NaN or an infinity, which JSON does not have.
    """
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; the numbers to be written are not all finite") from error
    with atomic_file(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


class _KeyTwice(Exception):  # no ValueError: that would be taken for text that is no JSON
    """An object of a JSON file has a key twice."""


def _with_each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _KeyTwice(repr(next(key for key in keys if keys.count(key) > 1)))
    return found


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not JSON, not an object, or an object in it has a key twice.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    try:
        value = parse_json(content, str(path), object_pairs_hook=_with_each_key_once)
    except _KeyTwice as error:
        raise ValueError(f"{path}: an object has the key {error} twice; which of them holds?") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: holds a JSON {type(value).__name__}, expected an object")
    return value


def finite_or_none(value: float | None) -> float | None:
    """Return a number for JSON: None where it is not finite.

    >>> finite_or_none(float("nan")) is None, finite_or_none(1.5)
    (True, 1.5)
    """
    return value if value is not None and math.isfinite(value) else None
