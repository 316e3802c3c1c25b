"""Making a corpus ready: train the tokenizer, tokenize, hold out, pack."""

import hashlib
import itertools
import json
import math
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from tqdm.auto import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hf_progressive import storage
from hf_progressive.config import DataConfig
from hf_progressive.data.corpus import (
    RECORD_NAME,
    TOKENIZER_NAME,
    TRAIN_NAME,
    VALIDATION_NAME,
    Corpus,
    corpus_holdout,
    corpus_identity,
    open_corpus,
)
from hf_progressive.data.documents import DocumentStream, Holdout, read_documents, read_validation_texts
from hf_progressive.data.encoding import BATCH_DOCUMENTS, Batch, DocumentEncoder, encode_in_order
from hf_progressive.data.parts import Encoded, TokenParts, Tokens
from hf_progressive.data.tokenizer import encode_documents, load_tokenizer, token_byte_lengths, vocabulary_size
from hf_progressive.storage.locks import wait_lock

_SOURCE_NAME = "source.json"


def prepare_corpus(config: DataConfig, context: int, folder: str | Path, *, num_proc: int | None = None) -> Corpus:
    """Make a corpus ready, or open it where that has been done.

    The folder appears complete or not at all. Beside it, parts of the work are kept until then, so that a process that
    is killed loses one part and the next goes on. Several processes may call this at once: one works, the others wait
    and open the result. Of a stream, tokenizer and validation part are made, and the training part later, as needed.

    Args:
        config: The corpus.
        context: Tokens per block.
        folder: Where tokenizer and blocks are kept.
        num_proc: Processes that tokenize, one core each; None uses the threads of this one, on all cores. The result
            is the same.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: The source is unusable or too small, the folder holds another corpus, or `config.prepared` names a
            folder that holds none.
    """
    if config.prepared is not None:
        if not storage.is_complete(config.prepared):
            raise ValueError(
                f"data.prepared: {config.prepared} holds no prepared corpus; `hf-progressive prepare` writes one into "
                f"the folder data of its --output-dir"
            )
        return open_corpus(config, context, Path(config.prepared))
    target = Path(folder)
    with wait_lock(target.parent / f".{target.name}.lock"):
        unfinished = target.parent / f".{target.name}.unfinished"
        if not storage.is_complete(target):
            try:
                with storage.atomic_folder(target, overwrite=True) as temporary:
                    _write_corpus(config, context, temporary, unfinished, num_proc)
            except ValueError as error:
                if error.__cause__ is None:  # not reading failed: the configuration must change, and with it the work
                    shutil.rmtree(unfinished, ignore_errors=True)
                raise
        # Also what a process left that was killed when the folder was there, and not all else gone.
        storage.remove_unfinished(target)
        shutil.rmtree(unfinished, ignore_errors=True)
        return open_corpus(config, context, target)


def _write_corpus(config: DataConfig, context: int, folder: Path, unfinished: Path, num_proc: int | None) -> None:
    holdout = corpus_holdout(config)
    documents = None if config.streaming else read_documents(config)
    source: dict[str, Any] = {"corpus": corpus_identity(config, context)}
    if documents is not None:
        # These tell that a source has not changed since some of it was tokenized: `datasets` keeps what it has read in
        # files whose names depend on the source's, their sizes and their times.
        source |= {"rows": len(documents), "files": [entry["filename"] for entry in documents.cache_files]}
    _begin_or_go_on(unfinished, source)

    streams: list[DocumentStream] = []

    def texts(*, held_out: bool) -> Iterator[str]:
        if documents is None:
            streams.append(DocumentStream(config))
        rows = streams[-1] if documents is None else ([row["text"]] for row in documents)
        return (text for row in rows for text in row if (text in holdout) == held_out)

    if not storage.is_complete(unfinished / TOKENIZER_NAME):
        with storage.atomic_folder(unfinished / TOKENIZER_NAME, overwrite=True) as temporary:
            load_tokenizer(config.tokenizer, texts(held_out=False)).save_pretrained(temporary)
    shutil.copytree(unfinished / TOKENIZER_NAME, folder / TOKENIZER_NAME)
    (folder / TOKENIZER_NAME / storage.MANIFEST_NAME).unlink()
    tokenizer = AutoTokenizer.from_pretrained(folder / TOKENIZER_NAME)
    vocab_size = vocabulary_size(tokenizer)
    dtype = "uint16" if vocab_size <= 1 << 16 else "uint32"

    counts: dict[str, int | None]
    counts = dict.fromkeys(("train_documents", "train_bytes", "train_tokens", "validation_documents"))
    validation = _encode(texts(held_out=True), tokenizer)
    if documents is not None:
        parts = TokenParts(unfinished / "parts", dtype=dtype)
        _tokenize(documents, tokenizer, holdout, parts, num_proc)
        if parts.tokens < context:
            raise ValueError(
                f"data: the training part has {parts.tokens} tokens, less than one block of {context}; "
                f"give more text or lower model.context"
            )
        counts |= {**parts.counts, "train_tokens": parts.tokens}
        _join(parts.paths(), folder / TRAIN_NAME)
        validation = (np.fromfile(path, parts.dtype) for path in parts.paths("held-out"))
    if config.validation_files:
        given = read_validation_texts(config)
        validation, counts["validation_documents"] = _encode(given, tokenizer), len(given)
    limit = config.max_validation_tokens // context * context
    _write_tokens(validation, folder / VALIDATION_NAME, dtype, limit)
    blocks = _validation_blocks(config, context, folder / VALIDATION_NAME, dtype, documents)
    if streams:
        max(streams, key=lambda stream: stream.read).tell_of_empty()

    record = {
        "identity": corpus_identity(config, context),
        "dtype": dtype,
        "vocab_size": vocab_size,
        "validation_bytes": int(token_byte_lengths(tokenizer)[blocks[:, 1:]].sum()),
        "fingerprint": _fingerprint(config, tokenizer, folder),
        "counts": counts,
    }
    storage.write_json(folder / RECORD_NAME, record)


