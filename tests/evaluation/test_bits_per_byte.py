"""Bits per byte against a slow float64 loop, the Trainer's own loss, and itself under another tokenizer."""

import copy
import math
import socket
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, default_data_collator

from hf_progressive.data import Corpus, token_byte_lengths, train_tokenizer
from hf_progressive.data.blocks import as_block
from hf_progressive.evaluation.bits_per_byte import (
    BitsPerByte,
    bits_per_byte,
    bits_per_byte_of_nats,
    cut_windows,
    text_bits_per_byte,
)

TEXTS = [
    "a rung grows from the rung below",
    "naïve 漢字 🙂 and\n\tmore of it, the rung " * 4,
    "x",
    "",
    "the end of it " * 9,
]
CONTEXT = 16


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, vocab_size=280, training_bytes=10_000)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=280, n_positions=CONTEXT, n_embd=32, n_layer=2, n_head=2)
    config.initializer_range = 0.3  # far from uniform predictions
    return GPT2LMHeadModel(config).eval()


class Blocks(Dataset):
    """Blocks of random tokens, special ones among them."""

    def __init__(self, count):
        self.tokens = torch.randint(280, (count, CONTEXT), generator=torch.Generator().manual_seed(1))
        self.tokens[:, 5] = 0

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index):
        return as_block(self.tokens[index])


