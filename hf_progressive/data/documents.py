"""Where documents come from: the embedded default corpus, local files, or a dataset of the Hub.

A document is a text. Those whose SHA-256 falls into the validation fraction are held out, so that a text is either
trained on or validated on wherever, and however often, it occurs.
"""

import contextlib
import gzip
import hashlib
import logging
import os
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import zstandard

from hf_progressive.config import DataConfig, strict_yaml
from hf_progressive.data.builders import (
    DAMAGE,
    READING_ERRORS,
    TextColumnError,
    UnreadableFileError,
    reading_text_alone,
)

logger = logging.getLogger(__name__)

LOCAL_SUFFIXES = {
    "text": (".txt", ".md", ".py", ".text"),
    "json": (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".jsonl.zst"),
    "parquet": (".parquet",),
}
"""Names that are read when a folder is given in place of files, by builder."""

_ERRORS = (datasets.exceptions.DatasetsError, *READING_ERRORS)

PIECE_CHARACTERS = 16_384
"""Length at which the text of a file is cut, at the next line end, into documents of its own."""


class Holdout:
    """The documents that are kept for validation, told by their text alone.

    Args:
        fraction: Share of all documents: those whose SHA-256 begins with 64 bits below that share of their range.
        texts: Further documents.

    >>> holdout = Holdout(0.1, ["kept"])
    >>> "kept" in holdout, sum(f"document {i}" in holdout for i in range(1000))
    (True, 113)
    """

    def __init__(self, fraction: float = 0.0, texts: Iterable[str] = ()):
        self._limit = int(fraction * (1 << 64))
        self._digests = frozenset(_digest(text) for text in texts)

    def __contains__(self, text: str) -> bool:
        digest = _digest(text)
        return digest in self._digests or int.from_bytes(digest[:8], "big") < self._limit

    @staticmethod
    def share_of(text: str) -> float:
        """Return the fraction above which a document is held out."""
        return int.from_bytes(_digest(text)[:8], "big") / (1 << 64)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8")).digest()


def cut_pieces(text: str, characters: int = PIECE_CHARACTERS) -> list[str]:
    r"""Cut a long text, at line ends, into pieces that join to it.

    A piece ends with the line in which it reaches so many characters; a line longer than that stays whole.

    >>> cut_pieces("one\ntwo\nthree\n", 5)
    ['one\ntwo\n', 'three\n']
    """
    pieces, start = [], 0
    while len(text) - start > characters:
        end = text.find("\n", start + characters - 1) + 1
        if end == 0:
            break
        pieces.append(text[start:end])
        start = end
    return [*pieces, text[start:]] if start < len(text) else pieces


def stdlib_texts() -> list[str]:
    """Return the source files of this Python's standard library, in the order of their paths.

    Every .py file below `sysconfig.get_path("stdlib")` is read, the library's own tests included where they are
    installed (about 31 MB with them, 14 MB without). What is no part of the library (site-packages, dist-packages),
    what differs between builds of one version (the build's configuration) and the few files that are not UTF-8 are
    left out.
    """
    root = Path(sysconfig.get_path("stdlib"))
    texts = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(
            name
            for name in subfolders
            if name not in ("site-packages", "dist-packages", "__pycache__") and not name.startswith("config-")
        )
        for name in sorted(files):
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                try:
                    texts.append(Path(folder, name).read_bytes().decode("utf-8"))
                except UnicodeDecodeError:
                    logger.debug("%s/%s is not UTF-8, left out", folder, name)
    if not texts:
        raise FileNotFoundError(
            f"data.source: stdlib found no .py file below {root}, this Python comes without its library's sources; "
            f"name another source (text, json, parquet or a Hub dataset)"
        )
    return texts


