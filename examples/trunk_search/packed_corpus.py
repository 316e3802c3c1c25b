"""The corpus as one file of 10 bits per token, small enough to be carried to a machine that has no corpus."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from architectures import CONTEXT, VOCABULARY
from numpy.typing import NDArray
from torch import Tensor

from hf_progressive import storage
from hf_progressive.config import DataConfig, TokenizerConfig
from hf_progressive.data import Corpus, TokenBlocks, prepare_corpus, token_byte_lengths

TOKENIZER_BYTES = 10_000_000
VALIDATION_TOKENS = 131_072


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """What is trained and validated on, on one device."""

    train: Tensor
    """(blocks, context), int16, in the order of the documents."""

    validation: Tensor
    """(blocks, context), int16."""

    byte_lengths: Tensor
    """UTF-8 bytes of each token, float64."""


def prepare(files: Sequence[str], validation_files: Sequence[str], folder: Path) -> Corpus:
    """Tokenize parquet files as the book studies do; validation files may be left out."""
    config = DataConfig(
        source="parquet",
        files=tuple(files),
        validation_files=tuple(validation_files),
        max_validation_tokens=VALIDATION_TOKENS,
        tokenizer=TokenizerConfig(vocab_size=VOCABULARY, training_bytes=TOKENIZER_BYTES),
    )
    return prepare_corpus(config, CONTEXT, folder)


def pack(corpus: Corpus, path: Path) -> None:
    """Write a prepared corpus into one file."""
    assert isinstance(corpus.train, TokenBlocks)
    lengths = np.zeros(VOCABULARY)
    known = token_byte_lengths(corpus.tokenizer)
    lengths[: len(known)] = known
    with storage.atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            train=to_ten_bits(_tokens(corpus.train)),
            validation=_tokens(corpus.validation),
            byte_lengths=lengths,
        )


def _tokens(blocks: TokenBlocks) -> NDArray[np.uint16]:
    tokens = np.fromfile(blocks.path, np.dtype(blocks.dtype).newbyteorder("<"))
    return tokens[: len(tokens) // CONTEXT * CONTEXT].astype(np.uint16)


def unpack(path: Path, device: torch.device) -> Blocks:
    """Read what `pack` wrote."""
    with np.load(path) as stored:
        train = from_ten_bits(stored["train"]).reshape(-1, CONTEXT)
        validation = stored["validation"].reshape(-1, CONTEXT)
        lengths = stored["byte_lengths"]
    return Blocks(
        train=torch.from_numpy(train.astype(np.int16)).to(device),
        validation=torch.from_numpy(validation.astype(np.int16)).to(device),
        byte_lengths=torch.from_numpy(lengths.astype(np.float64)).to(device),
    )


def to_ten_bits(tokens: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Four tokens in five bytes, the lowest bits first; their number is a multiple of four.

    >>> from_ten_bits(to_ten_bits(np.array([1, 1023, 512, 3], np.uint16))).tolist()
    [1, 1023, 512, 3]
    """
    a, b, c, d = tokens.reshape(-1, 4).T
    parts = [a & 255, a >> 8 | (b & 63) << 2, b >> 6 | (c & 15) << 4, c >> 4 | (d & 3) << 6, d >> 2]
    return np.stack(parts, axis=1).astype(np.uint8).reshape(-1)


def from_ten_bits(packed: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Undo `to_ten_bits`."""
    a, b, c, d, e = packed.reshape(-1, 5).astype(np.uint16).T
    tokens = [a | (b & 3) << 8, b >> 2 | (c & 15) << 6, c >> 4 | (d & 63) << 4, d >> 6 | e << 2]
    return np.stack(tokens, axis=1).reshape(-1)
