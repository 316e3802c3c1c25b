"""Batches, token losses and sampled targets."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from hf_progressive.estimation import likelihood
from hf_progressive.estimation.likelihood import read_batch, sample_targets, target_nll

CPU = torch.device("cpu")


def test_summed_losses_are_the_stock_class_loss():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, n_positions=8, vocab_size=31)).eval()
    ids = torch.randint(31, (3, 8))
    labels = ids.masked_fill(torch.rand(3, 8) < 0.3, -100)
    batch = read_batch({"input_ids": ids, "labels": labels}, CPU)
    nll = target_nll(model, batch, "empirical", torch.Generator())
    stock = model(input_ids=ids, labels=labels).loss
    torch.testing.assert_close(nll.sum() / batch.tokens_per_sequence.sum(), stock)


def test_samples_follow_the_distribution(monkeypatch):
    monkeypatch.setattr(likelihood, "_SAMPLED_ENTRIES", 1000)  # many pieces
    probabilities = torch.tensor([0.0, 0.5, 0.125, 0.0, 0.375, 0.0])
    logits = probabilities.log().expand(8, 5000, 6)
    drawn = sample_targets(logits, torch.zeros(8, 5000, dtype=torch.long), torch.Generator().manual_seed(0))
    frequencies = drawn.flatten().bincount(minlength=6) / drawn.numel()
    assert (frequencies[probabilities == 0] == 0).all()
    torch.testing.assert_close(frequencies, probabilities, atol=0.01, rtol=0)


def test_samples_do_not_depend_on_batching():
    logits, targets = torch.randn(6, 17, 50), torch.zeros(6, 17, dtype=torch.long)
    together, apart = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    whole = sample_targets(logits, targets, together)
    pieces = [sample_targets(logits[i : i + 2], targets[i : i + 2], apart) for i in range(0, 6, 2)]
    assert torch.equal(whole, torch.cat(pieces))


def test_positions_of_packed_texts_are_refused_and_others_are_not():
    ids = torch.tensor([[1, 2, 3, 4]], dtype=torch.int32)
    plain = read_batch({"input_ids": ids, "position_ids": torch.arange(4)[None]}, torch.device("cpu"))
    assert plain.input_ids.dtype == torch.long
    with pytest.raises(ValueError, match="position_ids are not 0, 1, 2, … along each sequence"):
        read_batch({"input_ids": ids, "position_ids": torch.tensor([[0, 1, 0, 1]])}, torch.device("cpu"))
