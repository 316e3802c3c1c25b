"""Fisher information and subspaces of models that are no causal language models, against loops over their own loss."""

import pytest
import torch
from task_cases import BERT, CASES, build, examples, one_example, target_counts
from torch import nn
from transformers import BertConfig, BertForPreTraining, BertForSequenceClassification, BertModel

from hf_progressive.estimation.fisher import estimate_fisher
from hf_progressive.estimation.subspace import learn_subspace


def own_fisher(name, model, batch):
    """Σ (∇ own loss · targets)² / Σ targets over batches of one."""
    counts = target_counts(name, batch)
    total = {key: torch.zeros_like(p) for key, p in model.named_parameters()}
    for row, count in enumerate(counts):
        model.zero_grad()
        (model(**one_example(batch, row)).loss * count).backward()
        for key, parameter in model.named_parameters():
            if parameter.grad is not None:
                total[key] += parameter.grad**2 / counts.sum()
    model.zero_grad()
    return total


def assert_same(actual, expected, rtol):
    assert list(actual) == list(expected)
    largest = max(float(value.max()) for value in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=rtol, atol=rtol * largest, msg=name)


@pytest.mark.parametrize("name", CASES)
def test_equals_a_loop_over_the_models_own_loss(name, caplog):
    model, batch = build(name), examples(name)
    expected = own_fisher(name, model, batch)
    batches = [{key: value[part] for key, value in batch.items()} for part in (slice(0, 3), slice(3, 5))]
    together = estimate_fisher(model, batches, definition="sequence")
    assert bool(caplog.records) != CASES[name].together
    assert_same(together, expected, rtol=1e-5)  # some classes score in float32
    assert_same(together, estimate_fisher(model, [batch], definition="sequence", batched=False), rtol=1e-10)


def single_target_squares(model, losses):
    """Σ weight · (∇ loss)², over pairs of a weight and a loss."""
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for weight, loss in losses:
        gradients = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True, allow_unused=True)
        for value, gradient in zip(total.values(), gradients, strict=True):
            if gradient is not None:
                value += weight * gradient**2
    return total


def distance(actual, expected):
    first, second = (torch.cat([v.flatten() for v in values.values()]) for values in (actual, expected))
    return float((first - second).norm() / second.norm())


@pytest.mark.parametrize("name", ["class", "switches", "number", "answer", "tokens"])
def test_sampled_targets_follow_the_models_distribution(name):
    model, batch = build(name), one_example(examples(name), 2)
    output = model(**{key: value for key, value in batch.items() if not key.startswith(("label", "start", "end"))})
    if name == "number":  # a normal distribution of variance ½ around the mean: E (2 (y − m))² = 2
        losses = [(2.0, output.logits.sum())]
    elif name == "switches":
        yes = output.logits.sigmoid()[0]
        pairs = [(p, -p.log()) for p in yes] + [(1 - p, -(1 - p).log()) for p in yes]
        losses = [(float(p.detach()) / 3, loss) for p, loss in pairs]
    else:
        scores = [output.start_logits, output.end_logits] if name == "answer" else [output.logits]
        rows = torch.cat([each.reshape(-1, each.shape[-1]) for each in scores]).log_softmax(-1)
        rows = rows[batch["attention_mask"][0] == 1] if name == "tokens" else rows
        losses = [(float(p.detach().exp()) / len(rows), -p) for row in rows for p in row]
    exact = single_target_squares(model, losses)
    copies = {key: value.repeat(300, *[1] * (value.ndim - 1)) for key, value in batch.items()}
    unlabelled = {key: copies[key] for key in ("input_ids", "attention_mask")}
    assert distance(estimate_fisher(model, [copies, unlabelled], kind="true", seed=1), exact) < 0.15


def test_random_signs_leave_single_targets():
    model, batch = build("answer"), one_example(examples("answer"), 1)
    output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    starts, ends = (-logits[0].log_softmax(-1) for logits in (output.start_logits, output.end_logits))
    losses = [(0.5, starts[batch["start_positions"][0]]), (0.5, ends[batch["end_positions"][0]])]
    copies = {key: value.repeat(400, *[1] * (value.ndim - 1)) for key, value in batch.items()}
    assert distance(estimate_fisher(model, [copies]), single_target_squares(model, losses)) < 0.1


def test_draws_do_not_depend_on_batching():
    model, batch = build("number"), examples("number")
    whole = estimate_fisher(model, [batch], kind="true", seed=5)
    apart = estimate_fisher(model, [one_example(batch, row) for row in range(5)], kind="true", seed=5)
    assert_same(whole, apart, rtol=1e-9)
    assert_same(whole, estimate_fisher(model, [batch], kind="true", seed=5, batched=False), rtol=1e-9)


