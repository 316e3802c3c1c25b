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
    sha256_file,
    write_json,
    write_manifest,
)

__all__ = [
    "MANIFEST_NAME",
    "atomic_file",
    "atomic_folder",
    "check_manifest",
    "finite_or_none",
    "fsync_path",
    "is_complete",
    "link_or_copy",
    "read_json",
    "remove_folder",
    "remove_leftovers",
    "sha256_file",
    "write_json",
    "write_manifest",
]
