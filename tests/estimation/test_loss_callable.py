"""Fisher information of modules of any kind by a loss of one's own, against a loop over batches of one."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import hf_progressive
from hf_progressive.estimation import layer_rules
from hf_progressive.estimation.fisher import estimate_fisher
from hf_progressive.estimation.subspace import learn_subspace, select_weights


def randomized(model):
    generator = torch.Generator().manual_seed(0)
    for parameter in model.double().parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model.eval()


def slow_fisher(model, pairs, loss):
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for x, y in pairs:
        value = loss(model, (x[None], y[None])).sum()
        gradients = torch.autograd.grad(value, list(model.parameters()), allow_unused=True)
        for (name, square), gradient in zip(total.items(), gradients, strict=True):
            total[name] = square if gradient is None else square + gradient**2 / len(pairs)
    return total


def assert_same(actual, expected):
    assert list(actual) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-9, atol=1e-9 * float(value.max()), msg=name)


class Scale(nn.Module):
    """A layer of one number."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x * self.scale


def images():
    """Convolutions of every setting, with norms, and one that `torch.func` takes."""
    return nn.Sequential(
        nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2),
        nn.GroupNorm(2, 6),
        nn.Conv2d(6, 6, 3, padding="same", groups=3),
        nn.BatchNorm2d(6),
        Scale(),
        nn.Conv2d(6, 5, 3, padding=1, padding_mode="reflect", bias=False),
        nn.Flatten(2),
        nn.Conv1d(5, 4, 3, stride=2, padding=1, dilation=2),
        nn.ConvTranspose1d(4, 4, 2, groups=2),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(1),
        nn.LayerNorm(4),
        nn.Linear(4, 3),
    )


