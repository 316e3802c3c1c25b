"""The divergence from a parent's predictions: what it adds to a step, and texts that a model writes."""

import copy
import math

import pytest
import torch
from trainer_fixtures import VOCABULARY, Blocks, arguments, build_model

from hf_progressive.growth import grow_model
from hf_progressive.training.parent_divergence import ParentDivergence, generated_blocks
from hf_progressive.training.trainer import ProgressiveTrainer

REPLAYED = torch.randint(64, (6, 16), generator=torch.Generator().manual_seed(8))
RATE, WEIGHT, EVERY, AT_ONCE = 0.5, 0.3, 2, 4


def by_hand(model, parent, blocks, steps, batch):
    """Train with plain gradient descent on the loss plus the divergence, written out."""
    for step in range(steps):
        ids = blocks[step * batch : (step + 1) * batch]
        loss = model(input_ids=ids, labels=ids).loss * (15 / 16)  # Trainer divides by GPT-2's labels, unused ones too
        if step % EVERY == 0:
            rows = [(step // EVERY * AT_ONCE + row) % len(REPLAYED) for row in range(AT_ONCE)]
            wanted, found = (one(input_ids=REPLAYED[rows]).logits.softmax(-1) for one in (parent, model))
            divergence = (wanted * (wanted.log() - found.log())).sum(-1).mean()
            loss = loss + WEIGHT * EVERY * divergence
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= RATE * gradient


@pytest.mark.parametrize("accumulated", [1, 2])
def test_it_is_a_part_of_the_loss_however_the_batch_is_divided(tmp_path, accumulated):
    model, parent = build_model(), build_model()
    with torch.no_grad():
        parent.transformer.wte.weight.mul_(3.0)
    expected = copy.deepcopy(model)
    by_hand(expected, parent, Blocks(length=16).blocks, steps=3, batch=8)
    settings = arguments(
        tmp_path, max_steps=3, optim="sgd", learning_rate=RATE, lr_scheduler_type="constant", max_grad_norm=0.0,
        per_device_train_batch_size=8 // accumulated, gradient_accumulation_steps=accumulated,
        train_sampling_strategy="sequential",
    )  # fmt: skip
    held = ParentDivergence(parent=parent, blocks=REPLAYED, weight=WEIGHT, every=EVERY, batch_size=AT_ONCE)
    trainer = ProgressiveTrainer(model, settings, train_dataset=Blocks(length=16), divergence=held)
    trainer.train()
    for found, wanted in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    logged = [entry["phi/divergence"] for entry in trainer.state.log_history if "phi/divergence" in entry]
    assert len(logged) == 2  # of three steps, the first and the third
    assert logged[0] > 0


def test_a_model_writes_what_it_predicts_with_and_without_a_cache():
    model = build_model().eval()
    with torch.no_grad():
        model.transformer.wte.weight.mul_(4.0)  # far from uniform
    found = generated_blocks(model, 5, 9, start=7, batch_size=3, seed=2)
    assert found.shape == (5, 9)
    assert (found[:, 0] == 7).all()
    generator, rows = torch.Generator().manual_seed(2), []
    for count in (3, 2):
        ids = torch.full((count, 1), 7)
        while ids.shape[1] < 9:
            chances = model(input_ids=ids, use_cache=False).logits[:, -1].softmax(-1)
            ids = torch.cat([ids, torch.multinomial(chances, 1, generator=generator)], dim=1)
        rows.append(ids)
    assert torch.equal(found, torch.cat(rows))


@pytest.mark.parametrize("wrong", [{"weight": 0.0}, {"every": 0}, {"blocks": torch.zeros(3)}, {"blocks": [[1]]}])
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ParentDivergence(**{"parent": torch.nn.Identity(), "blocks": REPLAYED} | wrong)


def test_a_parent_that_would_train_along_is_refused(tmp_path):
    model = build_model()
    held = ParentDivergence(parent=model, blocks=REPLAYED)
    with pytest.raises(ValueError, match=r"parent holds the model's own transformer\.wte\.weight, .* pass a copy"):
        ProgressiveTrainer(model, arguments(tmp_path), train_dataset=Blocks(length=16), divergence=held)
    model.requires_grad_(False)  # what does not move may be shared, as a base model is by adapters
    model.head = torch.nn.Linear(2, 2)
    ProgressiveTrainer(
        model, arguments(tmp_path), train_dataset=Blocks(length=16),
        divergence=ParentDivergence(parent=model.transformer, blocks=REPLAYED),
    )  # fmt: skip


def test_a_parent_of_another_vocabulary_or_context_is_refused_in_one_line():
    model, device = build_model(), torch.device("cpu")
    parent = grow_model(model, {"vocab_size": VOCABULARY + 4})
    for one, other, sizes in (
        (parent, model, "68 tokens and the model 64"),
        (model, parent, "64 tokens and the mo.* 68"),
    ):
        with pytest.raises(
            ValueError, match=rf"^parent predicts {sizes}; give a parent with the model's vocabulary.*$"
        ):
            ParentDivergence(parent=one, blocks=REPLAYED).of(other, 0, device)
    longer = grow_model(model, {"n_positions": 24})
    held = ParentDivergence(parent=longer, blocks=torch.zeros(2, 20, dtype=torch.long))
    with pytest.raises(ValueError, match=r"^blocks have 20 tokens, GPT2LMHeadModel has 16 learned positions; cut .*$"):
        held.require_fitting(model)
    held.of(longer, 0, device)
    for wrong, said in (
        ({"count": 0}, r"count is 0; give a whole number, 1 or more"),
        ({"length": 1}, r"length is 1; give a whole number, 2 or more"),
        ({"start": "def"}, r"start is 'def'; give a whole number, 0 or more"),
        ({"start": None}, r"start is None; .* no bos_token_id, take its eos_token_id"),
    ):
        with pytest.raises(ValueError, match=rf"^{said}$"):
            generated_blocks(model, **{"count": 2, "length": 4, "start": 7} | wrong)
    with pytest.raises(ValueError, match=r"^generated blocks have 19 tokens, .* 16 learned positions; .*$"):
        generated_blocks(model, 2, 20, start=7)
    with pytest.raises(
        ValueError, match=rf"^generated blocks hold the token id {VOCABULARY}, .* ids 0 to .* tokenizer$"
    ):
        generated_blocks(model, 2, 4, start=VOCABULARY)
    with pytest.raises(ValueError, match=r"^blocks hold the token id -1, .*$"):
        ParentDivergence(parent=model, blocks=torch.full((2, 8), -1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": math.nan}, "weight is nan; it must be above 0"),
        ({"every": 2.0}, r"every is 2\.0; give a whole number, 1 or more"),
        ({"batch_size": 0}, "batch_size is 0; give a whole number, 1 or more"),
    ],
)
def test_a_divergence_of_no_such_numbers_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        ParentDivergence(
            **{"parent": build_model(), "blocks": torch.zeros(2, 4, dtype=torch.long), "weight": 1.0} | change
        )
    with pytest.raises(ValueError, match="batch_size is 0; give a whole number, 1 or more"):
        generated_blocks(build_model(), 2, 4, start=0, batch_size=0)
