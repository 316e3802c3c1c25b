"""Making a corpus ready: train the tokenizer, tokenize, hold out, pack."""

import hashlib
import itertools
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
from filelock import FileLock
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast

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
from hf_progressive.data.tokenizer import encode_documents, load_tokenizer, token_byte_lengths, vocabulary_size

_BATCH_DOCUMENTS = 256

Tokens = npt.NDArray[Any]


def prepare_corpus(config: DataConfig, context: int, folder: str | Path, *, num_proc: int | None = None) -> Corpus:
    """Make a corpus ready, or open it where that has been done.

    The folder appears complete or not at all. Several processes may call this at once: one works, the others wait and
    open the result.

    Args:
        config: The corpus.
        context: Tokens per block.
        folder: Where tokenizer and blocks are kept.
        num_proc: Processes that tokenize; None uses the threads of this one. The result is the same.

    Returns:
        The corpus.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: The source is unusable or too small, or the folder holds another corpus.
    """
    target = Path(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.parent / f".{target.name}.lock"):
        if not storage.is_complete(target):
            # Only a killed process can have left these: nobody else works while the lock is held.
            for leftover in target.parent.glob(f".{target.name}.*.tmp"):
                shutil.rmtree(leftover)
            with storage.atomic_folder(target, overwrite=True) as temporary:
                _write_corpus(config, context, temporary, num_proc)
        return open_corpus(config, context, target)


def _write_corpus(config: DataConfig, context: int, folder: Path, num_proc: int | None) -> None:
    holdout = corpus_holdout(config)
    documents = None if config.streaming else read_documents(config)

    def texts(*, held_out: bool) -> Iterator[str]:
        rows = DocumentStream(config) if documents is None else ([row["text"]] for row in documents)
        return (text for row in rows for text in row if (text in holdout) == held_out)

    tokenizer = load_tokenizer(config.tokenizer, texts(held_out=False))
    tokenizer.save_pretrained(folder / TOKENIZER_NAME)
    vocab_size = vocabulary_size(tokenizer)
    dtype = "uint16" if vocab_size <= 1 << 16 else "uint32"

    counts: dict[str, int | None]
    counts = dict.fromkeys(("train_documents", "train_bytes", "train_tokens", "validation_documents"))
    validation = _encode(texts(held_out=True), tokenizer)
    if documents is not None:
        tokenized = _tokenize(documents, tokenizer, holdout, folder / "tokenized", num_proc)
        part = np.array(tokenized["held_out"])
        train = tokenized.select(np.flatnonzero(~part))
        kept = tokenized.select(np.flatnonzero(part))
        validation = _token_arrays(kept)
        counts = {
            "train_documents": len(train),
            "train_bytes": sum(train["bytes"]),
            "train_tokens": _write_tokens(_token_arrays(train, "Packing"), folder / TRAIN_NAME, dtype),
            "validation_documents": len(kept),
        }
        _check_train(counts["train_tokens"], context)
    if config.validation_files:
        given = read_validation_texts(config)
        validation, counts["validation_documents"] = _encode(given, tokenizer), len(given)
    limit = config.max_validation_tokens // context * context
    _write_tokens(validation, folder / VALIDATION_NAME, dtype, limit)
    blocks = _validation_blocks(config, context, folder / VALIDATION_NAME, dtype)
    shutil.rmtree(folder / "tokenized", ignore_errors=True)

    record = {
        "identity": corpus_identity(config, context),
        "dtype": dtype,
        "vocab_size": vocab_size,
        "validation_bytes": int(token_byte_lengths(tokenizer)[blocks[:, 1:]].sum()),
        "fingerprint": _fingerprint(config, tokenizer, folder),
        "counts": counts,
    }
    storage.write_json(folder / RECORD_NAME, record)


def _tokenize(
    documents: datasets.Dataset,
    tokenizer: PreTrainedTokenizerFast,
    holdout: Holdout,
    folder: Path,
    num_proc: int | None,
) -> datasets.Dataset:
    def tokenize(batch: dict[str, list[str]]) -> dict[str, list[Any]]:
        return {
            "input_ids": encode_documents(tokenizer, batch["text"]),
            "held_out": [text in holdout for text in batch["text"]],
            "bytes": [len(text.encode("utf-8")) for text in batch["text"]],
        }

    folder.mkdir()
    return documents.map(
        tokenize,
        batched=True,
        batch_size=_BATCH_DOCUMENTS,
        num_proc=num_proc,
        remove_columns=["text"],
        features=datasets.Features(
            {
                "input_ids": datasets.Sequence(datasets.Value("uint32")),
                "held_out": datasets.Value("bool"),
                "bytes": datasets.Value("int64"),
            }
        ),
        cache_file_name=str(folder / "documents.arrow"),
        load_from_cache_file=False,
        new_fingerprint="tokenized",  # the folder is its own cache: nothing need be hashed
        desc="Tokenizing",
    )


def _token_arrays(tokenized: datasets.Dataset, description: str | None = None) -> Iterator[Tokens]:
    # The documents' tokens, one behind the other, in arrays of a thousand documents.
    batches = tokenized.with_format("arrow").iter(1000)
    for batch in tqdm(batches, desc=description, total=-(-len(tokenized) // 1000), disable=description is None):
        yield batch["input_ids"].combine_chunks().flatten().to_numpy()


def _encode(texts: Iterable[str], tokenizer: PreTrainedTokenizerFast) -> Iterator[Tokens]:
    rows = iter(texts)
    while batch := list(itertools.islice(rows, _BATCH_DOCUMENTS)):
        yield np.concatenate(encode_documents(tokenizer, batch)).astype(np.uint32)


def _write_tokens(arrays: Iterable[Tokens], path: Path, dtype: str, limit: int | None = None) -> int:
    # Write token ids, of which no more than `limit`, and return how many.
    written = 0
    with open(path, "wb") as file:
        for array in arrays:
            kept = array if limit is None else array[: limit - written]
            kept.astype(np.dtype(dtype).newbyteorder("<")).tofile(file)
            written += len(kept)
            if written == limit:
                break
    return written


def _check_train(tokens: int | None, context: int) -> None:
    if tokens is not None and tokens < context:
        raise ValueError(
            f"data: the training part has {tokens} tokens, less than one block of {context}; "
            f"give more text or lower model.context"
        )


def _validation_blocks(config: DataConfig, context: int, path: Path, dtype: str) -> Tokens:
    tokens = np.fromfile(path, dtype=np.dtype(dtype).newbyteorder("<"))
    if config.max_validation_tokens < context:
        raise ValueError(
            f"data.max_validation_tokens: {config.max_validation_tokens} is less than one block of {context}; raise it"
        )
    if len(tokens) == 0:
        raise ValueError(
            f"data.validation_fraction: no document is held out at {config.validation_fraction}; "
            f"raise it, or name validation_files"
        )
    if len(tokens) < context:
        raise ValueError(
            f"data.validation_fraction: the validation part has {len(tokens)} tokens, less than one block of "
            f"{context}; raise it, or name validation_files"
        )
    return tokens[: len(tokens) // context * context].reshape(-1, context)  # (blocks, context)


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
