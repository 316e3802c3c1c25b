"""Preparing a corpus: blocks as a plain loop would cut them, nothing trained on that is validated, whole or absent."""

import dataclasses
import json
import multiprocessing
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_progressive.config import TokenizerConfig
from hf_progressive.data import Holdout, encoding, parts, prepare_corpus, read_documents, train_tokenizer
from hf_progressive.data import prepare as module
from hf_progressive.data.parts import TokenParts

CONTEXT = 16


def tokens_of(blocks):
    return [token for i in range(len(blocks)) for token in blocks[i]["input_ids"].tolist()]


def reference_tokens(documents, tokenizer):
    """Documents one after the other, each with the end-of-text token behind it."""
    tokens = []
    for text in documents:
        tokens += [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    return tokens


def gpt2_bytes():
    """The bytes that the characters of a byte-level vocabulary stand for, after Radford et al.'s own table."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


@pytest.mark.parametrize("source", ["json", "parquet", "text"])
def test_blocks_are_those_of_a_plain_loop(write, texts, tmp_path, source):
    config = write(texts, source, shards=2)
    corpus = prepare_corpus(config, CONTEXT, tmp_path / "data")
    documents = read_documents(config)["text"][:]
    holdout = Holdout(config.validation_fraction)
    train = reference_tokens([text for text in documents if text not in holdout], corpus.tokenizer)
    validation = reference_tokens([text for text in documents if text in holdout], corpus.tokenizer)

    order = np.random.default_rng(config.shuffle_seed).permutation(len(train) // CONTEXT)
    blocks = [train[i * CONTEXT : (i + 1) * CONTEXT] for i in order]
    assert tokens_of(corpus.train) == [token for block in blocks for token in block]
    assert tokens_of(corpus.validation) == validation[: len(validation) // CONTEXT * CONTEXT]
    block = corpus.train[3]
    assert block["input_ids"].tolist() == blocks[3]
    assert block["labels"].tolist() == [-100, *blocks[3][1:]]
    assert block["input_ids"].dtype == torch.int64

    summary = corpus.summary()
    assert summary["train_documents"] + summary["validation_documents"] == 59  # one of the sixty is empty
    assert summary["train_tokens"] == len(train)
    assert summary["train_blocks"] == len(train) // CONTEXT
    assert summary["train_bytes"] == sum(len(text.encode()) for text in documents if text not in holdout)


@pytest.mark.parametrize("context", [3, CONTEXT])
def test_validation_bytes_are_those_of_the_predicted_tokens(write, texts, tmp_path, context):
    corpus = prepare_corpus(write(texts), context, tmp_path / "data")
    expected, table = 0, gpt2_bytes()
    for i in range(len(corpus.validation)):
        predicted = corpus.validation[i]["input_ids"][1:].tolist()
        spelled = "".join(corpus.tokenizer.convert_ids_to_tokens([t for t in predicted if t != 0]))
        text = bytes(table[character] for character in spelled)
        decoded = corpus.tokenizer.decode(predicted, skip_special_tokens=True)
        assert text.decode("utf-8", "ignore") == decoded.replace("�", "")
        expected += len(text)
    assert corpus.validation_bytes == expected
    # One nat per predicted token, in bits, over the bytes.
    nats = len(corpus.validation) * (context - 1)
    assert corpus.bits_per_nat_token == pytest.approx(nats / np.log(2) / expected, rel=1e-12)


def test_duplicates_never_straddle_the_two_parts(write, texts, tmp_path):
    repeated = [text for text in texts if text] * 3
    config = write(repeated, validation_fraction=0.3, shuffle_seed=None)
    corpus = prepare_corpus(config, CONTEXT, tmp_path / "data")
    train, validation = (
        {text for text in corpus.tokenizer.decode(tokens_of(part)).split("<|endoftext|>")[:-1] if text}
        for part in (corpus.train, corpus.validation)
    )
    assert train
    assert validation
    assert train <= set(repeated)
    assert not train & validation


def test_given_validation_files_are_the_validation_part_and_are_not_trained_on(write, texts, tmp_path):
    given = [texts[1], texts[9], "a text of the validation files alone"]
    files = write(given).files
    corpus = prepare_corpus(write(texts, validation_files=files, shuffle_seed=None), CONTEXT, tmp_path / "data")
    train = reference_tokens([text for text in texts if text and text not in given], corpus.tokenizer)
    validation = reference_tokens(given, corpus.tokenizer)
    assert tokens_of(corpus.train) == train[: len(train) // CONTEXT * CONTEXT]
    assert tokens_of(corpus.validation) == validation[: len(validation) // CONTEXT * CONTEXT]


def test_validation_part_is_limited_to_its_first_blocks(write, texts, tmp_path):
    whole = prepare_corpus(write(texts), CONTEXT, tmp_path / "whole")
    limited = prepare_corpus(write(texts, max_validation_tokens=3 * CONTEXT + 5), CONTEXT, tmp_path / "limited")
    assert len(limited.validation) == 3
    assert tokens_of(limited.validation) == tokens_of(whole.validation)[: 3 * CONTEXT]
    assert tokens_of(limited.train) == tokens_of(whole.train)


def test_large_vocabularies_are_stored_in_four_bytes(write, texts, tmp_path):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = ["<|endoftext|>", *(f"<unused {i}>" for i in range(1 << 16)), *alphabet]
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    tokenizer.save_pretrained(tmp_path / "large")
    config = write(texts, tokenizer=TokenizerConfig(name=str(tmp_path / "large")), shuffle_seed=None)
    corpus = prepare_corpus(config, CONTEXT, tmp_path / "data")
    assert corpus.vocab_size == 1 + (1 << 16) + 256
    assert corpus.tokenizer.decode(tokens_of(corpus.train)).startswith(texts[0] + "<|endoftext|>")


def test_result_does_not_depend_on_the_number_of_processes(write, texts, tmp_path):
    config = write(texts)
    one, two = (prepare_corpus(config, CONTEXT, tmp_path / f"{n}", num_proc=n) for n in (None, 2))
    assert one.fingerprint == two.fingerprint
    assert tokens_of(one.train) == tokens_of(two.train)


def test_fingerprint_tells_corpora_apart(write, texts, tmp_path):
    config = write(texts)
    others = [config, dataclasses.replace(config, shuffle_seed=1), dataclasses.replace(config, max_documents=50)]
    prints = [prepare_corpus(other, CONTEXT, tmp_path / f"{i}").fingerprint for i, other in enumerate(others)]
    assert len(set(prints)) == 3


def test_prepared_corpus_is_opened_and_not_made_again(write, texts, tmp_path, monkeypatch):
    config = write(texts)
    first = prepare_corpus(config, CONTEXT, tmp_path / "data")
    shutil.rmtree(config.files[0])  # not even the source is needed any more
    second = prepare_corpus(config, CONTEXT, tmp_path / "data")
    assert second.summary() == first.summary()
    assert tokens_of(second.train) == tokens_of(first.train)


def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)


def test_killed_preparation_leaves_nothing_and_is_made_up_for(write, texts, tmp_path, monkeypatch):
    config, folder = write(texts), tmp_path / "run" / "data"
    context = multiprocessing.get_context("fork")
    for step in ("_tokenize", "_validation_blocks", "_fingerprint"):
        with monkeypatch.context() as patch:
            patch.setattr(module, step, die)
            process = context.Process(target=prepare_corpus, args=(config, CONTEXT, folder))
            process.start()
            process.join(timeout=120)
        assert process.exitcode == -signal.SIGKILL
        assert not folder.exists()
    corpus = prepare_corpus(config, CONTEXT, folder)
    assert sorted(p.name for p in folder.parent.iterdir()) == [".data.lock", "data"]
    assert corpus.fingerprint == prepare_corpus(config, CONTEXT, tmp_path / "undisturbed").fingerprint


def test_a_killed_preparation_goes_on_behind_its_last_part(write, texts, tmp_path, monkeypatch):
    config, folder = write(texts), tmp_path / "run" / "data"
    whole = prepare_corpus(config, CONTEXT, tmp_path / "undisturbed")
    monkeypatch.setattr(module, "BATCH_DOCUMENTS", 4)
    monkeypatch.setattr(parts, "PART_TOKENS", 30 * CONTEXT)

    def die_in_the_fourth_part(self, part, append=TokenParts._append):
        if len(self._records) == 3:
            die()
        append(self, part)

    with monkeypatch.context() as patch:
        patch.setattr(TokenParts, "_append", die_in_the_fourth_part)
        process = multiprocessing.get_context("fork").Process(target=prepare_corpus, args=(config, CONTEXT, folder))
        process.start()
        process.join(timeout=120)
    assert process.exitcode == -signal.SIGKILL
    done = sum(1 for _ in (folder.parent / ".data.unfinished" / "parts").glob("part-*.json"))
    assert done == 3

    monkeypatch.setattr(module, "load_tokenizer", None)  # trained once
    encoded = []
    encode = encoding.encode_documents
    monkeypatch.setattr(encoding, "encode_documents", lambda t, batch: encoded.extend(batch) or encode(t, batch))
    corpus = prepare_corpus(config, CONTEXT, folder)
    assert corpus.fingerprint == whole.fingerprint
    assert corpus.summary() == whole.summary()
    assert len(encoded) == 59 - 3 * 4
    assert sorted(p.name for p in folder.parent.iterdir()) == [".data.lock", "data"]


def test_half_done_work_on_another_corpus_is_not_gone_on_with(write, texts, tmp_path, monkeypatch):
    config, folder = write(texts), tmp_path / "data"
    with monkeypatch.context() as patch:
        patch.setattr(module, "_fingerprint", die)
        process = multiprocessing.get_context("fork").Process(target=prepare_corpus, args=(config, CONTEXT, folder))
        process.start()
        process.join(timeout=120)
    assert (tmp_path / ".data.unfinished" / "tokenizer").exists()
    other = dataclasses.replace(config, max_documents=50)
    expected = prepare_corpus(other, CONTEXT, tmp_path / "other").fingerprint
    assert prepare_corpus(other, CONTEXT, folder).fingerprint == expected


def test_two_processes_prepare_it_once(write, texts, tmp_path):
    config, folder = write(texts), tmp_path / "data"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=prepare_corpus, args=(config, CONTEXT, folder)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert prepare_corpus(config, CONTEXT, folder).summary()["train_blocks"] > 0


def test_folder_with_another_corpus_is_refused(write, texts, tmp_path):
    config = write(texts)
    prepare_corpus(config, CONTEXT, tmp_path / "data")
    message = r"data: holds a corpus prepared otherwise \(context was 16, is 8; max_documents was None, is 5\)"
    with pytest.raises(ValueError, match=message):
        prepare_corpus(dataclasses.replace(config, max_documents=5), 8, tmp_path / "data")


def test_changed_tokenizer_is_refused(write, texts, tmp_path):
    config = write(texts)
    prepare_corpus(config, CONTEXT, tmp_path / "data")
    other = train_tokenizer(texts, vocab_size=270, training_bytes=10_000)
    other.save_pretrained(tmp_path / "data" / "tokenizer")
    record = json.loads((tmp_path / "data" / "manifest.json").read_text())
    for name, entry in record["files"].items():
        entry["size"] = (tmp_path / "data" / name).stat().st_size
    (tmp_path / "data" / "manifest.json").write_text(json.dumps(record))
    with pytest.raises(
        ValueError, match=r"a vocabulary of 270, the blocks were made with one of 280; remove the fold"
    ):
        prepare_corpus(config, CONTEXT, tmp_path / "data")


def test_a_corpus_prepared_elsewhere_is_opened_there(write, texts, tmp_path):
    config = write(texts)
    there = prepare_corpus(config, CONTEXT, tmp_path / "there" / "data")
    named = dataclasses.replace(config, prepared=str(tmp_path / "there" / "data"))
    here = prepare_corpus(named, CONTEXT, tmp_path / "here" / "data")
    assert here.summary() == there.summary()
    assert not (tmp_path / "here").exists()
    with pytest.raises(
        ValueError, match="holds no prepared corpus; `hf-progressive prepare` writes one into the folder"
    ):
        prepare_corpus(dataclasses.replace(config, prepared=str(tmp_path)), CONTEXT, tmp_path / "here" / "data")


MISTAKES = {
    "no validation document": (
        {"validation_fraction": 1e-9},
        {},
        r"data.validation_fraction: no document of \d+ is held out at 1e-09; raise it to 0\.\d+ or more, or name",
    ),
    "small validation part": (
        {},
        {"context": 4096},
        r"data.validation_fraction: the validation part has \d+ tokens, less than one block of 4096; raise it, or",
    ),
    "validation limit below a block": (
        {"max_validation_tokens": 10},
        {},
        r"data.max_validation_tokens: 10 is less than one block of 16; raise it",
    ),
    "corpus smaller than a block": (
        {},
        {"context": 100_000},
        r"data: the training part has \d+ tokens, less than one block of 100000; give more text or lower model.cont",
    ),
    "large vocabulary": (
        {"tokenizer": TokenizerConfig(vocab_size=5000)},
        {},
        r"data.tokenizer.vocab_size: the corpus yields \d+ entries only, not 5000; lower vocab_size to that",
    ),
    "empty corpus": ({}, {"texts": ["", ""]}, r"data.source: json \(.*\) holds no document"),
}


@pytest.mark.parametrize(("options", "call", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_named_in_one_line_and_leave_nothing(write, texts, tmp_path, options, call, message):
    config = write(call.get("texts", texts), **options)
    with pytest.raises(ValueError, match=message) as caught:
        prepare_corpus(config, call.get("context", CONTEXT), tmp_path / "run" / "data")
    assert "\n" not in str(caught.value)
    assert [p.name for p in (tmp_path / "run").iterdir()] == [".data.lock"]
