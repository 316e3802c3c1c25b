"""The corpus and its tokenizer."""

from dataclasses import dataclass, field
from typing import Annotated

from hf_progressive.config.checks import require, require_in_range
from hf_progressive.config.ranges import Range, Seed, Whole


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Where the tokenizer comes from."""

    name: str | None = None
    """A local folder or a Hub name to load it from; None takes that of a first rung that has a source, and otherwise
    trains a byte-level BPE on the corpus."""

    revision: str | None = None
    """The branch, tag or commit of a Hub tokenizer."""

    vocab_size: Annotated[int, Range(257, 10_000_000)] = 1024
    """Entries of a tokenizer to be trained, the 256 bytes and the end-of-text token included."""

    training_bytes: Whole = 20_000_000
    """UTF-8 bytes of the corpus, from its start, that a tokenizer to be trained reads at the most."""

    def __post_init__(self) -> None:
        require_in_range(self)
        require(
            self.revision is None or self.name is not None,
            f"revision: {self.revision!r} without a name; name the tokenizer, or leave the revision out",
        )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The corpus: what `datasets.load_dataset` reads, or the embedded default."""

    source: str = "stdlib"
    """`stdlib` (the source text of this Python's standard library), a builder of `datasets` (`text`, `json`,
    `parquet`) together with `files`, or the name of a Hub dataset."""

    files: tuple[str, ...] = ()
    """Local files, folders or glob patterns for the builders `text`, `json` and `parquet`. A text file is cut, at line
    ends, into documents of 16,384 characters; a row of the others is a document."""

    validation_files: tuple[str, ...] = ()
    """Files whose documents are the validation part; empty holds out a part of the corpus by document hash."""

    name: str | None = None
    """The configuration (subset) of a Hub dataset."""

    split: str = "train"
    """The split of a Hub dataset."""

    revision: str | None = None
    """The branch, tag or commit of a Hub dataset."""

    text_column: str = "text"
    """The column that holds a document."""

    streaming: bool = False
    """Read the corpus as a stream, tokenizing as much as is needed, ahead of training, instead of all of it before."""

    prepared: str | None = None
    """The `data` folder of a run for which `hf-progressive prepare` has prepared this corpus; None prepares it in the
    run's own folder."""

    max_documents: Whole | None = None
    """Read no more documents than this from the corpus, from its start."""

    validation_fraction: Annotated[float, Range(0, 1, above=True, below=True)] = 0.02
    """Share of documents held out for validation, chosen by the hash of their text."""

    max_validation_tokens: Whole = 131_072
    """Validation tokens at the most; the first documents of the part are kept."""

    shuffle_seed: Seed | None = 0
    """Seed of the one order of documents, and of the blocks packed from them, that every run reads; None keeps the
    source's own. A stream keeps it anyway: shuffle a corpus before streaming it."""

    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """Where the tokenizer comes from."""

    def __post_init__(self) -> None:
        require_in_range(self)
        local = self.source in ("text", "json", "parquet")
        require(not local or bool(self.files), f"files: the source {self.source!r} needs the files to read")
        require(
            local or not self.files,
            f"files: only text, json and parquet read files, not {self.source!r}; set source to one of these",
        )
        require(
            not self.streaming or self.source != "stdlib", "streaming: the stdlib corpus is small, it is not streamed"
        )