def _begin_or_go_on(unfinished: Path, source: dict[str, Any]) -> None:
    known = unfinished / _SOURCE_NAME
    source = json.loads(json.dumps(source))
    if known.exists() and storage.read_json(known) == source:
        return
    shutil.rmtree(unfinished, ignore_errors=True)
    storage.write_json(known, source)


def _tokenize(
    documents: datasets.Dataset,
    tokenizer: PreTrainedTokenizerFast,
    holdout: Holdout,
    parts: TokenParts,
    num_proc: int | None,
) -> None:
    parts.refresh()
    if parts.is_whole:
        return
    encoder = DocumentEncoder(tokenizer, holdout, rows=documents, keeps_held_out=True)
    start = 0 if parts.position is None else int(parts.position["document"])

    def batches() -> Iterator[tuple[Batch, dict[str, Any]]]:
        for first in range(start, len(documents), BATCH_DOCUMENTS):
            stop = min(first + BATCH_DOCUMENTS, len(documents))
            yield range(first, stop), {"document": stop}

    with tqdm(total=len(documents), initial=start, desc="Tokenizing", unit="document", unit_scale=True) as bar:
        parts.write(_counted(encode_in_order(encoder, batches(), num_proc=num_proc), bar))


def _counted(encoded: Iterable[Encoded], bar: Any) -> Iterator[Encoded]:
    # The bar tells documents, whose number is known, and how fast their tokens come.
    tokens = 0
    for documents in encoded:
        yield documents
        tokens += len(documents.train) + len(documents.held_out)
        bar.update(int(documents.position["document"]) - bar.n)
        if elapsed := bar.format_dict["elapsed"]:
            bar.set_postfix_str(f"{tokens / elapsed / 1e6:.2f} M tokens/s", refresh=False)


def _join(paths: list[Path], target: Path) -> None:
    with target.open("wb") as joined:
        for path in paths:
            with path.open("rb") as part:
                shutil.copyfileobj(part, joined, 1 << 22)


def _encode(texts: Iterable[str], tokenizer: PreTrainedTokenizerFast) -> Iterator[Tokens]:
    rows = iter(texts)
    while batch := list(itertools.islice(rows, BATCH_DOCUMENTS)):
        yield np.concatenate(encode_documents(tokenizer, batch)).astype(np.uint32)


def _write_tokens(arrays: Iterable[Tokens], path: Path, dtype: str, limit: int) -> None:
    with open(path, "wb") as file:
        for array in arrays:
            kept = array[:limit]
            kept.astype(np.dtype(dtype).newbyteorder("<")).tofile(file)
            limit -= len(kept)
            if limit == 0:
                break


def _validation_blocks(
    config: DataConfig, context: int, path: Path, dtype: str, documents: datasets.Dataset | None
) -> Tokens:
    tokens = np.fromfile(path, dtype=np.dtype(dtype).newbyteorder("<"))
    if config.max_validation_tokens < context:
        raise ValueError(
            f"data.max_validation_tokens: {config.max_validation_tokens} is less than one block of {context}; raise it"
        )
    if len(tokens) == 0:
        enough = "" if documents is None else f" to {_enough(documents['text']):g} or more"
        number = "" if documents is None else f" of {len(documents):,}"
        raise ValueError(
            f"data.validation_fraction: no document{number} is held out at {config.validation_fraction}; "
            f"raise it{enough}, or name validation_files"
        )
    if len(tokens) < context:
        raise ValueError(
            f"data.validation_fraction: the validation part has {len(tokens)} tokens, less than one block of "
            f"{context}; raise it, or name validation_files"
        )
    return tokens[: len(tokens) // context * context].reshape(-1, context)  # (blocks, context)


def _enough(texts: Iterable[str]) -> float:
    # The least share, to two digits, at which a document is held out.
    return min(math.ceil(100 * min(map(Holdout.share_of, texts)) + 1e-9), 99) / 100


def _fingerprint(config: DataConfig, tokenizer: PreTrainedTokenizerFast, folder: Path) -> str:
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    parts = [json.dumps(vocabulary), storage.sha256_file(folder / VALIDATION_NAME)]
    if config.streaming:
        identity = corpus_identity(config, context=0)
        del identity["tokenizer"]  # the vocabulary stands for it, trained here or loaded by name
        parts.append(json.dumps(identity))
    else:
        parts.append(storage.sha256_file(folder / TRAIN_NAME))
    return hashlib.sha256("\n".join(parts).encode("utf-8")).hexdigest()
