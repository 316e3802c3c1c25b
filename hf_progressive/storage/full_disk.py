"""A full disk, told from what libraries make of it, in one line that names the place.

Each library has its own exception for it: safetensors and tokenizers state the system's error number in the text,
torch says that a "file write failed" or speaks of an "iostream error", numpy that fewer items were written than
requested. Files in shared memory, through which data loaders' workers and NCCL hand tensors over, are not on the disk:
there the same words mean that /dev/shm is full.
"""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

_NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_IN_WORDS = re.compile(
    "|".join(
        [
            *(rf"os error {number}\b|\berrno {number}\b" for number in _NUMBERS),
            *(re.escape(os.strerror(number)) for number in _NUMBERS),
            r"PytorchStreamWriter failed|iostream error|unexpected pos \d+ vs|file write failed",
            r"\d+ requested and \d+ written",
        ]
    ),
    re.IGNORECASE,
)

_SHARED_MEMORY = Path("/dev/shm")
_IN_SHARED_MEMORY = re.compile(r"/dev/shm\b|</torch_\d")


class FullDiskError(OSError):
    """The disk is full; the message names the path, the disk and what is free on it."""


class FullDiskNamed:
    """A block that writes a path; an error that means a full disk leaves it as a `FullDiskError`, others as they are.

    >>> with FullDiskNamed("/tmp/x"):
    ...     raise RuntimeError("unexpected pos 64 vs 0")
    Traceback (most recent call last):
    ...
    hf_progressive.storage.full_disk.FullDiskError: [Errno 28] /tmp/x: No space left on device ...
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not isinstance(error, Exception) or isinstance(error, FullDiskError):
            return
        found = next(filter(None, map(_number_and_words, _chain(error))), None)
        if found is None:
            return
        number, words, file = found
        words = words.removeprefix(f"{self._path}: ")
        # What is written elsewhere, such as a library's cache, is full elsewhere.
        elsewhere = file is not None and (file == _SHARED_MEMORY or _disk(file) != _disk(self._path))
        path = file if file is not None and elsewhere else self._path
        disk = _disk(path)
        remedy = "free some space and start again, or choose another disk"
        if path == _SHARED_MEMORY:
            remedy = "give the machine or container more shared memory (docker run --shm-size) and start again"
        raise FullDiskError(
            number,
            f"{path}: {words} (disk at {disk}, {shutil.disk_usage(disk).free:,} bytes free); {remedy}; nothing that"
            " was finished is lost",
        ) from error


def _chain(error: BaseException) -> Iterator[BaseException]:
    met: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        current = waiting.pop(0)
        if current is not None and current not in met:
            met.append(current)
            yield current
            waiting += [current.__cause__, current.__context__]


def _number_and_words(error: BaseException) -> tuple[int, str, Path | None] | None:
    if isinstance(error, OSError) and error.errno in _NUMBERS:
        file = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else None
        return error.errno, error.strerror or os.strerror(error.errno), file
    if not _IN_WORDS.search(str(error)):
        return None
    return errno.ENOSPC, os.strerror(errno.ENOSPC), _SHARED_MEMORY if _IN_SHARED_MEMORY.search(str(error)) else None


def _disk(path: Path) -> Path:
    # Where the file system that holds a path, or is to hold it, is mounted.
    place = path.absolute()
    while not os.path.ismount(place) and place != place.parent:
        place = place.parent
    return place