def read_documents(config: DataConfig) -> datasets.Dataset:
    """Read the corpus into a column `text`: every document that is not empty, in the one order of all runs."""
    if config.source == "stdlib":
        documents = datasets.Dataset.from_dict({"text": stdlib_texts()})
    else:
        documents = _load(config, config.files, streaming=False)
        if config.source == "text":
            documents = documents.map(
                lambda batch: {"text": [piece for text in batch["text"] for piece in cut_pieces(text)]},
                batched=True,
                desc="Cutting files into documents",
            )
    if config.max_documents is not None:
        documents = documents.select(range(min(config.max_documents, len(documents))))
    rows = len(documents)
    documents = documents.filter(
        lambda batch: [bool(text) for text in batch["text"]], batched=True, desc="Leaving out empty documents"
    )
    if len(documents) < rows and config.source != "stdlib":  # whose empty files are meant to be
        empty = rows - len(documents)
        logger.warning("%s: %d of %d documents have no text and are left out", _describe(config), empty, rows)
    if len(documents) == 0:
        raise ValueError(f"data.source: {_describe(config)} holds no document")
    if config.shuffle_seed is None:
        return documents
    return documents.select(np.random.default_rng(config.shuffle_seed).permutation(len(documents)))


def read_validation_texts(config: DataConfig) -> list[str]:
    """Read the documents of `validation_files` that are not empty, in the files' order."""
    documents = _load(config, config.validation_files, streaming=False, key="validation_files")
    texts = [text for text in documents["text"] if text]
    if empty := len(documents) - len(texts):
        named = ", ".join(config.validation_files)
        logger.warning("data.validation_files: %s: %d of %d documents have no text", named, empty, len(documents))
    if config.source == "text":
        texts = [piece for text in texts for piece in cut_pieces(text)]
    if not texts:
        raise ValueError(f"data.validation_files: {', '.join(config.validation_files)} hold no document")
    return texts


class DocumentStream:
    """The documents of a source, read one after the other in its own order, from any remembered position.

    Attributes:
        read: Rows that were read so far.
        empty: Those of them that have no text, which are left out.
    """

    def __init__(self, config: DataConfig):
        self._config = config
        rows = _load(config, config.files, streaming=True)
        self._rows = rows if config.max_documents is None else rows.take(config.max_documents)
        self.read, self.empty = 0, 0

    def __iter__(self) -> Iterator[list[str]]:
        # The documents that are not empty, row by row: a row of `text` files is several.
        with _reading(self._config, "files" if self._config.files else "source"):
            for row in self._rows:
                text = row["text"]
                self.read += 1
                self.empty += not text
                if text:
                    yield cut_pieces(text) if self._config.source == "text" else [text]

    def tell_of_empty(self) -> None:
        """Say how many of the rows that were read have no text, if any."""
        if self.empty:
            source = _describe(self._config)
            logger.warning(
                "%s: %d of the first %d documents have no text and are left out", source, self.empty, self.read
            )

    def batches(self, size: int) -> Iterator[tuple[list[str], dict[str, Any]]]:
        """Yield documents together, at least `size` of them but for the last, with the position behind them."""
        batch: list[str] = []
        for texts in self:
            batch += texts
            if len(batch) >= size:
                yield batch, self.position()
                batch = []
        if batch:
            yield batch, self.position()

    def position(self) -> dict[str, Any]:
        """Return the position behind the row that was last read, as plain values."""
        state: dict[str, Any] = self._rows.state_dict()
        return state

    def seek(self, position: dict[str, Any]) -> None:
        """Go to a position, as `position` returned it on a stream of the same source."""
        self._rows.load_state_dict(position)


def require_files(config: DataConfig) -> None:
    """Raise a FileNotFoundError unless every entry of `files` and `validation_files` matches a file."""
    for key, patterns in (("files", config.files), ("validation_files", config.validation_files)):
        _resolve(config, patterns, key)


def _describe(config: DataConfig) -> str:
    return f"{config.source} ({', '.join(config.files)})" if config.files else repr(config.source)


def _resolve(config: DataConfig, patterns: tuple[str, ...], key: str) -> list[str]:
    # The files that paths, folders and patterns stand for, sorted within each of them.
    files = []
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.name.endswith(LOCAL_SUFFIXES[config.source]))
            _tell_passed_over(path, found, LOCAL_SUFFIXES[config.source])
        elif path.is_file():
            found = [path]
        else:
            anchor = Path(path.anchor)
            relative = str(path.relative_to(anchor)) if path.is_absolute() else pattern
            try:
                found = sorted(p for p in anchor.glob(relative) if p.is_file()) if relative else []
            except ValueError as error:
                raise ValueError(f"data.{key}: {pattern}: {error}") from error
        if not found:
            wanted = f" named *{', *'.join(LOCAL_SUFFIXES[config.source])}" if path.is_dir() else ""
            raise FileNotFoundError(f"data.{key}: {pattern} matches no file{wanted}; give an existing path or pattern")
        files += [str(p) for p in found]
    return files


