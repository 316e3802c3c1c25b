"""A rung and its family as published: their records, and the names that all of them have on the Hub."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from hf_progressive.hub.names import RECORD_NAME, check_repo_id
from hf_progressive.records.ladder import read_run
from hf_progressive.records.rung import RungRecord

NAME_FIELD = "{name}"
"""What stands for a rung's name in a pattern of repository names."""

_BUILDERS = ("stdlib", "text", "json", "parquet")
"""Sources of data that are no datasets of the Hub."""


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """One rung among the rungs of its ladder."""

    repo_id: str
    """The rung's repository, ORG/NAME."""

    rung: RungRecord
    """What its `rung.json` holds."""

    family: tuple[RungRecord, ...]
    """The finished rungs of its ladder, from the smallest; the rung alone where its run folder is not at hand."""

    child: RungRecord | None
    """The record of the rung that was grown from this one; None if there is none yet."""

    planned: int
    """Rungs of the whole ladder."""

    title: str | None
    """The ladder's name; None where the run folder is not at hand."""

    data: Mapping[str, Any]
    """The ladder's configuration of data, or the source alone."""

    repo_ids: Mapping[str, str]
    """Repositories by rung name, as far as they follow from the rung's own."""

    @classmethod
    def read(cls, rung_dir: str | os.PathLike[str], repo_id: str) -> "Lineage":
        """Read the record of a trained checkpoint, `RUN/NAME/final` or a copy, and in a run folder the other rungs'.

        Where the repository's name contains the rung's, the other rungs' are taken to be named likewise.
        """
        folder = Path(rung_dir)
        path = folder / RECORD_NAME
        if not path.is_file():
            raise FileNotFoundError(f"{folder}: holds no {RECORD_NAME}; give a finished rung's folder, RUN/NAME/final")
        check_repo_id(repo_id)
        rung = RungRecord.read(path)
        family: tuple[RungRecord, ...] = (rung,)
        data: Mapping[str, Any] = {"source": rung.data.source}
        planned, title, child = 1, None, None
        place = folder.resolve()  # `final`, or `.`, to whoever stands near by
        run_dir = place.parent.parent
        if place.name == "final" and (run_dir / "ladder.json").is_file():
            run = read_run(run_dir)
            family, planned, title = run.rungs, len(run.ladder.rungs), run.ladder.name
            data = {**data, **run.ladder.config.get("data", {})}
            child = next((other for other in run.rungs if other.parent == rung.name), None)
        pattern = name_pattern(repo_id, rung.name)
        names = [other.name for other in family] + ([rung.parent] if rung.parent else [])
        others = {} if pattern is None else {name: pattern.replace(NAME_FIELD, name) for name in names}
        others |= {other.name: other.origin.name for other in family if other.origin and other.origin.commit}
        return cls(
            repo_id=repo_id,
            rung=rung,
            family=family,
            child=child,
            planned=planned,
            title=title,
            data=data,
            repo_ids={**others, rung.name: repo_id},
        )

    @property
    def parent_repo_id(self) -> str | None:
        """The parent's repository, if there is a parent and its repository's name is known."""
        return None if self.rung.parent is None else self.repo_ids.get(self.rung.parent)

    def link(self, name: str) -> str:
        """Return a rung's name as a link to its repository in Markdown, where that is known."""
        repo_id = self.repo_ids.get(name)
        return name if repo_id is None else f"[{name}]({constants.ENDPOINT}/{repo_id})"

    @property
    def dataset_id(self) -> str | None:
        """The training data's name on the Hub; None for local files and the embedded corpus."""
        source = str(self.data["source"])
        return None if source in _BUILDERS else source


def name_pattern(repo_id: str, name: str) -> str | None:
    """Return how the repositories of a family are named, judging by one of them.

    >>> name_pattern("org/tiny-d11-v2", "d11"), name_pattern("org/d11", "d1")
    ('org/tiny-{name}-v2', None)
    """
    namespace, _, repository = repo_id.partition("/")
    word = re.compile(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])")
    replaced, count = word.subn(NAME_FIELD, repository, count=1)
    return f"{namespace}/{replaced}" if count else None
