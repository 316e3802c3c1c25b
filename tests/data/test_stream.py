"""Streams give the blocks that storing the corpus would give, from any block, read by one process or several."""

import dataclasses
import json
import pickle

import pytest
from accelerate import Accelerator, debug_launcher
from accelerate.state import AcceleratorState
from torch.utils.data import DataLoader

from hf_progressive.config import TokenizerConfig
from hf_progressive.data import TokenStream, prepare_corpus, rung_blocks, train_tokenizer
from hf_progressive.data import stream as module

CONTEXT = 16


@pytest.fixture
def tokenizer(texts, tmp_path):
    train_tokenizer(texts, vocab_size=280, training_bytes=10_000).save_pretrained(tmp_path / "tokenizer")
    return TokenizerConfig(name=str(tmp_path / "tokenizer"))


def ids(blocks):
    return [block["input_ids"].tolist() for block in blocks]


def pair(config, folder):
    """The corpus stored in the source's order, and as a stream."""
    stored = dataclasses.replace(config, shuffle_seed=None)
    streamed = dataclasses.replace(config, streaming=True)
    return prepare_corpus(stored, CONTEXT, folder / "stored"), prepare_corpus(streamed, CONTEXT, folder / "streamed")


@pytest.mark.parametrize("source", ["json", "parquet", "text"])
def test_stream_gives_the_stored_blocks(write, texts, tokenizer, tmp_path, source):
    stored, streamed = pair(write(texts, source, shards=3, tokenizer=tokenizer), tmp_path)
    length = len(stored.train)
    assert ids(streamed.validation) == ids(stored.validation)
    assert streamed.validation_bytes == stored.validation_bytes
    assert streamed.summary()["train_blocks"] is None  # nobody has read it to its end
    for first, count in ((length + 2, 3), (0, 10), (length - 5, 20), (7, 3), (2 * length + 3, 4)):
        assert ids(rung_blocks(streamed, first, count)) == ids(rung_blocks(stored, first, count))
    assert streamed.summary()["train_blocks"] == length
    spans = [corpus.span(length - 5, 20) for corpus in (streamed, stored)]
    assert spans[0].pop("fingerprint") != spans[1].pop("fingerprint")  # a stream is known by its source
    assert spans[0] == spans[1]


def test_tokenizer_trained_on_a_stream_is_that_of_the_stored_corpus(write, texts, tmp_path):
    stored, streamed = pair(write(texts, shards=2), tmp_path)
    assert streamed.tokenizer.get_vocab() == stored.tokenizer.get_vocab()


def test_given_validation_files_are_not_trained_on(write, texts, tokenizer, tmp_path):
    files = write(texts[10:20]).files
    stored, streamed = pair(write(texts, tokenizer=tokenizer, validation_files=files), tmp_path)
    length = len(stored.train)
    assert ids(rung_blocks(streamed, 0, length)) == ids(rung_blocks(stored, 0, length))
    assert ids(streamed.validation) == ids(stored.validation)


def test_start_at_a_later_block_reads_from_the_nearest_position(write, texts, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_BATCH_DOCUMENTS", 4)
    stored, streamed = pair(write(texts, "parquet", shards=2, tokenizer=tokenizer), tmp_path)
    folder, length = tmp_path / "streamed" / "positions", len(stored.train)
    streamed.train.position_tokens = 40 * CONTEXT
    assert len(list(rung_blocks(streamed, 0, length - 20))) == length - 20
    positions = sorted(folder.glob("position-*.json"))
    assert len(positions) >= 4
    last = json.loads(positions[-1].read_text())["block"]

    encoded = []
    encode = module.encode_documents
    monkeypatch.setattr(module, "encode_documents", lambda t, batch: encoded.extend(batch) or encode(t, batch))
    assert ids(rung_blocks(streamed, last + 2, 10)) == ids(rung_blocks(stored, last + 2, 10))
    assert len(encoded) <= 12
    # A range between positions, one at a position, and one before the first.
    for first in (last - 3, last, 1):
        assert ids(rung_blocks(streamed, first, 6)) == ids(rung_blocks(stored, first, 6))


def test_loader_may_read_ahead_in_one_worker_but_not_in_two(write, texts, tokenizer, tmp_path):
    stored, streamed = pair(write(texts, tokenizer=tokenizer), tmp_path)
    blocks = pickle.loads(pickle.dumps(rung_blocks(streamed, 2, 8)))  # as a spawned worker gets it
    loaded = [row for batch in DataLoader(blocks, batch_size=4, num_workers=1) for row in batch["input_ids"].tolist()]
    assert loaded == ids(rung_blocks(stored, 2, 8))
    with pytest.raises(ValueError, match="dataloader_num_workers: 2 workers would each read the whole stream; use 0"):
        list(DataLoader(blocks, batch_size=4, num_workers=2))


def read_by_one_of_two(blocks, folder):
    """What one of two processes gets, in a file of its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True)
    loader = accelerator.prepare(DataLoader(blocks, batch_size=2))
    batches = [batch["input_ids"].tolist() for batch in loader]
    (folder / f"{accelerator.process_index}.json").write_text(json.dumps(batches))


def test_two_processes_get_the_batches_that_they_would_get_of_stored_blocks(write, texts, tokenizer, tmp_path):
    corpora = pair(write(texts, tokenizer=tokenizer), tmp_path)
    read = []
    for name, corpus in zip(("stored", "streamed"), corpora, strict=True):
        folder = tmp_path / f"read-{name}"
        folder.mkdir()
        debug_launcher(read_by_one_of_two, args=(rung_blocks(corpus, 3, 16), folder), num_processes=2)
        read.append([json.loads((folder / f"{i}.json").read_text()) for i in range(2)])
    assert read[0] == read[1]
    stored = ids(rung_blocks(corpora[0], 3, 16))
    assert [row for pair in zip(*read[0], strict=True) for batch in pair for row in batch] == stored


def test_stream_smaller_than_a_block_is_named(write, texts, tokenizer, tmp_path):
    streamed = prepare_corpus(write(texts, tokenizer=tokenizer, streaming=True), CONTEXT, tmp_path / "data")
    assert isinstance(streamed.train, TokenStream)
    streamed.train.context = 100_000
    with pytest.raises(ValueError, match="data: the stream holds less than one block of 100000 tokens"):
        next(iter(rung_blocks(streamed, 0, 1)))
