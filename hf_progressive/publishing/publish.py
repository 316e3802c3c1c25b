"""Publishing: one atomic commit per rung, checked back against the manifest, and repeated safely."""

import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.hf_api import RepoFile

from hf_progressive import __version__
from hf_progressive.hub.names import check_repo_id, is_published
from hf_progressive.hub.transport import HubError, patiently
from hf_progressive.publishing.lineage import NAME_FIELD
from hf_progressive.publishing.package import Publication, PublishedFile, prepare_publication
from hf_progressive.records.ladder import Run, read_run
from hf_progressive.storage.full_disk import FullDiskNamed

logger = logging.getLogger(__name__)


def publish_rung(
    rung_dir: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool = False,
    license: str | None = None,
    language: Sequence[str] = (),
    dry_run: bool = False,
) -> str:
    """Publish a finished rung: weights, tokenizer, records, Fisher information and subspace, and a model card.

    Everything goes up in one commit, which is tagged. What the Hub holds already is not sent again: publishing the
    same rung twice makes one commit, and after an interruption the rest is done. The token comes from HF_TOKEN or from
    `hf auth login`. HF_ENDPOINT and the other variables of huggingface_hub apply.

    Args:
        rung_dir: The rung's trained checkpoint, `RUN/NAME/final`.
        repo_id: The repository, ORG/NAME; it is created if need be.
        private: Keep the repository from the public. One that is public already is then refused.
        license: Identifier of the weights' licence on the Hub, such as `apache-2.0`; None says nothing about it.
        language: ISO 639 codes of the languages in the data, or `code`; empty says nothing about it.
        dry_run: Send nothing; log the list of files and the card instead, to stderr where messages are not shown.

    Returns:
        The repository's address.

    Raises:
        FileNotFoundError: The folder is no finished rung.
        ValueError: A file is damaged or holds a token, the name is not ORG/NAME, or the Hub rejects the card.
        PermissionError: There is no token.
        HubError: The Hub refused, could not be reached, or holds something else in the end.

    >>> publish_rung("runs/trunk_small/l5w72/final", "ORG/l5w72", license="apache-2.0")  # doctest: +SKIP
    'https://huggingface.co/ORG/l5w72'
    """
    publication = prepare_publication(rung_dir, repo_id, license=license, language=language)
    if dry_run and logger.isEnabledFor(logging.INFO):
        logger.info("%s", publication.describe())
    elif dry_run:  # in a script that shows no messages
        sys.stderr.write(publication.describe() + "\n")
    else:
        _publish(publication, private=private)
    return publication.address


def publish_family(
    run_dir: str | os.PathLike[str],
    pattern: str,
    *,
    private: bool = False,
    license: str | None = None,
    language: Sequence[str] = (),
    collection: str | None = None,
    dry_run: bool = False,
) -> list[str]:
    """Publish every finished rung of a run, from the smallest, and gather them in a collection.

    A first rung that was taken from the Hub stays in its own repository; the collection names that. The pattern holds
    `{name}` for a rung's name: `ORG/{name}`. Options and errors are those of `publish_rung`; what was published before
    an error stays. Without a title, no collection is made.

    Returns:
        The repositories' addresses, and the collection's.
    """
    run, repo_ids, elsewhere = _repositories(run_dir, pattern)
    addresses = []
    for name, repo_id in repo_ids.items():
        if name in elsewhere:
            logger.info("%s is %s already; it is not published again", name, repo_id)
            continue
        final = Path(run_dir) / name / "final"
        addresses.append(
            publish_rung(final, repo_id, private=private, license=license, language=language, dry_run=dry_run)
        )
    if collection is not None and not dry_run:
        items = {repo_ids[rung.name]: f"Rung {rung.index + 1} of {len(run.ladder.rungs)}" for rung in run.rungs}
        namespace = pattern.partition("/")[0]  # a rung taken from the Hub may be in another
        gather = partial(_gather, _api(), items, title=collection, namespace=namespace, private=private)
        addresses.append(f"{constants.ENDPOINT}/collections/{patiently(gather, f'the collection {collection!r}')}")
    return addresses


def preview_family(
    run_dir: str | os.PathLike[str], pattern: str, *, license: str | None = None, language: Sequence[str] = ()
) -> Iterator[Publication]:
    """Prepare what `publish_family` would send, rung by rung, and send nothing."""
    _, repo_ids, elsewhere = _repositories(run_dir, pattern)
    for name in (name for name in repo_ids if name not in elsewhere):
        yield prepare_publication(Path(run_dir) / name / "final", repo_ids[name], license=license, language=language)


