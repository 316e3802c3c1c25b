"""Blocks of tokens: the stored ones, read through a memory map, and a rung's range of them."""

from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

Block = dict[str, torch.Tensor]
"""`input_ids` and `labels`, both (context,): the same tokens, which the model shifts by itself."""

NOT_PREDICTED = -100
"""The label of a position that is no target, as in PyTorch's cross-entropy."""


def as_block(tokens: Any) -> Block:
    """Make a training block, in int64, of token ids (context,).

    The first label is marked as no target. It never is one, since nothing stands before it; but Transformers' Trainer,
    up to 5.23 at least, counts it for models whose class name tells it no loss (GPT-2), and then divides the summed
    loss by one token per block too many (`Trainer._get_num_items_in_batch`). The mark can go when that count does.
    """
    ids = torch.from_numpy(np.asarray(tokens).astype(np.int64))
    labels = ids.clone()
    labels[0] = NOT_PREDICTED
    return {"input_ids": ids, "labels": labels}


class TokenBlocks(Dataset[Block]):
    """The blocks of a file of token ids, unsigned integers of `dtype`, little-endian.

    The file is mapped into memory, so that any number of processes shares it and none reads more than it needs. The
    tokens after the last whole block are not used. `shuffle_seed` draws the blocks' order; None keeps the file's, in
    which the blocks of a batch would come from one or two documents, and the loss would jump with every document.
    """

    def __init__(self, path: Path, *, dtype: str, context: int, shuffle_seed: int | None = None):
        self.path = path
        self.dtype = dtype
        self.context = context
        self.shuffle_seed = shuffle_seed
        empty = path.stat().st_size == 0  # an empty file cannot be mapped
        layout = np.dtype(dtype).newbyteorder("<")
        self._tokens: Any = np.zeros(0, layout) if empty else np.memmap(path, layout, mode="r")
        drawn = None if shuffle_seed is None else np.random.default_rng(shuffle_seed)
        self._order = np.arange(len(self)) if drawn is None else drawn.permutation(len(self))

    def __len__(self) -> int:
        return len(self._tokens) // self.context

    def __getitem__(self, index: int) -> Block:
        if not 0 <= index < len(self):
            raise IndexError(f"block {index} of {len(self)}")
        start = int(self._order[index]) * self.context
        return as_block(self._tokens[start : start + self.context])

    def block(self, index: int) -> Block:
        """Return a block of the order, counted without end: `len(self)` is block 0 again."""
        return self[index % len(self)]

    def __reduce__(self) -> tuple[Any, ...]:
        # Without the map: a data loader's worker maps the file itself instead of copying it.
        again = partial(TokenBlocks, self.path, dtype=self.dtype, context=self.context, shuffle_seed=self.shuffle_seed)
        return again, ()


class BlockOrder(Protocol):
    """Blocks in one order, which begins again at its start where it ends."""

    def block(self, index: int) -> Block:
        """Return a block, counted without end."""


class BlockRange(Dataset[Block]):
    """Consecutive blocks of one order, from `first` on, which counts without end."""

    def __init__(self, blocks: BlockOrder, *, first: int, count: int):
        self.blocks = blocks
        self.first = first
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Block:
        if not 0 <= index < self.count:
            raise IndexError(f"block {index} of {self.count}")
        return self.blocks.block(self.first + index)
