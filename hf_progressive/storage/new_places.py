"""Places where something is to be made: folders above it are made too, and go again where nothing came of it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def creation_told(target: Path, what: str) -> Iterator[None]:
    """Let an error tell of what is to be there, and not of a temporary name."""
    try:
        yield
    except OSError as error:
        files = [parent for parent in target.parents if parent.is_file()]
        why, remedy = (
            (f"{files[0]} is a file", f"choose another {what}")
            if files
            else (error.strerror, f"choose a {what} on a disk you may write to")
        )
        raise OSError(error.errno, f"{target}: cannot be created ({why}); {remedy}") from error


@contextlib.contextmanager
def parents_made(target: Path) -> Iterator[None]:
    """Make the folders above a path, and delete those again that are still empty after the block."""
    made = [parent for parent in target.parents if not parent.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for parent in made:
            with contextlib.suppress(OSError):  # something is in it, or it could not be made
                parent.rmdir()