# The run, each rung's repository by its name, and those of rungs that were taken from the Hub.
def _repositories(run_dir: str | os.PathLike[str], pattern: str) -> tuple[Run, dict[str, str], dict[str, str]]:
    if NAME_FIELD not in pattern.partition("/")[2]:
        raise ValueError(f"{pattern!r} would give every rung the same repository; write ORG/{NAME_FIELD}")
    run = read_run(run_dir)
    if not run.rungs:
        raise FileNotFoundError(f"{run_dir}: no rung is finished, so there is nothing to publish yet")
    elsewhere = {rung.name: rung.origin.name for rung in run.rungs if rung.origin and rung.origin.commit}
    repo_ids = {rung.name: pattern.replace(NAME_FIELD, rung.name) for rung in run.rungs} | elsewhere
    for repo_id in repo_ids.values():
        check_repo_id(repo_id)
    return run, repo_ids, elsewhere


def _api() -> HfApi:
    return HfApi(token=True, library_name="hf_progressive", library_version=__version__)


def _publish(publication: Publication, *, private: bool) -> None:
    repo_id = publication.repo_id
    if get_token() is None:
        raise PermissionError(f"{repo_id}: there is no token for the Hub; set HF_TOKEN or run `hf auth login`")
    api = _api()
    patiently(partial(_make_repository, api, repo_id, private=private), repo_id)
    with FullDiskNamed(constants.HF_XET_CACHE):  # the client keeps there what it is about to send
        commit = patiently(partial(_bring_up_to_date, api, publication), repo_id)
    patiently(partial(api.create_tag, repo_id, tag=publication.tag, revision=commit, exist_ok=True), repo_id)
    logger.info("%s holds %s at %s, tag %s", repo_id, publication.lineage.rung.name, commit[:12], publication.tag)


def _make_repository(api: HfApi, repo_id: str, *, private: bool) -> None:
    api.create_repo(repo_id, private=private, exist_ok=True)
    if private and not api.model_info(repo_id).private:
        raise ValueError("the repository is public already; make it private on the Hub, or publish openly")


def _bring_up_to_date(api: HfApi, publication: Publication) -> str:
    # Commits what differs, if anything, and returns the commit that holds exactly the publication.
    repo_id, rung = publication.repo_id, publication.lineage.rung
    head = api.model_info(repo_id, revision=constants.DEFAULT_REVISION).sha
    assert head is not None
    stored = _stored(api, repo_id, head)
    additions = [CommitOperationAdd(name, publication.files[name].content) for name in _differing(publication, stored)]
    leftovers = [name for name in stored if is_published(name) and name not in publication.files]
    if not additions and not leftovers:
        return head
    commit = api.create_commit(
        repo_id,
        [*additions, *(CommitOperationDelete(name, is_folder=False) for name in leftovers)],
        commit_message=f"Publish {rung.name}",
        commit_description=f"Rung {rung.index + 1}, tag {publication.tag}",
        parent_commit=head,  # whoever commits meanwhile makes this one fail, and the next attempt looks again
    ).oid
    wrong = list(_differing(publication, _stored(api, repo_id, commit)))
    if wrong:
        raise HubError(f"{repo_id}: at {commit[:12]} the Hub holds other content than was sent for {', '.join(wrong)}")
    return commit


def _stored(api: HfApi, repo_id: str, commit: str) -> dict[str, RepoFile]:
    tree = api.list_repo_tree(repo_id, recursive=True, revision=commit)
    return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}


def _differing(publication: Publication, stored: Mapping[str, RepoFile]) -> Iterator[str]:
    for name, file in publication.files.items():
        if name not in stored or not _same(file, stored[name]):
            yield name


def _same(file: PublishedFile, stored: RepoFile) -> bool:
    if stored.lfs is not None:
        return bool(stored.lfs.sha256 == file.sha256)
    return stored.size == file.size and stored.blob_id == file.git_blob_id()


def _gather(api: HfApi, items: Mapping[str, str], *, title: str, namespace: str, private: bool) -> str:
    collection = api.create_collection(title, namespace=namespace, private=private, exists_ok=True)
    for repo_id, note in items.items():
        api.add_collection_item(collection.slug, repo_id, "model", note=note, exists_ok=True)
    return str(collection.slug)
