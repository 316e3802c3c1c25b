"""Fetching from the Hub: a repository's files, or a published rung checked against its manifest."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_session, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from hf_progressive.hub.names import LICENCE_FILES, PUBLISHED, check_repo_id, is_repo_id
from hf_progressive.hub.transport import patiently, reason
from hf_progressive.storage import MANIFEST_NAME, check_manifest, require_inside_name, require_plain_name
from hf_progressive.storage.full_disk import FullDiskNamed


def fetch_rung(repo_id: str, *, revision: str | None = None) -> Path:
    """Fetch a published rung with its record, Fisher information and subspace, or find it in the cache.

    HF_HUB_OFFLINE, HF_HOME and HF_ENDPOINT apply; offline, only the cache is searched.

    Args:
        repo_id: The repository, ORG/NAME.
        revision: Branch, tag or commit; None takes the newest. A tag or a commit pins the rung.

    Returns:
        A folder of the Hub's cache that can be loaded, grown and compared like a local rung. Nothing in it may be
        changed.

    Raises:
        FileNotFoundError: There is no such repository or revision, or offline, none in the cache.
        HubError: The Hub refused or failed.
        ValueError: The repository is no published rung, or a file is damaged.
    """
    check_repo_id(repo_id)
    folder = fetch_files(repo_id, (*PUBLISHED, *LICENCE_FILES), revision=revision)
    if not (folder / MANIFEST_NAME).is_file():
        where = f"{repo_id} at {revision}" if revision else repo_id
        raise ValueError(f"{where}: has no {MANIFEST_NAME}, so it was not published as a rung; load it by its name")
    check_manifest(folder)
    return folder


def locate_files(source: str, patterns: Sequence[str], *, revision: str | None = None) -> tuple[Path, str | None]:
    """Find a folder on this machine, which goes first, or fetch the files of a repository of that name.

    HF_HUB_OFFLINE, HF_HOME and HF_ENDPOINT apply; offline, only the cache is searched.

    Returns:
        The folder, and the commit of a repository.

    Raises:
        FileNotFoundError: It is neither a folder nor a repository within reach.
        NotADirectoryError: It is a file.
        ValueError: A revision is given for a local folder.
    """
    if Path(source).is_dir():
        if revision is not None:
            raise ValueError(f"{source}: a local folder has no revision {revision!r}; leave the revision out")
        return Path(source), None
    require_place(source)
    try:
        folder = fetch_files(source, patterns, revision=revision)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; and there is no folder {source} here") from None
    return folder, folder.name


def locate_rung(source: str, *, revision: str | None = None) -> Path:
    """Find a rung's folder on this machine, which goes first, or fetch the published rung of that name.

    Raises:
        FileNotFoundError: It is neither a folder nor a repository within reach.
        NotADirectoryError: It is a file.
        HubError: The Hub refused or failed.
        ValueError: A revision is given for a local folder, or the repository is no published rung.
    """
    if Path(source).is_dir():
        return locate_files(source, (), revision=revision)[0]
    require_place(source)
    if "/" not in source:  # of one name alone are old repositories, but no rungs
        raise FileNotFoundError(f"{source}: no such folder, and no name on the Hub (ORG/NAME)")
    try:
        return fetch_rung(source, revision=revision)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; and there is no folder {source} here") from None


def require_place(source: str) -> None:
    """Refuse what is neither a folder here nor a name that a repository on the Hub can have.

    Raises:
        FileNotFoundError: It is neither.
        NotADirectoryError: It is a file.
    """
    if Path(source).is_file():
        raise NotADirectoryError(f"{source}: is a file; give the folder that holds it")
    if not Path(source).is_dir() and not is_repo_id(source):
        raise FileNotFoundError(f"{source}: no such folder, and no name on the Hub (ORG/NAME)")


_NAMES_IN_THE_CACHE = ("etag", "x-linked-etag", "x-repo-commit")
"""Headers of the Hub's answers that the client makes names of files of."""


def _hold_answers_to_the_cache() -> None:
    # huggingface_hub 2.4 writes to whatever path they make (`blob_path` in its file_download.py), outside of its
    # cache, too. This can go when it looks at them itself.
    session = get_session()
    hooks = session.event_hooks
    if _refuse_paths not in hooks["response"]:
        session.event_hooks = {**hooks, "response": [*hooks["response"], _refuse_paths]}


def _refuse_paths(response: Any) -> None:
    for header in _NAMES_IN_THE_CACHE:
        if header in response.headers:
            name = response.headers[header].removeprefix("W/").strip('"')
            require_plain_name(name, f"{response.url.path}: its header {header}")


def fetch_files(repo_id: str, patterns: Sequence[str], *, revision: str | None = None) -> Path:
    """Fetch the files of a repository whose names have one of the patterns, or find them in the cache.

    Returns:
        A folder of the Hub's cache, named after the commit. Nothing in it may be changed.

    Raises:
        FileNotFoundError: There is no such repository or revision, or offline, none in the cache.
        HubError: The Hub refused or failed.
    """
    where = f"{repo_id} at {revision}" if revision else repo_id
    if revision is not None:
        require_inside_name(revision, f"{repo_id}: its revision")  # which the cache keeps as a file of that name

    def fetch() -> str:
        _hold_answers_to_the_cache()
        try:
            return snapshot_download(repo_id, revision=revision, allow_patterns=list(patterns))
        except LocalEntryNotFoundError as error:
            cause = error.__cause__
            if isinstance(cause, HfHubHTTPError):  # the Hub has answered, and may do better
                raise cause from None
            said = "" if cause is None or isinstance(cause, OfflineModeIsEnabled) else f": {reason(cause)}"
            raise FileNotFoundError(f"{where}: not in the cache, and the Hub could not be asked{said}") from None

    with FullDiskNamed(constants.HF_HUB_CACHE):
        return Path(patiently(fetch, where))
