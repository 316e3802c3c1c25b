"""Subspaces against dense eigendecompositions."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from hf_progressive.estimation import subspace
from hf_progressive.estimation.subspace import (
    leading_directions,
    learn_subspace,
    output_covariances,
    select_weights,
    subspace_flops,
)


def projector(basis):
    return basis @ basis.T


def dense_basis(covariance, energy):
    """Eigenvectors of an (out, out) matrix in float64, the fewest that hold the energy."""
    values, vectors = torch.linalg.eigh(covariance.double())
    values, vectors = values.flip(0), vectors.flip(1)
    rank = next(r for r in range(1, len(values) + 1) if values[:r].sum() >= energy * values.sum())
    return vectors[:, :rank]


def assert_same_span(basis, expected, **tolerance):
    assert basis.shape == expected.shape
    gram = basis.T @ basis
    torch.testing.assert_close(gram, torch.eye(len(gram), dtype=basis.dtype), **tolerance)
    torch.testing.assert_close(projector(basis), projector(expected).to(basis), **tolerance)


def decaying(rows, columns, decay=0.8, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(rows, rows, dtype=dtype, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(columns, columns, dtype=dtype, generator=generator)).Q
    values = decay ** torch.arange(min(rows, columns), dtype=dtype)
    return (left[:, : len(values)] * values) @ right[:, : len(values)].T


@pytest.mark.parametrize("shape", [(12, 12), (9, 17), (17, 9)])  # in a square one only orientation tells sides apart
@pytest.mark.parametrize("layer_type", [nn.Linear, Conv1D])
def test_weights_give_the_output_side(layer_type, shape):
    out, inputs = shape
    matrix = decaying(out, inputs)
    layer = (nn.Linear(inputs, out) if layer_type is nn.Linear else Conv1D(out, inputs)).double()
    with torch.no_grad():
        layer.weight.copy_(matrix if layer_type is nn.Linear else matrix.T)
    basis = learn_subspace(nn.Sequential(layer), energy=0.9)["0.weight"]
    assert_same_span(basis, dense_basis(matrix @ matrix.T, 0.9))


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=16, n_head=2, n_positions=16, vocab_size=61)).double()


def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        num_hidden_layers=2,
        hidden_size=16,
        intermediate_size=24,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=61,
        tie_word_embeddings=False,
        attention_bias=True,
    )
    return LlamaForCausalLM(config).double()


def observed_outputs(model, layers, ids):
    """Outputs of layers, and gradients of the summed loss there, by name: tokens × out, one sequence at a time."""
    seen = {}
    for name, layer in layers.items():
        layer.register_forward_hook(lambda *call, name=name: seen.__setitem__(name, call[2]))
    outputs, gradients = {name: [] for name in layers}, {name: [] for name in layers}
    for row in ids:
        logits = model.eval()(row[None]).logits[0, :-1]
        loss = nn.functional.cross_entropy(logits, row[1:], reduction="sum")
        for name, gradient in zip(seen, torch.autograd.grad(loss, list(seen.values())), strict=True):
            outputs[name].append(seen[name][0].detach())
            gradients[name].append(gradient[0])
    return {n: torch.cat(v) for n, v in outputs.items()}, {n: torch.cat(v) for n, v in gradients.items()}


@pytest.mark.parametrize("build", [gpt2, llama])
def test_gradients_and_activations_equal_dense_covariances(build):
    observed, model, ids = build(), build(), torch.randint(61, (5, 9))
    layers = select_weights(model)
    outputs, gradients = observed_outputs(observed, select_weights(observed), ids)
    for source, rows in (("activations", outputs), ("gradients", gradients)):
        learned = learn_subspace(model.train(), [ids[:2], ids[2:]], source=source, energy=0.8)
        assert learned.keys() == layers.keys()
        for name, basis in learned.items():
            assert_same_span(basis, dense_basis(rows[name].T @ rows[name], 0.8))
    assert model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("source", ["gradients", "activations"])
def test_padding_does_not_count(source):
    model, ids = gpt2(), torch.randint(61, (2, 9))
    mask = torch.tensor([[1] * 9, [1] * 5 + [0] * 4])
    padded = {"input_ids": ids, "attention_mask": mask}
    from_padded = learn_subspace(model, [padded], source=source, rank=3)
    from_pieces = learn_subspace(model, [ids[:1], ids[1:, :5]], source=source, rank=3)
    for name, basis in from_pieces.items():
        assert_same_span(from_padded[name], basis)


def test_embeddings_and_head_take_part_only_if_asked():
    tied, untied = gpt2(), llama()
    assert not {"transformer.wte.weight", "transformer.wpe.weight"} & set(select_weights(tied))
    assert len(select_weights(tied)) == 2 * 4
    assert "lm_head.weight" not in select_weights(untied)
    assert len(select_weights(untied)) == 2 * 7
    chosen = learn_subspace(tied, parameters=["*.wte.weight", "*.h.1.*.c_fc.weight"], rank=2)
    assert {name: tuple(basis.shape) for name, basis in chosen.items()} == {
        "transformer.wte.weight": (16, 2),
        "transformer.h.1.mlp.c_fc.weight": (64, 2),
    }
    assert learn_subspace(untied, parameters="lm_head.weight", rank=2)["lm_head.weight"].shape == (61, 2)


@pytest.mark.parametrize("covariance", [False, True])
def test_random_projection_finds_the_same_span(covariance, monkeypatch):
    matrix = decaying(300, 300 if covariance else 240, decay=0.9)
    matrix = matrix @ matrix.T if covariance else matrix
    exact = leading_directions(matrix, energy=0.99, covariance=covariance)
    monkeypatch.setattr(subspace, "RANDOMIZED_ABOVE", 100)
    monkeypatch.setattr(subspace, "_FIRST_SKETCH", 16)  # too small: it has to grow
    monkeypatch.setattr(subspace, "_decomposed", None)  # must not be needed
    before = torch.random.get_rng_state()
    sketched = [leading_directions(matrix, energy=0.99, covariance=covariance, seed=7) for _ in range(2)]
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(*sketched)
    assert_same_span(sketched[0], exact, atol=1e-5, rtol=0)
    fixed = leading_directions(matrix, rank=9, covariance=covariance)
    assert_same_span(fixed, exact[:, :9], atol=1e-5, rtol=0)


def test_a_flat_spectrum_is_decomposed_exactly(monkeypatch):
    matrix = torch.randn(120, 120, dtype=torch.float64)
    monkeypatch.setattr(subspace, "RANDOMIZED_ABOVE", 100)
    monkeypatch.setattr(subspace, "_FIRST_SKETCH", 16)
    assert_same_span(leading_directions(matrix, energy=0.9), dense_basis(matrix @ matrix.T, 0.9))


def test_ranks_at_the_edges():
    matrix = decaying(6, 4, decay=0.5)
    assert leading_directions(matrix, energy=1.0).shape == (6, 4)
    assert leading_directions(matrix, rank=100).shape == (6, 4)
    assert leading_directions(matrix.float(), energy=1e-6).shape == (6, 1)
    assert leading_directions(torch.zeros(6, 4)).shape == (6, 0)


def test_low_precision_weights_give_float32_bases():
    model = gpt2().bfloat16()
    bases = learn_subspace(model)
    assert {basis.dtype for basis in bases.values()} == {torch.float32}


def test_passes_cost_the_flops_stated():
    # Short sequences: gradients need all of the backward pass of attention, which torch 2.14 counts on CPUs too.
    model, ids = llama().float(), torch.randint(61, (64, 4))
    with FlopCounterMode(display=False) as training:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    per_token = training.get_total_flops() / ids.numel()
    for source in ("gradients", "activations"):
        with FlopCounterMode(display=False) as counted:
            output_covariances(model, [ids], select_weights(model), source=source)
        stated, alone = (
            subspace_flops(model, source=source, tokens=n, training_flops_per_token=per_token)
            for n in (ids.numel(), 0)
        )
        assert counted.get_total_flops() == pytest.approx(stated - alone, rel=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "data"}, "source is 'data'; it must be 'weights', 'gradients' or 'activations'"),
        ({"source": "gradients"}, "source='gradients' needs batches of token ids"),
        ({"energy": 0.0}, "energy is 0.0; it must be above 0 and at most 1"),
        ({"rank": 0}, "rank is 0; it must be at least 1"),
        (
            {"parameters": ["*.q_proj.*"]},
            r"'\*.q_proj.\*' matches no Linear, Conv1D, Embedding or convolution weight; .*wte.weight'",
        ),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        learn_subspace(gpt2(), **options)


def test_a_damaged_weight_is_named():
    model = gpt2()
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight[0, 0] = float("inf")
    with pytest.raises(ValueError, match="the weights of transformer.h.1.mlp.c_fc.weight are not finite"):
        learn_subspace(model)


@pytest.mark.parametrize("source", ["gradients", "activations"])
def test_batches_without_a_target_are_refused(source):
    model = gpt2()
    for batches in ([], iter(())):
        with pytest.raises(ValueError, match="the batches hold no target token"):
            learn_subspace(model, batches, source=source)
    ids = torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="the batches hold no target token"):
        learn_subspace(model, [{"input_ids": ids, "labels": torch.full_like(ids, -100)}], source="gradients")


def test_patterns_may_come_from_an_iterator_and_none_is_refused():
    model = gpt2()
    name = next(iter(learn_subspace(model)))
    assert list(learn_subspace(model, parameters=iter([name]))) == [name]
    with pytest.raises(ValueError, match="parameters: there is no pattern"):
        learn_subspace(model, parameters=[])