def test_answers_that_were_cut_off_are_no_targets():
    model, batch = build("answer"), examples("answer")
    batch["start_positions"][:] = 7  # the length of the sequences
    fisher = estimate_fisher(model, [batch], definition="sequence", batched=False)
    batch["start_positions"][:] = 99
    assert_same(estimate_fisher(model, [batch], definition="sequence"), fisher, rtol=1e-9)
    ends = own_fisher_of_ends(model, batch)
    assert_same(fisher, ends, rtol=1e-9)


def own_fisher_of_ends(model, batch):
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for row in range(5):
        one = one_example(batch, row)
        logits = model(input_ids=one["input_ids"], attention_mask=one["attention_mask"]).end_logits
        loss = nn.functional.cross_entropy(logits, one["end_positions"])
        for name, square in single_target_squares(model, [(1 / 5, loss)]).items():
            total[name] += square
    return total


class Smoothed(BertForSequenceClassification):
    """It scores itself otherwise than its class is known to."""

    def forward(self, input_ids=None, attention_mask=None, labels=None):
        output = super().forward(input_ids, attention_mask=attention_mask, labels=labels)
        if output.loss is not None:
            output.loss = nn.functional.cross_entropy(output.logits, labels, label_smoothing=0.2)
        return output


@pytest.mark.parametrize(
    ("model_type", "message"),
    [
        (
            BertModel,
            "the targets of a BertModel are not known here, but those of causal language models, .*pass loss=",
        ),
        (BertForPreTraining, r"a BertForPreTraining returns no logits \(B, T, V\), as a causal language model does"),
        (Smoothed, "Smoothed gives an example the loss .* as those of classification is .*; pass loss="),
    ],
)
def test_what_is_not_known_is_refused(model_type, message):
    model = model_type(BertConfig(**BERT, num_labels=3))
    batch = examples("class") if model_type is Smoothed else {"input_ids": torch.zeros(2, 5, dtype=torch.long)}
    with pytest.raises(ValueError, match=message):
        estimate_fisher(model, [batch])


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("class", {"labels": None}, "but no labels; only a causal .*: give labels, or pass kind='true'"),
        ("masked", {"labels": None}, "give labels, -100 where no token is to be predicted"),
        ("seq2seq", {"labels": None}, "give labels, from which the decoder's input is made"),
        ("class", {"labels": torch.tensor([0, 1, 2, 3, 0])}, "a label is 3; it must be from 0 to 2, or -100"),
        ("class", {"labels": torch.zeros(4).long()}, r"differ in their first dimension \(.*labels.* 4\)"),
        ("switches", {"labels": torch.zeros(5, 2)}, r"labels has shape \(5, 2\); 3 for each example are needed"),
        ("masked", {"labels": torch.zeros(5, 9).long()}, r"labels are for \(9,\) targets of each .* predicts \(7,\)"),
        ("masked", {"input_ids": None}, r"keys \['attention_mask', 'labels'\], but no input_ids"),
        ("masked", {"labels": torch.full((5, 7), -100)}, "no target token; .*or one label that counts"),
    ],
)
def test_mistakes_are_named(name, changes, message):
    batch = {key: value for key, value in {**examples(name), **changes}.items() if value is not None}
    with pytest.raises(ValueError, match=message) as caught:
        estimate_fisher(build(name), [batch])
    assert "\n" not in str(caught.value)


def test_the_model_is_left_as_it_was():
    model, batch = build("class").train(), examples("class")
    estimate_fisher(model, [batch | {"unknown": torch.zeros(5)}])  # a column that the model does not take
    assert model.config.problem_type is None
    assert model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_relative_positions_are_not_taken_for_examples():
    # As many examples as tokens: the table of relative positions has rows that could be examples by their number.
    model, batch = build("seq2seq-t5"), examples("seq2seq-t5", count=4, length=4)
    assert_same(
        estimate_fisher(model, [batch], definition="sequence"),
        estimate_fisher(model, [batch], definition="sequence", batched=False),
        rtol=1e-10,
    )


@pytest.mark.parametrize("source", ["gradients", "activations"])
def test_subspaces_of_a_masked_language_model(source):
    model, batch = build("masked"), examples("masked")
    learned = learn_subspace(model, [batch], source=source, rank=2)
    pieces = []
    for row, length in enumerate(batch["attention_mask"].sum(1)):
        one = one_example(batch, row)
        pieces.append({key: value[:, :length] for key, value in one.items()})
    for name, basis in learn_subspace(model, pieces, source=source, rank=2).items():
        torch.testing.assert_close(learned[name] @ learned[name].T, basis @ basis.T, rtol=1e-5, atol=1e-6, msg=name)


def test_subspaces_of_padded_encoder_decoders():
    model, batch = build("seq2seq-t5"), examples("seq2seq-t5")
    assert learn_subspace(model, [batch], source="gradients", rank=2)
    with pytest.raises(ValueError, match="cannot tell padding apart in an encoder-decoder model; use source="):
        learn_subspace(model, [batch], source="activations")
    assert learn_subspace(model, [batch | {"attention_mask": torch.ones(5, 7)}], source="activations", rank=2)
