"""Streams give the blocks that storing the corpus would give, to any number of processes and workers."""

import dataclasses
import json
import multiprocessing
import os
import pickle
import signal
import threading
import time
from pathlib import Path

import pytest
from accelerate import Accelerator, debug_launcher
from accelerate.state import AcceleratorState
from torch.utils.data import DataLoader

from hf_progressive.config import TokenizerConfig
from hf_progressive.data import (
    TokenStream,
    ahead,
    encoding,
    parts,
    prepare_corpus,
    rung_blocks,
    stream,
    train_tokenizer,
)
from hf_progressive.data.ahead import write_ahead
from hf_progressive.data.parts import TokenParts
from hf_progressive.storage import read_json
from hf_progressive.storage.locks import wait_lock

CONTEXT = 16


@pytest.fixture
def tokenizer(texts, tmp_path):
    train_tokenizer(texts, vocab_size=280, training_bytes=10_000).save_pretrained(tmp_path / "tokenizer")
    return TokenizerConfig(name=str(tmp_path / "tokenizer"))


def ids(blocks):
    return [blocks[i]["input_ids"].tolist() for i in range(len(blocks))]


def pair(config, folder):
    """The corpus stored in the source's order, and as a stream."""
    stored = dataclasses.replace(config, shuffle_seed=None)
    streamed = dataclasses.replace(config, streaming=True)
    return prepare_corpus(stored, CONTEXT, folder / "stored"), prepare_corpus(streamed, CONTEXT, folder / "streamed")


def test_stream_gives_the_stored_blocks(write, texts, tokenizer, tmp_path):
    stored, streamed = pair(write(texts, shards=3, tokenizer=tokenizer), tmp_path)
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
    assert streamed.span(3, 5)["corpus_blocks"] is None  # however far the stream was read ahead by then


def test_tokenizer_trained_on_a_stream_is_that_of_the_stored_corpus(write, texts, tmp_path):
    stored, streamed = pair(write(texts, shards=2), tmp_path)
    assert streamed.tokenizer.get_vocab() == stored.tokenizer.get_vocab()


@pytest.mark.parametrize("source", ["json", "parquet", "text"])
def test_parts_written_in_many_goes_are_the_stored_tokens(write, texts, tokenizer, tmp_path, monkeypatch, source):
    monkeypatch.setattr(ahead, "BATCH_DOCUMENTS", 4)
    monkeypatch.setattr(parts, "PART_TOKENS", 30 * CONTEXT)
    files = write(texts[10:20], source).files
    config = write(texts, source, shards=3, tokenizer=tokenizer, validation_files=files)
    stored, streamed = pair(config, tmp_path)
    folder, encoded = tmp_path / "streamed", []
    encode = encoding.encode_documents
    monkeypatch.setattr(encoding, "encode_documents", lambda t, batch: encoded.extend(batch) or encode(t, batch))
    for tokens in (1, 40 * CONTEXT, 41 * CONTEXT, 100 * CONTEXT, None):
        del encoded[:]
        write_ahead(folder, tokens)
    train = [text for text in texts if text and text not in texts[10:20]]
    assert 0 < len(encoded) < len(train)
    assert encoded == train[-len(encoded) :]  # the last call read on and tokenized nothing again
    assert write_ahead(folder, None) == 0
    written = TokenParts(folder / "stream", dtype="uint16")
    written.refresh()
    assert len(written.paths()) > 5
    assert written.is_whole
    assert streamed.train.length == len(stored.train)
    assert ids(rung_blocks(streamed, 0, len(stored.train))) == ids(rung_blocks(stored, 0, len(stored.train)))


def test_a_killed_reader_is_followed_by_one_that_reads_on(write, texts, tokenizer, tmp_path, monkeypatch):
    stored, streamed = pair(write(texts, shards=2, tokenizer=tokenizer), tmp_path)
    folder, length = tmp_path / "streamed", len(stored.train)
    monkeypatch.setattr(ahead, "BATCH_DOCUMENTS", 4)

    def die_in_the_third_part(self, part, append=TokenParts._append):
        if len(self._records) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        append(self, part)

    with monkeypatch.context() as patch:
        patch.setattr(TokenParts, "_append", die_in_the_third_part)
        patch.setattr(parts, "PART_TOKENS", 30 * CONTEXT)
        reader = multiprocessing.get_context("fork").Process(target=write_ahead, args=(folder, None))
        reader.start()
        reader.join(timeout=120)
    assert reader.exitcode == -signal.SIGKILL
    assert len(list((folder / "stream").glob("part-*.json"))) == 2
    assert ids(rung_blocks(streamed, 0, length + 3)) == ids(rung_blocks(stored, 0, length + 3))


