"""Tokenizing documents with all cores, in order: by the threads of one process, or by several processes."""

import contextlib
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from hf_progressive.data.documents import Holdout
from hf_progressive.data.parts import Encoded, Tokens
from hf_progressive.data.tokenizer import encode_documents

BATCH_DOCUMENTS = 512
"""Documents that are tokenized at once."""

Batch = list[str] | range
"""Documents, or the rows of a dataset that hold them."""


class DocumentEncoder:
    """Turns a batch of documents into tokens, those held out apart, and tokenized too if `keeps_held_out`.

    Batches given as a range are read from the dataset `rows`.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, holdout: Holdout, *, rows: Any = None, keeps_held_out: bool = False
    ):
        self._tokenizer = tokenizer
        self._holdout = holdout
        self._rows = rows
        self._keeps_held_out = keeps_held_out

    def __call__(self, batch: Batch) -> tuple[Tokens, Tokens, dict[str, int]]:
        # Token ids to train on, those held out (empty where they are not kept), and counts.
        texts = batch if isinstance(batch, list) else self._rows[batch.start : batch.stop]["text"]
        train: list[str] = []
        held_out: list[str] = []
        for text in texts:
            (held_out if text in self._holdout else train).append(text)
        counts = {
            "train_documents": len(train),
            "train_bytes": sum(len(text.encode("utf-8")) for text in train),
            "validation_documents": len(held_out),
        }
        return self._encode(train), self._encode(held_out if self._keeps_held_out else []), counts

    def _encode(self, texts: list[str]) -> Tokens:
        ids = encode_documents(self._tokenizer, texts) if texts else []
        # Flattened in C, document by document: a list of all ids would take thirty bytes a token.
        return np.concatenate([np.array(document, np.uint32) for document in ids] or [np.zeros(0, np.uint32)])


def encode_in_order(
    encoder: DocumentEncoder, batches: Iterable[tuple[Batch, dict[str, Any]]], *, num_proc: int | None = None
) -> Iterator[Encoded]:
    """Tokenize batches, each with the position of the source behind it, at the same time, and yield them in order.

    `num_proc` processes tokenize, one core each; None takes the tokenizer's own threads, one per core, in this one.
    """
    with _executor(encoder, num_proc) as (executor, encode):
        ahead = 2 * (num_proc or 1)
        waiting: deque[tuple[Future[tuple[Tokens, Tokens, dict[str, int]]], dict[str, Any]]] = deque()

        def oldest() -> Encoded:
            future, position = waiting.popleft()
            train, held_out, counts = future.result()
            return Encoded(train=train, held_out=held_out, counts=counts, position=position)

        try:
            for batch, position in batches:
                waiting.append((executor.submit(encode, batch), position))
                if len(waiting) > ahead:
                    yield oldest()
            while waiting:
                yield oldest()
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _executor(encoder: DocumentEncoder, num_proc: int | None) -> Iterator[tuple[Executor, Callable[[Batch], Any]]]:
    if num_proc is None:
        # One thread, so that the next documents are read meanwhile; the tokenizer has threads of its own.
        with ThreadPoolExecutor(1, thread_name_prefix="tokenize") as threads:
            yield threads, encoder
        return
    # Spawned, since a fork of a process whose tokenizer has run threads can wait for them for ever.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        num_proc, mp_context=context, initializer=_begin_process, initargs=(encoder,)
    ) as processes:
        yield processes, _encode_here


_encoder_here: DocumentEncoder | None = None


def _begin_process(encoder: DocumentEncoder) -> None:
    global _encoder_here
    _encoder_here = encoder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core is this process's share
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode_here(batch: Batch) -> tuple[Tokens, Tokens, dict[str, int]]:
    assert _encoder_here is not None
    return _encoder_here(batch)
