"""What goes into a rung's repository: the files on the list, and those made for it. Nothing here talks to the Hub."""

import hashlib
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import yaml
from huggingface_hub import constants, get_token

from hf_progressive.config.credentials import TOKEN
from hf_progressive.config.language import require_languages
from hf_progressive.config.licence import require_licence
from hf_progressive.hub.names import CARD, GROWTH, LICENCE_FILES, PLOT, RECORD_NAME, RESULTS, RUNG_FILES
from hf_progressive.publishing.card import evaluation_results, model_card
from hf_progressive.publishing.lineage import Lineage
from hf_progressive.records.rung import RungRecord
from hf_progressive.report.figures.curves import draw_curves
from hf_progressive.report.figures.style import figure_style
from hf_progressive.storage import MANIFEST_NAME, check_manifest, read_json, visible

WEIGHTS_SUFFIX = ".safetensors"

_DPI = 200

_TOKEN = re.compile(TOKEN.pattern.encode())


@dataclass(frozen=True, kw_only=True)
class PublishedFile:
    """One file of a repository."""

    content: Path | bytes
    """Where it is, or what it holds."""

    size: int
    """Bytes."""

    sha256: str
    """Digest of its content."""

    @classmethod
    def from_bytes(cls, content: bytes) -> "PublishedFile":
        """Return a file that holds some bytes."""
        return cls(content=content, size=len(content), sha256=hashlib.sha256(content).hexdigest())

    def git_blob_id(self) -> str:
        """Return the name git gives this content, which is what the Hub says of a small file."""
        content = self.content if isinstance(self.content, bytes) else self.content.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Publication:
    """A rung, ready to be published."""

    lineage: Lineage
    """The rung and its family."""

    tag: str
    """Names this revision of the rung: it changes with what training made, and not with the card."""

    files: Mapping[str, PublishedFile]
    """Everything the repository gets, by name."""

    @property
    def repo_id(self) -> str:
        """The repository."""
        return self.lineage.repo_id

    @property
    def card(self) -> str:
        """The model card's text."""
        content = self.files[CARD].content
        assert isinstance(content, bytes)
        return content.decode()

    @property
    def address(self) -> str:
        """The repository's address."""
        return f"{constants.ENDPOINT}/{self.repo_id}"

    def describe(self) -> str:
        """Return the list of files and the card, for a reader."""
        return f"{self.listing()}\n\n{self.card}"

    def listing(self) -> str:
        """Return the list of files with their sizes."""
        width = max(len(f"{file.size:,}") for file in self.files.values())
        listing = [f"{file.size:>{width},}  {name}" for name, file in self.files.items()]
        total = f"{sum(file.size for file in self.files.values()):,} bytes in {len(self.files)} files"
        return "\n".join([f"{self.repo_id}, tag {self.tag}: {total}", *listing])


def prepare_publication(
    rung_dir: str | os.PathLike[str], repo_id: str, *, license: str | None = None, language: Sequence[str] = ()
) -> Publication:
    """Collect what a rung's repository is to hold: of equal runs the same, byte for byte.

    How long something took stays in the run folder's record; the published one has no times.

    Raises:
        FileNotFoundError: The folder is no finished rung.
        ValueError: A file is damaged or missing, holds an access token, the repository's name is not ORG/NAME, or the
            licence or a language no identifier of the Hub's.
    """
    require_licence(license)
    require_languages(language)
    folder = Path(rung_dir)
    lineage = Lineage.read(folder, repo_id)
    check_manifest(folder)
    files = _rung_files(folder)
    files[RECORD_NAME] = PublishedFile.from_bytes(_json(lineage.rung.without_times()))
    if (growth := lineage.rung.growth) is not None and GROWTH not in files:
        files[GROWTH] = PublishedFile.from_bytes(_json(growth.to_dict()))
    _require_weights(folder, files)
    tag = _tag(files)
    if results := evaluation_results(lineage):
        files[RESULTS] = PublishedFile.from_bytes(yaml.safe_dump(results, sort_keys=False).encode())
    files[PLOT] = PublishedFile.from_bytes(_curve_plot(lineage.rung))
    card = model_card(lineage, tag=tag, files=[*files, MANIFEST_NAME], license=license, language=language)
    files[CARD] = PublishedFile.from_bytes(visible(str(card)).encode())
    manifest = {name: {"size": file.size, "sha256": file.sha256} for name, file in sorted(files.items())}
    files[MANIFEST_NAME] = PublishedFile.from_bytes(_json({"format": 1, "files": manifest}))
    _refuse_tokens(folder, files)
    return Publication(lineage=lineage, tag=tag, files=dict(sorted(files.items())))


def _tag(files: Mapping[str, PublishedFile]) -> str:
    made = {name: file.sha256 for name, file in sorted(files.items())}
    return "rung-" + hashlib.sha256(_json(made)).hexdigest()[:12]


def _rung_files(folder: Path) -> dict[str, PublishedFile]:
    files = {}
    for name, entry in sorted(read_json(folder / MANIFEST_NAME)["files"].items()):
        if any(fnmatchcase(name, pattern) for pattern in (*RUNG_FILES, *LICENCE_FILES)):
            files[name] = PublishedFile(content=folder / name, size=entry["size"], sha256=entry["sha256"])
            if not name.endswith(WEIGHTS_SUFFIX):
                # Kept in memory: a ladder under way may replace its record, and the folder with it, meanwhile.
                files[name] = PublishedFile.from_bytes((folder / name).read_bytes())
    return files


def _curve_plot(rung: RungRecord) -> bytes:
    picture = io.BytesIO()
    figure = draw_curves([rung])
    with figure_style():
        figure.savefig(picture, format="png", dpi=_DPI, metadata={"Software": None})  # the same bytes every time
    return picture.getvalue()


def _require_weights(folder: Path, files: Mapping[str, PublishedFile]) -> None:
    index = "model.safetensors.index.json"
    shards = sorted(set(read_json(folder / index)["weight_map"].values())) if index in files else ["model.safetensors"]
    for name in ("config.json", "tokenizer_config.json", *shards):
        if name not in files:
            raise FileNotFoundError(f"{folder / name}: a rung cannot be published without it; finish the rung first")


def _refuse_tokens(folder: Path, files: Mapping[str, PublishedFile]) -> None:
    # Records are made from what a user configured, and what is published stays in a repository's history.
    token = (get_token() or "").encode()
    for name, file in files.items():
        content = file.content
        if isinstance(content, bytes) and ((token and token in content) or _TOKEN.search(content)):
            raise ValueError(
                f"{folder}: {name} holds what looks like an access token, nothing was sent; take it out of the"
                " configuration (the token comes from HF_TOKEN or `hf auth login`) and revoke it"
            )


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
