"""Permissions of what is written: those that the umask gives new files, whoever wrote them."""

import os
import stat
import uuid
from pathlib import Path

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def share_as_umask_says(path: Path) -> None:
    """Let a file that its writer kept to its owner be read by those whom the umask lets read a new one.

    safetensors writes files of mode 0600, which a group that trains together cannot read. A umask can be asked only by
    setting it, for all threads; a new file says the same.
    """
    mode = stat.S_IMODE(path.stat().st_mode)
    if os.name != "posix" or mode & _OTHERS:
        return
    probe = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        probe.touch(exist_ok=False)
        given = stat.S_IMODE(probe.stat().st_mode)
    finally:
        probe.unlink(missing_ok=True)
    if given & _OTHERS:
        path.chmod(mode | given)
