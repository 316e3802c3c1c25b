"""Corpora: documents of any source, tokenized, packed into blocks that every rung reads in one order."""

from hf_progressive.data.blocks import Block, BlockRange, TokenBlocks
from hf_progressive.data.corpus import Corpus, reading_ahead, rung_blocks
from hf_progressive.data.documents import Holdout, read_documents
from hf_progressive.data.prepare import prepare_corpus
from hf_progressive.data.stream import TokenStream
from hf_progressive.data.tokenizer import (
    load_tokenizer,
    token_byte_lengths,
    train_tokenizer,
    vocabulary_size,
    without_padding,
)

__all__ = [
    "Block",
    "BlockRange",
    "Corpus",
    "Holdout",
    "TokenBlocks",
    "TokenStream",
    "load_tokenizer",
    "prepare_corpus",
    "read_documents",
    "reading_ahead",
    "rung_blocks",
    "token_byte_lengths",
    "train_tokenizer",
    "vocabulary_size",
    "without_padding",
]