def _tell_passed_over(folder: Path, found: list[Path], suffixes: tuple[str, ...]) -> None:
    passed = sorted({p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")} - {*found})
    if passed:
        logger.warning(
            "%s: %d files are read and %d passed over, such as %s: names must end in %s; list others under data.files",
            folder,
            len(found),
            len(passed),
            passed[0].relative_to(folder),
            ", ".join(suffixes),
        )


def _load(config: DataConfig, files: tuple[str, ...], *, streaming: bool, key: str = "files") -> Any:
    if files:
        options: dict[str, Any] = {"data_files": _resolve(config, files, key)}
        split = "train"
    else:
        options = {"name": config.name, "revision": config.revision}
        split, key = config.split, "source"
    if config.source == "text":
        options["sample_by"] = "document"
    with _reading(config, key):
        try:
            found = datasets.load_dataset_builder(config.source, **options)
        except (RuntimeError, LookupError) as error:  # a dataset that is a script, a name of slashes
            raise ValueError(str(error)) from error
        builder = reading_text_alone(found, config.text_column)
        if not streaming:
            builder.download_and_prepare()
    splits = None if streaming else builder.info.splits
    if splits is not None and all(part.num_examples == 0 for part in splits.values()):
        raise ValueError(f"data.{key}: {_describe(config)} holds no document")
    with _reading(config, key):
        rows = builder.as_streaming_dataset(split=split) if streaming else builder.as_dataset(split=split)
    return _text_column(rows, config)


@contextlib.contextmanager
def _reading(config: DataConfig, key: str = "source") -> Iterator[None]:
    # Say in one line what could not be read.
    try:
        yield
    except _ERRORS as error:
        cause = error.__cause__ or error
        if isinstance(error, TextColumnError) or isinstance(cause, TextColumnError):
            raise ValueError(f"data.text_column: {cause}") from error
        unreadable = next((e for e in (error, cause) if isinstance(e, UnreadableFileError)), None)
        if unreadable is not None:
            raise ValueError(f"data.{key}: cannot read {unreadable}") from error
        named = isinstance(cause, DAMAGE) and _damaged_file(config, key)
        what = named or _describe(config)
        raise ValueError(f"data.{key}: cannot read {what}: {' '.join(str(cause).split())}") from error


def _damaged_file(config: DataConfig, key: str) -> str | None:
    # The first compressed file that cannot be read to its end. The library says what is wrong, and not with which.
    patterns = config.validation_files if key == "validation_files" else config.files
    for path in _resolve(config, patterns, key):
        if Path(path).suffix not in (".gz", ".zst"):
            continue
        try:
            with gzip.open(path) if path.endswith(".gz") else zstandard.open(path) as file:
                while file.read(1 << 22):
                    pass
        except READING_ERRORS:
            return path
    return None


def _text_column(rows: Any, config: DataConfig) -> Any:
    # Of a format that is read whole, the text.
    column = "text" if list(rows.features or ()) == ["text"] else config.text_column
    features = rows.features or _features_of_first(rows, config)  # a stream may not know its features
    if column not in features:
        raise ValueError(
            f"data.text_column: {_describe(config)} has no column {column!r}; {strict_yaml.nearest(column, features)}"
        )
    feature = features[column]
    if getattr(feature, "dtype", None) not in ("string", "large_string"):
        raise ValueError(f"data.text_column: the column {column!r} holds {feature}, expected text")
    if list(features) == ["text"]:
        return rows
    rows = rows.select_columns([column])
    return rows if column == "text" else rows.rename_column(column, "text")


def _features_of_first(rows: Any, config: DataConfig) -> Any:
    with _reading(config):
        first = list(rows.take(1))
    if not first:
        raise ValueError(f"data.source: {_describe(config)} holds no document")
    return datasets.Dataset.from_list(first).features
