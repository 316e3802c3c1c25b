"""Processes that work with one file's content, as long as none of them works with another."""

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path

from hf_progressive.storage.durable import atomic_file, remove_unfinished_files
from hf_progressive.storage.locks import try_lock, wait_lock


@contextlib.contextmanager
def agreed(path: Path, text: str) -> Iterator[bool]:
    """Work with a file's content as long as nobody works with another.

    Any number of processes hold the same content at once, each by a lock of its own in a folder beside the file. Where
    there are none, the file is written anew.

    Yields:
        Whether the file holds `text`: False where other processes hold another content.
    """
    members = path.with_name(f".{path.name}.users")
    members.mkdir(parents=True, exist_ok=True)
    own = members / f"{uuid.uuid4().hex}.lock"
    with contextlib.ExitStack() as stack:
        with wait_lock(path.with_name(f".{path.name}.lock")):
            if any([_is_held(member) for member in members.glob("*.lock")]):  # a list: the left ones go, every one
                agree = path.read_text(encoding="utf-8") == text
            else:
                remove_unfinished_files(path)
                with atomic_file(path) as temporary:
                    temporary.write_text(text, encoding="utf-8")
                agree = True
            if agree:
                stack.callback(own.unlink, missing_ok=True)
                stack.enter_context(try_lock(own))
        yield agree


def _is_held(member: Path) -> bool:
    # What a process that was killed left behind is removed.
    with try_lock(member) as free:
        if free:
            member.unlink(missing_ok=True)
        return not free
