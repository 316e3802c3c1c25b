"""Blocks of a corpus that is tokenized while it is read."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerFast

from hf_progressive import storage
from hf_progressive.config import DataConfig
from hf_progressive.data.blocks import Block, as_block
from hf_progressive.data.documents import DocumentStream, Holdout
from hf_progressive.data.tokenizer import encode_documents

POSITION_TOKENS = 1 << 26
"""Tokens between remembered positions: what a later start reads again at the most."""

_BATCH_DOCUMENTS = 512  # tokenized at once, by all cores


class TokenStream(IterableDataset[Block]):
    """A range of the blocks of a stream, beginning again at its start where it ends.

    The blocks are those that storing the whole corpus, in the source's order, would give. While reading, positions of
    the source are stored, so that a start at a later block reads little again; a start behind the furthest stored
    position reads, without training on it, all that lies between.

    One process reads: `accelerate` hands its batches to the others (`dispatch_batches`, its default for streams), and
    each gets the blocks it would get of stored ones. Packing is sequential, so that more than one worker of a data
    loader is refused. One worker reads ahead; started by `spawn` it tokenizes with all cores, while in a forked one
    the tokenizers library keeps to a single thread.

    Args:
        config: The corpus.
        tokenizer: The tokenizer.
        context: Tokens per block.
        folder: Where positions are stored.
        holdout: Documents to leave out.
        first: The first block.
        count: Blocks in the range.
        position_tokens: Tokens between stored positions.
    """

    def __init__(
        self,
        config: DataConfig,
        tokenizer: PreTrainedTokenizerFast,
        *,
        context: int,
        folder: Path,
        holdout: Holdout,
        first: int = 0,
        count: int = 0,
        position_tokens: int = POSITION_TOKENS,
    ):
        self.config = config
        self.tokenizer = tokenizer
        self.context = context
        self.folder = folder
        self.holdout = holdout
        self.first = first
        self.count = count
        self.position_tokens = position_tokens

    def range(self, first: int, count: int) -> "TokenStream":
        """Return another range of the same stream.

        Args:
            first: The first block, counted without end.
            count: Blocks in the range.

        Returns:
            The range.
        """
        return TokenStream(
            self.config,
            self.tokenizer,
            context=self.context,
            folder=self.folder,
            holdout=self.holdout,
            first=first,
            count=count,
            position_tokens=self.position_tokens,
        )

    @property
    def length(self) -> int | None:
        """Whole blocks in the stream; None as long as no run has read it to its end."""
        path = self.folder / "length.json"
        return int(storage.read_json(path)["blocks"]) if path.exists() else None

    def __iter__(self) -> Iterator[Block]:
        """Yield the blocks of the range, in order.

        Yields:
            Blocks.

        Raises:
            ValueError: Several workers read the stream, or it holds less than one block.
        """
        worker = get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise ValueError(
                f"training.arguments.dataloader_num_workers: {worker.num_workers} workers would each read the whole "
                f"stream; use 0 or 1"
            )
        start, left = self.first, self.count
        if self.length is not None:
            start %= max(1, self.length)
        while left > 0:
            for block in self._one_pass(start):
                yield block
                left -= 1
                if left == 0:
                    return
            length = self.length  # known now, the pass has stored it
            if not length:
                raise ValueError(f"data: the stream holds less than one block of {self.context} tokens")
            start = max(0, start - length)

    def _one_pass(self, start: int) -> Iterator[Block]:
        # Blocks from `start` to the end of the stream, whose last tokens, less than a block, are dropped.
        position = self._nearest_position(start)
        block, rest = position["block"], np.array(position["rest"], dtype=np.int64)
        documents = DocumentStream(self.config)
        if position["documents"] is not None:
            documents.seek(position["documents"])
        spacing = max(1, self.position_tokens // self.context)
        next_position = block + spacing
        for tokens in self._tokens(documents):
            tokens = np.concatenate([rest, tokens])
            whole = len(tokens) // self.context
            for i in range(max(0, start - block), whole):
                yield as_block(tokens[i * self.context : (i + 1) * self.context])
            block, rest = block + whole, tokens[whole * self.context :]
            if block >= next_position:
                position = {"block": block, "rest": rest.tolist(), "documents": documents.position()}
                storage.write_json(self.folder / f"position-{block:012d}.json", position)
                next_position = block + spacing
        storage.write_json(self.folder / "length.json", {"blocks": block})

    def _tokens(self, documents: DocumentStream) -> Iterator[npt.NDArray[np.int64]]:
        batch: list[str] = []
        for texts in documents:
            batch += [text for text in texts if text not in self.holdout]
            if len(batch) >= _BATCH_DOCUMENTS:
                yield np.concatenate(encode_documents(self.tokenizer, batch))
                batch = []
        if batch:
            yield np.concatenate(encode_documents(self.tokenizer, batch))

    def _nearest_position(self, start: int) -> dict[str, Any]:
        for path in sorted(self.folder.glob("position-*.json"), reverse=True):
            if int(path.stem.removeprefix("position-")) <= start:
                return storage.read_json(path)
        return {"block": 0, "rest": [], "documents": None}
