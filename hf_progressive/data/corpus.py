"""A corpus made ready for training: one order of tokenized documents in blocks, and a validation part held out."""

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hf_progressive import storage
from hf_progressive.config import DataConfig
from hf_progressive.config.ranges import shown
from hf_progressive.data.blocks import BlockRange, TokenBlocks
from hf_progressive.data.documents import Holdout, read_validation_texts
from hf_progressive.data.parts import TokenParts
from hf_progressive.data.stream import TokenStream
from hf_progressive.data.tokenizer import vocabulary_size

RECORD_NAME = "corpus.json"
"""What is in a corpus folder, and from what it was made."""

TOKENIZER_NAME = "tokenizer"
"""The tokenizer's folder in a corpus folder."""

TRAIN_NAME = "train.bin"
"""Token ids of the training part."""

VALIDATION_NAME = "validation.bin"
"""Token ids of the validation part."""

PARTS_NAME = "stream"
"""The parts of a stream that have been tokenized."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """What a ladder trains and validates on: the same for each of its rungs and training runs."""

    config: DataConfig
    """What it was made from."""

    context: int
    """Tokens per block."""

    tokenizer: PreTrainedTokenizerFast
    """The tokenizer, with an end-of-text token."""

    train: TokenBlocks | TokenStream
    """The training part, in its one order."""

    validation: TokenBlocks
    """The validation part."""

    validation_bytes: int
    """UTF-8 bytes of the tokens that are predicted in the validation part: all but each block's first, and special
    tokens stand for none."""

    fingerprint: str
    """SHA-256 of vocabulary and blocks (of a stream: of vocabulary, source and validation blocks)."""

    counts: dict[str, int | None]
    """Documents, bytes and tokens of the parts."""

    @property
    def vocab_size(self) -> int:
        """Rows of the token table that the tokenizer needs."""
        return vocabulary_size(self.tokenizer)

    @property
    def bits_per_nat_token(self) -> float:
        """Bits per byte over the mean loss in nats, on the validation part (see `evaluation.bits_per_byte`).

        Every block predicts the same number of tokens, all but its first, so that a Trainer's mean over blocks is the
        mean over tokens, and the conversion is exact. (Blocks must mark their first label as no target: `as_block`.)
        """
        predicted = len(self.validation) * (self.context - 1)
        return predicted / (math.log(2) * self.validation_bytes)

    @property
    def train_length(self) -> int | None:
        """Blocks of the training part; None for a stream whose end has not been seen."""
        return self.train.length if isinstance(self.train, TokenStream) else len(self.train)

    def span(self, first_block: int, blocks: int) -> dict[str, Any]:
        """Tell where a rung reads, and from where on it reads what was read before.

        Returns:
            `source`; `first_block` and `blocks`; `first_epoch` and `last_epoch` of the corpus that it reads, from 0;
            `repeats_from_token`, counted from the rung's own start, or None where all is new; and what tells another
            run whether its own corpus is the same in the same order: `block_tokens`, `corpus_blocks`, `shuffle_seed`
            and `fingerprint`. A stream is taken to have no end until one has been seen.
        """
        length = self.train_length
        last = first_block + blocks - 1
        if length is not None and last < length and isinstance(self.train, TokenStream):
            length = None  # its end has been seen by reading ahead, whose pace no record may depend on
        repeats = length is not None and last >= length
        return {
            "source": self.config.source,
            "first_block": first_block,
            "blocks": blocks,
            "first_epoch": first_block // length if length else 0,
            "last_epoch": max(first_block, last) // length if length else 0,
            "repeats_from_token": max(0, length - first_block) * self.context if repeats and length else None,
            "block_tokens": self.context,
            "corpus_blocks": length,
            "shuffle_seed": None if self.config.streaming else self.config.shuffle_seed,
            "fingerprint": self.fingerprint,
        }

    def summary(self) -> dict[str, Any]:
        """Return what there is, for records and tables; what a stream does not know is None."""
        return {
            "source": self.config.source,
            "streaming": self.config.streaming,
            "context": self.context,
            "vocab_size": self.vocab_size,
            **self.counts,
            "train_blocks": self.train_length,
            "validation_blocks": len(self.validation),
            "validation_bytes": self.validation_bytes,
            "fingerprint": self.fingerprint,
        }


@contextlib.contextmanager
def reading_ahead(corpus: Corpus, blocks: int) -> Iterator[None]:
    """Read a stream `blocks` from its start ahead of what is trained meanwhile, on the first process of a launch.

    Stored corpora need nothing.
    """
    if not isinstance(corpus.train, TokenStream):
        yield
        return
    corpus.train.read_ahead(blocks)
    try:
        yield
    finally:
        corpus.train.stop_reading()


def rung_blocks(corpus: Corpus, first_block: int, blocks: int) -> BlockRange:
    """Return the blocks that a rung trains on; those of a stream are read ahead from now on.

    Every training run reads the one order of the corpus; past its end it begins again. Let the Trainer keep that order
    (`train_sampling_strategy="sequential"`): the global batches are then the same on any number of processes.
    """
    if isinstance(corpus.train, TokenStream):
        corpus.train.read_ahead(first_block + blocks)
    return BlockRange(corpus.train, first=first_block, count=blocks)


def open_corpus(config: DataConfig, context: int, folder: Path) -> Corpus:
    """Open a corpus that `prepare_corpus` wrote; one that was made from something else is a ValueError."""
    record = _read_record(folder / RECORD_NAME)
    wanted, before = corpus_identity(config, context), record["identity"]
    changed = [
        f"{key} was {before.get(key)!r}, is {value!r}" for key, value in wanted.items() if before.get(key) != value
    ]
    if changed:
        raise ValueError(
            f"{folder}: holds a corpus prepared otherwise ({'; '.join(changed)}); choose another folder or remove it"
        )
    tokenizer = AutoTokenizer.from_pretrained(folder / TOKENIZER_NAME)
    if vocabulary_size(tokenizer) != record["vocab_size"]:
        raise ValueError(
            f"{folder / TOKENIZER_NAME}: a vocabulary of {vocabulary_size(tokenizer)}, the blocks were made with one "
            f"of {record['vocab_size']}; remove the folder to prepare the corpus again"
        )
    train: TokenBlocks | TokenStream
    if config.streaming:
        train = TokenStream(folder, TokenParts(folder / PARTS_NAME, dtype=record["dtype"]), context=context)
    else:
        train = TokenBlocks(
            folder / TRAIN_NAME, dtype=record["dtype"], context=context, shuffle_seed=config.shuffle_seed
        )
    return Corpus(
        config=config,
        context=context,
        tokenizer=tokenizer,
        train=train,
        validation=TokenBlocks(folder / VALIDATION_NAME, dtype=record["dtype"], context=context),
        validation_bytes=record["validation_bytes"],
        fingerprint=record["fingerprint"],
        counts=record["counts"],
    )


def _read_record(path: Path) -> dict[str, Any]:
    record, remedy = storage.read_json(path), "remove the folder to prepare the corpus again"
    kinds = {"identity": dict, "dtype": str, "vocab_size": int, "validation_bytes": int, "fingerprint": str}
    for key, kind in (kinds | {"counts": dict}).items():
        if type(record.get(key)) is not kind:
            raise ValueError(f"{path}: {key}: expected a JSON {kind.__name__}, got {shown(record.get(key))}; {remedy}")
    if record["dtype"] not in ("uint16", "uint32"):
        raise ValueError(f"{path}: dtype: expected uint16 or uint32, got {shown(record['dtype'])}; {remedy}")
    return record


def corpus_identity(config: DataConfig, context: int) -> dict[str, Any]:
    """Return everything that decides a corpus, as plain values; where it is kept does not."""
    identity: dict[str, Any] = json.loads(json.dumps({"context": context, **dataclasses.asdict(config)}))
    del identity["prepared"]
    return identity


def corpus_holdout(config: DataConfig) -> Holdout:
    """Return the documents kept from training: `validation_files` where given, a share of all otherwise."""
    if config.validation_files:
        return Holdout(texts=read_validation_texts(config))
    return Holdout(config.validation_fraction)
