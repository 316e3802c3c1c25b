"""Durable files and folders, locks between processes, and a full disk named as such."""

from hf_progressive.storage.durable import (
    MANIFEST_NAME,
    atomic_file,
    atomic_folder,
    check_manifest,
    finite_or_none,
    fsync_path,
    is_complete,
    link_or_copy,
    read_json,
    remove_folder,
    remove_leftovers,
    remove_unfinished,
    remove_unfinished_files,
    sha256_file,
    write_json,
    write_manifest,
)
from hf_progressive.storage.inside import require_inside_name, require_own_file, require_plain_name
from hf_progressive.storage.outside import ReadingFromOutside, parse_json
from hf_progressive.storage.visible_text import visible

__all__ = [
    "MANIFEST_NAME",
    "ReadingFromOutside",
    "atomic_file",
    "atomic_folder",
    "check_manifest",
    "finite_or_none",
    "fsync_path",
    "is_complete",
    "link_or_copy",
    "parse_json",
    "read_json",
    "remove_folder",
    "remove_leftovers",
    "remove_unfinished",
    "remove_unfinished_files",
    "require_inside_name",
    "require_own_file",
    "require_plain_name",
    "sha256_file",
    "visible",
    "write_json",
    "write_manifest",
]