def slow_nats(model, read, target):
    """Nats of one token, given the tokens before it: the model run on these alone, in float64."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([read])).logits[0, -1].tolist()
    return math.log(sum(math.exp(value - max(logits)) for value in logits)) - (logits[target] - max(logits))


def slow_blocks(model, blocks, lengths):
    model = copy.deepcopy(model).double()
    nats = tokens = byte_count = 0
    for row in blocks.tokens.tolist():
        for i in range(1, len(row)):
            nats += slow_nats(model, row[:i], row[i])
            tokens += 1
            byte_count += int(lengths[row[i]])
    return {"loss": nats / tokens, "bits_per_byte": nats / math.log(2) / byte_count, "tokens": tokens}


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_blocks_agree_with_a_slow_loop_in_float64(model, tokenizer, batch_size):
    blocks, lengths = Blocks(5), token_byte_lengths(tokenizer)
    expected = slow_blocks(model, blocks, lengths)
    model.train()
    measured = bits_per_byte(model, blocks, lengths, batch_size=batch_size, progress=False)
    assert model.training
    model.eval()
    assert {key: measured[key] for key in expected} == pytest.approx(expected, rel=1e-6)
    assert measured["bytes"] == lengths[blocks.tokens[:, 1:]].sum()


def test_blocks_that_do_not_fit_into_memory_are_halved(model, tokenizer, monkeypatch):
    blocks, lengths = (
        [{"input_ids": torch.arange(i, i + CONTEXT) % 50} for i in range(7)],
        [1] * model.config.vocab_size,
    )
    expected = bits_per_byte(model, blocks, lengths, progress=False)
    forward, sizes = model.forward, []

    def in_little_memory(input_ids, **arguments):
        sizes.append(len(input_ids))
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError
        return forward(input_ids=input_ids, **arguments)

    monkeypatch.setattr(model, "forward", in_little_memory)
    halved = bits_per_byte(model, blocks, lengths, progress=False)
    assert halved == pytest.approx(expected, rel=1e-9)
    assert sizes == [7, 3, 1, 2, 4, 2, 2]


def test_bfloat16_logits_are_summed_in_higher_precision(model, tokenizer):
    blocks, lengths = Blocks(4), token_byte_lengths(tokenizer)
    with torch.no_grad():
        logits = [model.bfloat16()(input_ids=row[None, :-1]).logits[0] for row in blocks.tokens]
    measured = bits_per_byte(model, blocks, lengths, progress=False)
    model.float()
    nats = sum(
        float(-torch.log_softmax(values.double(), -1)[range(CONTEXT - 1), row[1:]].sum())
        for values, row in zip(logits, blocks.tokens, strict=True)
    )
    assert measured["loss"] == pytest.approx(nats / (4 * (CONTEXT - 1)), rel=1e-3)  # the forward itself is bfloat16


def test_loss_of_a_trainer_converts_exactly(model, tokenizer, tmp_path):
    blocks, lengths = Blocks(7), token_byte_lengths(tokenizer)  # the last batch is smaller
    args = TrainingArguments(output_dir=tmp_path, per_device_eval_batch_size=3, use_cpu=True, report_to=[])
    trainer = Trainer(model=model, args=args, eval_dataset=blocks, data_collator=default_data_collator)
    corpus = SimpleNamespace(
        validation=blocks, context=CONTEXT, validation_bytes=int(lengths[blocks.tokens[:, 1:]].sum())
    )
    converted = trainer.evaluate()["eval_loss"] * Corpus.bits_per_nat_token.fget(corpus)
    measured = bits_per_byte(model, blocks, lengths, progress=False)
    assert converted == pytest.approx(measured["bits_per_byte"], rel=1e-6)
    assert converted == pytest.approx(slow_blocks(model, blocks, lengths)["bits_per_byte"], rel=1e-6)


def slow_texts(model, tokenizer, texts, overlap):
    """Each token from at least `overlap` + 1 tokens before it, as many as the windows leave it."""
    model = copy.deepcopy(model).double()
    nats = tokens = 0
    for text in texts:
        row = [tokenizer.bos_token_id, *tokenizer(text)["input_ids"]]
        begin, end = 0, CONTEXT
        for i in range(1, len(row)):
            if i > end:
                begin = i - 1 - overlap
                end = begin + CONTEXT
            nats += slow_nats(model, row[begin:i], row[i])
            tokens += 1
    byte_count = sum(len(text.encode()) for text in texts)
    return {
        "loss": nats / tokens,
        "bits_per_byte": nats / math.log(2) / byte_count,
        "tokens": tokens,
        "bytes": byte_count,
    }


@pytest.mark.parametrize(("overlap", "batch_size"), [(0, 1), (0, 4), (None, 3), (CONTEXT - 1, 8)])
def test_texts_agree_with_a_slow_loop_in_float64(model, tokenizer, overlap, batch_size):
    measured = text_bits_per_byte(model, tokenizer, TEXTS, overlap=overlap, batch_size=batch_size, progress=False)
    expected = slow_texts(model, tokenizer, TEXTS, CONTEXT // 2 if overlap is None else overlap)
    assert measured == pytest.approx(expected, rel=1e-6)


def test_tokenizers_are_compared_by_the_same_bytes(model):
    # A model of uniform predictions costs log2(vocabulary) bits per token, whatever the tokens are.
    for vocab_size in (258, 290):
        tokenizer = train_tokenizer(TEXTS, vocab_size=vocab_size, training_bytes=10_000)
        config = GPT2Config(vocab_size=vocab_size, n_positions=CONTEXT, n_embd=8, n_layer=1, n_head=1)
        uniform = GPT2LMHeadModel(config)
        torch.nn.init.zeros_(uniform.transformer.ln_f.weight)
        measured = text_bits_per_byte(uniform, tokenizer, TEXTS, progress=False)
        tokens = sum(len(tokenizer(text)["input_ids"]) for text in TEXTS)
        expected = tokens * math.log2(vocab_size) / sum(len(text.encode()) for text in TEXTS)
        assert measured["bits_per_byte"] == pytest.approx(expected, rel=1e-6)


@given(st.integers(1, 40), st.integers(1, 9), st.data())
def test_windows_predict_every_token_once_with_enough_before_it(length, size, data):
    overlap = data.draw(st.integers(0, size - 1))
    tokens = list(range(length))
    predicted = []
    for window in cut_windows(tokens, size, overlap):
        assert window.targets == [token + 1 for token in window.inputs]
        assert len(window.inputs) <= size
        first_new = len(window.inputs) - window.new
        assert first_new == min(overlap, window.inputs[0] + first_new)
        predicted += window.targets[first_new:]
    assert predicted == tokens[1:]


def test_metric_adds_up_however_it_is_fed():
    generator = np.random.default_rng(0)
    nats, byte_count = generator.exponential(100, 50), generator.integers(1, 300, 50)
    expected = float(nats.sum() / np.log(2) / byte_count.sum())

    whole = BitsPerByte().compute(predictions=nats, references=byte_count)
    parts = BitsPerByte()
    for i in range(0, 48, 16):
        parts.add_batch(predictions=nats[i : i + 16], references=byte_count[i : i + 16])
    for i in (48, 49):
        parts.add(prediction=nats[i], reference=byte_count[i])
    assert whole["bits_per_byte"] == pytest.approx(expected, rel=1e-12)
    assert parts.compute()["bits_per_byte"] == pytest.approx(expected, rel=1e-12)
    # It can be used again, and keeps nothing.
    assert parts.compute(predictions=[math.log(2)], references=[1]) == {"bits_per_byte": 1.0}


def test_metric_needs_no_network(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    metric = BitsPerByte()
    assert metric.compute(predictions=[math.log(2) * 8], references=[4]) == {"bits_per_byte": 2.0}
    assert "2101.00027" in metric.citation


def test_mistakes_are_named(model, tokenizer):
    with pytest.raises(ValueError, match=r"bits per byte: 0 bytes of text, so that there is nothing to divide by"):
        bits_per_byte_of_nats(1.0, 0)
    with pytest.raises(ValueError, match=r"blocks: there are none to measure"):
        bits_per_byte(model, [], [1] * 280, progress=False)
    blocks = [{"input_ids": torch.full((4,), 7)}]
    for wrong in (None, 3, [[1] * 280], ["a"]):
        with pytest.raises(ValueError, match=r"^token_bytes is an? \w+ that is no row of numbers; give the bytes of"):
            bits_per_byte(model, blocks, wrong, progress=False)
    with pytest.raises(ValueError, match=r"^token_bytes has 7 entries, and blocks hold the token id 7$"):
        bits_per_byte(model, blocks, [1] * 7, progress=False)
    for wrong, said in (
        (torch.zeros(2, 4, dtype=torch.long), "the first is a Tensor"),
        ([{"input_ids": [1, 2, 3]}], "input_ids of the first are a list"),
        ([{"ids": torch.zeros(4)}], "input_ids of the first are a NoneType"),
    ):
        with pytest.raises(ValueError, match=rf"^blocks: {said}; give items with input_ids that are tensors"):
            bits_per_byte(model, wrong, [1] * 280, progress=False)
    with pytest.raises(ValueError, match=r"overlap: 16 is not between 0 and 15, the context of 16 less one new token"):
        text_bits_per_byte(model, tokenizer, TEXTS, overlap=16)
    with pytest.raises(ValueError, match=r"windows of the context have 20 tokens, .* has 16 learned positions"):
        text_bits_per_byte(model, tokenizer, TEXTS, context=20, progress=False)
    with pytest.raises(ValueError, match=r"blocks hold the token id 999, GPT2LMHeadModel has the ids 0 to "):
        bits_per_byte(model, [{"input_ids": torch.full((4,), 999)}], [1] * 1000, progress=False)
    with pytest.raises(ValueError, match=r"0 bytes of text"):
        text_bits_per_byte(model, tokenizer, [""], progress=False)
    with pytest.raises(ValueError, match="texts: is one text, whose letters would be measured one by one"):
        text_bits_per_byte(model, tokenizer, "one text", progress=False)
    with pytest.raises(ValueError, match="tokenizer is a str; one of the tokenizers library, such as AutoTokenizer"):
        text_bits_per_byte(model, "ORG/d11", TEXTS, progress=False)


def test_blocks_of_several_lengths_or_of_one_token_are_refused(model):
    for lengths, message in (((4, 6), "blocks have 4 to 6 tokens"), ((1, 1), "blocks have 1 tokens")):
        blocks = [{"input_ids": torch.arange(length)} for length in lengths]
        with pytest.raises(ValueError, match=f"{message}; give blocks of one length, 2 or more, or measure texts by"):
            bits_per_byte(model, blocks, [1] * 280, progress=False)
