"""Tokens without a text: a corpus for measuring speed and memory, which do not depend on what the tokens say."""

from pathlib import Path

import numpy as np

from hf_progressive.config import DataConfig
from hf_progressive.data import Corpus, TokenBlocks
from hf_progressive.data.tokenizer import train_tokenizer

VALIDATION_BLOCKS = 16


def synthetic_corpus(folder: Path, *, vocab_size: int, context: int, blocks: int) -> Corpus:
    """Write tokens drawn as Zipf's law has it, rank r with a frequency of 1/r, and return them as a corpus.

    Args:
        folder: Where to.
        vocab_size: Tokens of the vocabulary, at most 65,536.
        context: Tokens per block.
        blocks: Blocks of the training part; a run that needs more begins again.

    Returns:
        The corpus. Its tokenizer is a stand-in: it is saved with checkpoints and reads nothing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    parts = {}
    for name, count in (("train", blocks), ("validation", VALIDATION_BLOCKS)):
        # The inverse of the distribution function of 1/r on [1, vocabulary], continuous and rounded down.
        ranks = np.exp(generator.random(count * context) * np.log(vocab_size + 1)).astype(np.int64) - 1
        path = folder / f"{name}.bin"
        ranks.clip(0, vocab_size - 1).astype("<u2").tofile(path)
        parts[name] = TokenBlocks(path, dtype="uint16", context=context)
    return Corpus(
        config=DataConfig(),
        context=context,
        tokenizer=train_tokenizer(["to be or not to be"], vocab_size=260, training_bytes=1000),
        train=parts["train"],
        validation=parts["validation"],
        validation_bytes=4 * VALIDATION_BLOCKS * (context - 1),
        fingerprint="synthetic",
        counts={},
    )
