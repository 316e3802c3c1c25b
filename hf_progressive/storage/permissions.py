"""Permissions of what is written: those that the umask gives new files, whoever wrote them."""

import os
import stat
from pathlib import Path

from hf_progressive.storage.locks import file_in_use
from hf_progressive.storage.temporary_names import temporary_sibling

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def share_as_umask_says(path: Path) -> None:
    """Let a file that its writer kept to its owner be read by those whom the umask lets read a new one.

    safetensors writes files of mode 0600, which a group that trains together cannot read. A umask can be asked only by
    setting it, for all threads; a new file says the same.
    """
    mode = stat.S_IMODE(path.stat().st_mode)
    if os.name != "posix" or mode & _OTHERS:
        return
    probe = temporary_sibling(path)
    try:
        with file_in_use(probe):
            given = stat.S_IMODE(probe.stat().st_mode)
    finally:
        probe.unlink(missing_ok=True)
    if given & _OTHERS:
        path.chmod(mode | given)
