"""Φ in few kernels, as accelerators compute it, against the chunks of a CPU, in float64 and on a CPU."""

import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPT2Config, GPT2LMHeadModel, set_seed

from hf_progressive.penalty import InheritancePenalty
from hf_progressive.penalty import grouped as module
from hf_progressive.penalty.arithmetic import CHUNK_ELEMENTS, Restraint
from hf_progressive.penalty.grouped import GroupedGradient

SHAPES = {"matrix": (40, 24), "conv": (24, 40), "wide": (3, 50), "bias": (40,), "long": (3000,), "none": (17, 5)}


def build(dtype, *, anchor_dtype=None):
    """Each parameter's restraint, weights and gradient; one has neither Ω nor U, a vector no U."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    for name, shape in SHAPES.items():
        count = torch.Size(shape).numel()
        weights, anchor, fisher, gradient = torch.randn(4, count, generator=generator, dtype=torch.float64).to(dtype)
        output = 1 if name == "conv" else 0
        basis = torch.linalg.qr(torch.randn(shape[output], 3, generator=generator, dtype=torch.float64)).Q.to(dtype)
        restraint = Restraint(
            shape=shape, anchor=anchor.to(anchor_dtype or dtype), output_dimension=output,
            fisher=None if name == "none" else fisher.abs(),
            basis=basis if len(shape) == 2 and name != "none" else None,
        )  # fmt: skip
        parts.append((restraint, weights, gradient))
    return parts


@pytest.mark.parametrize("part", [1 << 24, 70])
@pytest.mark.parametrize(("ewc_lambda", "gamma"), [(0.7, 0.3), (0.7, 0.0), (0.0, 0.3)])
@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_it_is_what_the_chunks_give(monkeypatch, part, ewc_lambda, gamma, scale):
    monkeypatch.setattr(module, "PART_ELEMENTS", part)
    monkeypatch.setattr(module, "_COLUMNS", 7)
    monkeypatch.setattr(module, "_SMALL_ELEMENTS", 100)
    expected, ours = build(torch.float64), build(torch.float64)
    sums = [r.apply(w, g, ewc_lambda, gamma, gradient_scale=scale) for r, w, g in expected]
    together = GroupedGradient(ewc_lambda, gamma, scale)
    for restraint, weights, gradient in ours:
        together.add(restraint, weights, gradient)
    torch.testing.assert_close(together.finish(), torch.stack(sums).sum(0), rtol=1e-13, atol=1e-13)
    for name, (_, _, theirs), (_, _, gradient) in zip(SHAPES, expected, ours, strict=True):
        torch.testing.assert_close(gradient, theirs, rtol=1e-13, atol=1e-13, msg=name)
    assert together.finish() is None


def test_a_penalty_is_the_same_on_either_way(monkeypatch):
    """A GPT-2 model with tied embeddings, one parameter frozen and one without a gradient yet."""
    set_seed(0)
    config = GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=50, n_positions=8, bos_token_id=0, eos_token_id=0)
    steps, gradients = [], []
    model = GPT2LMHeadModel(config).double().eval()
    model.transformer.wpe.weight.requires_grad_(False)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    anchor = {name: torch.randn_like(p) for name, p in start.items()}
    fisher = {name: torch.rand_like(p) for name, p in start.items()}
    basis = {name: torch.linalg.qr(torch.randn(p.shape[1], 4).double()).Q for name, p in start.items() if p.ndim == 2}
    ids = torch.randint(50, (2, 8))
    for _ in range(2):
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        model.transformer.ln_f.bias.grad = None
        penalty = InheritancePenalty(anchor, fisher, basis, ewc_lambda=0.7, gamma=0.3)
        steps.append(dataclasses.astuple(penalty.add_gradient(model, factor=0.5)))
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad})
        monkeypatch.delitem(CHUNK_ELEMENTS, "cpu", raising=False)
    torch.testing.assert_close(steps[1], steps[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-12, atol=1e-14)


def test_lower_precision_is_computed_in_float32():
    expected, ours = (
        build(torch.bfloat16, anchor_dtype=torch.float32),
        build(torch.bfloat16, anchor_dtype=torch.float32),
    )
    for restraint, weights, gradient in expected:
        restraint.apply(weights, gradient, 0.7, 0.0)
    together = GroupedGradient(0.7, 0.0, 1.0)
    for restraint, weights, gradient in ours:
        together.add(restraint, weights, gradient)
    together.finish()
    for (_, _, theirs), (_, _, gradient) in zip(expected, ours, strict=True):
        assert torch.equal(gradient, theirs)


def test_the_compiled_kernel_is_one_for_all_shapes():
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    counters.clear()
    kernel = torch.compile(module._rows, dynamic=True, backend="aot_eager", fullgraph=True)
    factors = torch.tensor([0.7, 0.3, 1.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for shape in ((50, 24), (24, 24), (24, 96), (96, 24)):
        w, a, f, within, g = torch.randn(5, *shape, generator=generator, dtype=torch.float64)
        other = g.clone()
        torch.testing.assert_close(kernel(w, a, f, within, g, factors), module._rows(w, a, f, within, other, factors))
        assert torch.equal(g, other)
        factors = factors * 0.9
    assert counters["stats"]["unique_graphs"] == 1


class Operators(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def test_small_tensors_cost_no_more_for_being_many():
    counts = []
    for copies in (1, 30):
        together = GroupedGradient(0.7, 0.3, 1.0)
        parts = [part for part in build(torch.float32) if part[0].basis is None] * copies
        with Operators() as operators:
            for part in parts:
                together.add(*part)
            together.finish()
        counts.append(operators.count)
    assert counts[0] == counts[1]
