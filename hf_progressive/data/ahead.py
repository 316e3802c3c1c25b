"""Reading a stream ahead of training: a process of its own tokenizes it into parts on the disk.

Run as `python -m hf_progressive.data.ahead FOLDER TOKENS` by whoever trains, and ended with it.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import AutoTokenizer

from hf_progressive import storage
from hf_progressive.config import DataConfig, strict_yaml
from hf_progressive.data.corpus import PARTS_NAME, RECORD_NAME, TOKENIZER_NAME, corpus_holdout
from hf_progressive.data.documents import DocumentStream
from hf_progressive.data.encoding import BATCH_DOCUMENTS, DocumentEncoder, encode_in_order
from hf_progressive.data.parts import Encoded, TokenParts
from hf_progressive.data.stream import BEAT_NAME, FAILURE_NAME
from hf_progressive.storage.locks import wait_lock

_LOCK_NAME = ".lock"
_SECONDS_BETWEEN_BEATS = 1.0
_NICENESS = 10  # training comes first


def write_ahead(folder: Path, tokens: int | None, *, num_proc: int | None = None, progress: bool = False) -> int:
    """Tokenize a stream from where its parts end, until there are tokens enough; return how many were added.

    `tokens` to train on are wanted; None reads to the source's end. Without `num_proc`, the threads of this process
    tokenize. Several processes may call this at once: one works, the others wait and find it done.
    """
    record = storage.read_json(folder / RECORD_NAME)
    identity: dict[str, Any] = {**record["identity"]}
    del identity["context"]
    config = strict_yaml.build(DataConfig, identity)
    parts = TokenParts(folder / PARTS_NAME, dtype=record["dtype"])
    with wait_lock(parts.folder / _LOCK_NAME):
        parts.refresh()
        before = parts.tokens
        if parts.is_whole or (tokens is not None and before >= tokens):
            return 0
        documents = DocumentStream(config)
        if parts.position is not None:
            documents.seek(dict(parts.position))
        encoder = DocumentEncoder(AutoTokenizer.from_pretrained(folder / TOKENIZER_NAME), corpus_holdout(config))
        encoded = encode_in_order(encoder, documents.batches(BATCH_DOCUMENTS), num_proc=num_proc)
        with tqdm(
            total=tokens, initial=before, desc="Tokenizing", unit="token", unit_scale=True, disable=not progress
        ) as bar:
            parts.write(_counted(encoded, bar), until=tokens)
        return parts.tokens - before


def _counted(encoded: Iterable[Encoded], bar: Any) -> Iterator[Encoded]:
    for documents in encoded:
        yield documents
        bar.update(len(documents.train))


def _beat(path: Path) -> None:
    while True:
        with contextlib.suppress(OSError):  # of a full disk, or a folder that is gone, the reading itself tells
            path.touch()
        time.sleep(_SECONDS_BETWEEN_BEATS)


def _end_with_parent() -> None:
    sys.stdin.buffer.read()  # until the one that trains closes it, or is no more
    os._exit(1)


def _tell(parts: Path, error: Exception) -> None:
    with wait_lock(parts / _LOCK_NAME):  # under which others remove what killed processes were writing
        storage.write_json(parts / FAILURE_NAME, {"reason": " ".join(str(error).split())})


def main(arguments: list[str]) -> int:
    """Read ahead as another process asked; 2 where the source failed, and the parts' folder says how."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a person's Ctrl-C is for the one that trains, which then ends this
    if hasattr(os, "nice"):
        os.nice(_NICENESS)
    folder = Path(arguments[0])
    for work in (_end_with_parent, lambda: _beat(folder / PARTS_NAME / BEAT_NAME)):
        threading.Thread(target=work, daemon=True).start()
    try:
        write_ahead(folder, int(arguments[1]))
    except (ValueError, OSError) as error:
        _tell(folder / PARTS_NAME, error)
        return 2
    return 0


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))