def pairs(count=6):
    x = torch.randn(count, 4, 7, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return [(row, torch.tensor(i % 3)) for i, row in enumerate(x)]


def batches(rows, size=4):
    return [tuple(torch.stack(t) for t in zip(*rows[i : i + size], strict=True)) for i in range(0, len(rows), size)]


def cross_entropy(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


@pytest.mark.parametrize("entries", [None, 1])
def test_layers_of_every_kind_equal_a_loop(entries, monkeypatch, caplog):
    if entries:  # no gradient of `torch.func`, and no image's patches, may wait for another
        monkeypatch.setattr(layer_rules, "_RERUN_ENTRIES", entries)
        monkeypatch.setattr(layer_rules, "_PATCH_ENTRIES", entries)
    model = randomized(images())
    actual = estimate_fisher(model, batches(pairs()), loss=cross_entropy)
    assert_same(actual, slow_fisher(model, pairs(), cross_entropy))
    assert not caplog.records


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.attention = nn.LSTM(8, 4, batch_first=True), nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.lstm(x.flatten(1, 2))[0]
        return self.head(self.attention(x, x, x)[0].mean(1))


def test_layers_of_several_tensors_are_taken_one_by_one(caplog):
    model = randomized(Recurrent())
    actual = estimate_fisher(model, batches(pairs()), loss=cross_entropy)
    assert_same(actual, slow_fisher(model, pairs(), cross_entropy))
    assert "one by one" in caplog.text


class Picking(nn.Module):
    """An expert that sees the rows it is given, as many as there are examples and not one of each."""

    def __init__(self, picked):
        super().__init__()
        self.before, self.expert, self.picked = nn.Linear(8, 8), nn.Linear(8, 3), picked

    def forward(self, x):
        rows = self.before(x).flatten(0, 2)  # 28 for each example
        picked = torch.tensor([place for place in self.picked if place < len(rows)])
        return rows.new_zeros(len(rows), 3).index_add(0, picked, self.expert(rows[picked])).view(len(x), 28, 3).sum(1)


@pytest.mark.parametrize("picked", [(0, 28, 30, 90), (28, 0, 60, 90), (0, 28, 56, 84)])
def test_rows_that_are_examples_by_their_number_alone_are_found_out(picked, caplog):
    model = randomized(Picking(picked))
    [batch] = batches(pairs(4))

    def loss(model, batch):
        return cross_entropy(model, batch)

    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for row in range(4):
        model.zero_grad()
        loss(model, batch)[row].backward()
        expected = {name: expected[name] + p.grad**2 / 4 for name, p in model.named_parameters()}
    if picked == (0, 28, 56, 84):  # one of each, in their order
        assert_same(estimate_fisher(model, [batch], loss=loss), expected)
        assert not caplog.records
        return
    estimate_fisher(model, [batch], loss=loss)
    assert "the rows of the Linear are not those of the sequences" in caplog.text


def test_targets_that_do_not_count():
    model, rows = randomized(nn.Linear(8, 3)), torch.randn(4, 5, 8, dtype=torch.float64)
    counted = torch.arange(5) < torch.tensor([5, 3, 1, 4])[:, None]

    def loss(model, batch):
        return model(batch["x"]).square().sum(-1), batch["counted"]

    actual = estimate_fisher(
        model, [{"x": rows, "counted": counted, "note": "kept"}], loss=loss, definition="sequence"
    )
    expected = torch.zeros_like(model.weight)
    for row, count in zip(rows, (5, 3, 1, 4), strict=True):
        value = model(row[:count]).square().sum()
        expected += torch.autograd.grad(value, model.weight)[0] ** 2 / 13
    torch.testing.assert_close(actual["weight"], expected)


@pytest.mark.parametrize(
    ("batch", "loss", "options", "message"),
    [
        (
            torch.ones(2, 8),
            lambda m, x: m(x).sum(),
            {},
            r"loss= returned \(\) for 2 examples; it must return the loss",
        ),
        (torch.ones(2, 8), lambda m, x: 1.0, {}, "loss= returned float for 2 examples"),
        (torch.ones(2, 8), lambda m, x: (m(x), x[0] > 0), {}, r"shape \(2, 3\), counted \(8,\)"),
        ((torch.ones(2, 8), torch.ones(3)), None, {}, r"first dimension \(batch\[0\] 2, batch\[1\] 3\)"),
        ("text", None, {}, "a batch is a str without tensors"),
        (torch.ones(2, 8), None, {"kind": "true"}, "kind='true' samples .*pass kind='empirical'"),
    ],
)
def test_mistakes_are_named(batch, loss, options, message):
    model = nn.Linear(8, 3)
    loss = loss or (lambda model, batch: model(batch[0]))
    with pytest.raises(ValueError, match=message) as caught:
        estimate_fisher(model, [batch], loss=loss, **options)
    assert "\n" not in str(caught.value)


def test_subspaces_of_convolutions_equal_dense_ones():
    model = randomized(images())
    layers = select_weights(model)
    assert {type(layer) for layer in layers.values()} == {nn.Conv2d, nn.Conv1d, nn.Linear}
    outputs = {}
    for name, layer in layers.items():
        layer.register_forward_hook(lambda *call, name=name: outputs.__setitem__(name, call[2]))
    [batch] = batches(pairs(), size=6)
    gradients = torch.autograd.grad(cross_entropy(model, batch).sum(), [outputs[name] for name in layers])
    for source, values in (
        ("weights", [layer.weight for layer in layers.values()]),
        ("activations", [outputs[name] for name in layers]),
        ("gradients", gradients),
    ):
        learned = learn_subspace(model, batches(pairs()), source=source, loss=cross_entropy, rank=2)
        for name, value in zip(layers, values, strict=True):
            front = value if source == "weights" else value.movedim(1, 0)  # outputs in front
            matrix = front.detach().reshape(len(front), -1)
            basis = torch.linalg.eigh(matrix @ matrix.T).eigenvectors[:, -2:]
            torch.testing.assert_close(learned[name] @ learned[name].T, basis @ basis.T, msg=f"{source} {name}")


def test_the_documented_programs_run():
    text = Path(hf_progressive.__file__).parents[1].joinpath("docs", "api.md").read_text(encoding="utf-8")
    section = text.partition("### Models that are no causal language models")[2].partition("\n## ")[0]
    names: dict[str, object] = {}
    for program in re.findall(r"```python\n(.*?)```", section, re.DOTALL):
        exec(program, names)
    assert set(names["fisher"]) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert all(value.any() for value in names["fisher"].values())