@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_workers_load_the_stored_blocks(write, texts, tokenizer, tmp_path, workers):
    stored, streamed = pair(write(texts, tokenizer=tokenizer), tmp_path)
    blocks = pickle.loads(pickle.dumps(rung_blocks(streamed, 2, 24)))  # as a spawned worker gets it
    loader = DataLoader(blocks, batch_size=4, num_workers=workers)
    assert [row for batch in loader for row in batch["input_ids"].tolist()] == ids(rung_blocks(stored, 2, 24))


def read_by_one_of_two(corpus, folder):
    """What one of two processes gets, in a file of its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True)
    loader = accelerator.prepare(DataLoader(rung_blocks(corpus, 3, 16), batch_size=2, num_workers=2))
    batches = [batch["input_ids"].tolist() for batch in loader]
    (folder / f"{accelerator.process_index}.json").write_text(json.dumps(batches))


def test_two_processes_with_two_workers_each_get_the_batches_of_stored_blocks(write, texts, tokenizer, tmp_path):
    stored, streamed = pair(write(texts, tokenizer=tokenizer), tmp_path)
    debug_launcher(read_by_one_of_two, args=(streamed, tmp_path), num_processes=2)
    read = [json.loads((tmp_path / f"{i}.json").read_text()) for i in range(2)]
    together = [row for batches in zip(*read, strict=True) for batch in batches for row in batch]
    assert together == ids(rung_blocks(stored, 3, 16))


def test_the_reader_ends_with_the_process_that_started_it(write, texts, tokenizer, tmp_path):
    _, streamed = pair(write(texts, tokenizer=tokenizer), tmp_path)
    assert isinstance(streamed.train, TokenStream)

    def start_and_die():
        streamed.train.read_ahead(10**9)
        reader = stream._readers[os.getpid(), streamed.train.folder][0]
        (tmp_path / "pid").write_text(str(reader.pid))
        os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=start_and_die)
    process.start()
    process.join(timeout=60)
    pid, deadline = int((tmp_path / "pid").read_text()), time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            with open(f"/proc/{pid}/stat") as stat:
                if stat.read().split()[2] == "Z":
                    break
        except FileNotFoundError:
            break
        time.sleep(0.2)
    else:
        pytest.fail(f"process {pid} goes on reading")


def test_what_is_wrong_with_the_source_is_said_in_one_line(write, texts, tokenizer, tmp_path):
    config = write(texts[:40], tokenizer=tokenizer, validation_files=write(texts[40:]).files, streaming=True)
    streamed = prepare_corpus(config, CONTEXT, tmp_path / "data")
    (tmp_path / config.files[0] / "9.jsonl").write_text("{nope")
    with pytest.raises(ValueError, match=r"^data.files: cannot read \S*/9.jsonl: JSON parse error") as caught:
        ids(rung_blocks(streamed, 0, 10**6))
    assert "\n" not in str(caught.value)


def test_a_reader_that_is_gone_is_noticed(write, texts, tokenizer, tmp_path, monkeypatch):
    _, streamed = pair(write(texts, tokenizer=tokenizer), tmp_path)
    assert isinstance(streamed.train, TokenStream)
    monkeypatch.setattr(stream, "_SECONDS_OF_SILENCE", 0.5)
    with pytest.raises(ValueError, match="the process that reads the stream is gone; start the run again, it"):
        streamed.train.block(0)  # nobody was asked to read
    exists = Path.exists
    taken_away = stream.FAILURE_NAME  # by another run on the same corpus, which begins anew
    monkeypatch.setattr(Path, "exists", lambda path: path.name == taken_away or exists(path))
    with pytest.raises(ValueError, match="the process that reads the stream is gone; start the run again, it"):
        streamed.train.block(0)


def test_a_failure_is_told_while_no_other_reader_clears_up(tmp_path):
    teller = threading.Thread(target=ahead._tell, args=(tmp_path, ValueError("cannot read\n9.jsonl")))
    with wait_lock(tmp_path / ".lock"):
        teller.start()
        teller.join(0.2)
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    teller.join(60)
    assert read_json(tmp_path / stream.FAILURE_NAME) == {"reason": "cannot read 9.jsonl"}


def test_stream_smaller_than_a_block_is_named(write, texts, tokenizer, tmp_path):
    streamed = prepare_corpus(write(texts, tokenizer=tokenizer, streaming=True), CONTEXT, tmp_path / "data")
    assert isinstance(streamed.train, TokenStream)
    streamed.train.context = 100_000
    with pytest.raises(ValueError, match="data: the stream holds less than one block of 100000 tokens"):
        rung_blocks(streamed, 0, 1)[0]
