"""Φ and its gradient against a dense float64 formula."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from hf_progressive.penalty import InheritancePenalty, arithmetic, schedule_factor
from hf_progressive.penalty.lazy_tensors import LazyTensors


class Mixed(nn.Module):
    """One of each: Linear (out, in), Conv1D (in, out), Embedding (vocab, out), tied head, norm."""

    def __init__(self, vocabulary=7, width=5, hidden=6):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.conv = Conv1D(hidden, width)
        self.linear = nn.Linear(hidden, width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embedding.weight


OUTPUT_DIMENSIONS = {"embedding.weight": 1, "conv.weight": 1, "linear.weight": 0}


def random_penalty(model, *, ewc_lambda, gamma, rank=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    anchor, fisher, subspace = {}, {}, {}
    for name, p in model.named_parameters():
        anchor[name] = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        fisher[name] = torch.rand(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        if name in OUTPUT_DIMENSIONS:
            out = p.shape[OUTPUT_DIMENSIONS[name]]
            square = torch.randn(out, out, generator=generator, dtype=torch.float64)
            subspace[name] = torch.linalg.qr(square).Q[:, : min(rank, out)]
    tensors = (anchor, fisher, subspace)
    return InheritancePenalty(*tensors, ewc_lambda=ewc_lambda, gamma=gamma), tensors


def dense_terms(model, tensors, *, ewc_lambda, gamma):
    """The formula as it is written, in float64, with the projector as a matrix and ΔW as (out, in)."""
    anchor, fisher, subspace = tensors
    ewc = sub = torch.zeros((), dtype=torch.float64)
    for name, p in model.named_parameters():
        delta = p.double() - anchor[name].double()
        ewc = ewc + ewc_lambda * 0.5 * (fisher[name].double() * delta**2).sum()
        if name in subspace:
            basis = subspace[name].double()
            restrained = torch.eye(len(basis), dtype=torch.float64) - basis @ basis.T
            delta = delta if OUTPUT_DIMENSIONS[name] == 0 else delta.T  # (out, in)
            sub = sub + gamma * torch.trace(restrained @ delta @ delta.T @ restrained.T)
    return ewc, sub


@settings(max_examples=40)
@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    rank=st.integers(0, 9),
    weights=st.sampled_from([(0.0, 0.0), (3.0, 0.0), (0.0, 0.7), (3.0, 0.7)]),
    chunk=st.sampled_from([1, 4, 1000]),
    seed=st.integers(0, 1000),
)
def test_value_and_gradient_equal_the_dense_formula(shape, rank, weights, chunk, seed):
    ewc_lambda, gamma = weights
    torch.manual_seed(seed)
    model = Mixed(*shape).double()
    penalty, tensors = random_penalty(model, ewc_lambda=ewc_lambda, gamma=gamma, rank=rank, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(arithmetic.CHUNK_ELEMENTS, "cpu", chunk)
        value, terms = penalty.value(model), penalty.terms(model)
        (2.5 * value).backward()
        gradients = [p.grad.clone() for p in model.parameters()]
        step = penalty.add_gradient(model)
    ewc, sub = dense_terms(model, tensors, ewc_lambda=ewc_lambda, gamma=gamma)
    expected = torch.autograd.grad(ewc + sub, list(model.parameters()), materialize_grads=True)
    close = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close([value, terms["ewc"], terms["subspace"]], [ewc + sub, ewc, sub], **close)
    torch.testing.assert_close([step.ewc, step.subspace, step.value], [ewc, sub, ewc + sub], **close)
    torch.testing.assert_close(gradients, [2.5 * g for g in expected], **close)
    torch.testing.assert_close([p.grad for p in model.parameters()], [3.5 * g for g in expected], **close)
    norm = torch.stack([g.square().sum() for g in expected]).sum().sqrt()
    torch.testing.assert_close([step.gradient_norm, step.task_gradient_norm], [norm, 2.5 * norm], **close)


def test_the_backward_is_the_derivative_of_the_forward():
    model = Mixed().double()
    penalty, _ = random_penalty(model, ewc_lambda=2.0, gamma=0.3)
    assert torch.autograd.gradcheck(lambda *_: penalty.value(model), tuple(model.parameters()))


def test_no_gradient_is_stored_for_the_backward():
    """What is saved is the parameters themselves, nothing of their size beside them."""
    model = Mixed()
    penalty, _ = random_penalty(model, ewc_lambda=2.0, gamma=0.3)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
        penalty.value(model)
    assert set(saved) == {p.data_ptr() for p in model.parameters()}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_arithmetic_is_float32_whatever_the_parameters(dtype, autocast):
    torch.manual_seed(1)
    model = Mixed(vocabulary=40, width=30, hidden=50).to(dtype)
    penalty, tensors = random_penalty(model, ewc_lambda=2.0, gamma=0.3, rank=10)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        terms = penalty.terms(model)
    ewc, sub = dense_terms(model, tensors, ewc_lambda=2.0, gamma=0.3)
    assert terms["ewc"].item() == pytest.approx(ewc.item(), rel=2e-6)
    assert terms["subspace"].item() == pytest.approx(sub.item(), rel=2e-6)


def test_anchor_and_fisher_may_be_kept_in_bfloat16_on_another_device():
    """The dense formula with W₀ and Ω rounded once; the arithmetic stays float32."""
    model = Mixed(vocabulary=40, width=30, hidden=50)
    _, (anchor, fisher, subspace) = random_penalty(model, ewc_lambda=2.0, gamma=0.3, rank=10)
    weights = {"ewc_lambda": 2.0, "gamma": 0.3}
    kept = InheritancePenalty(anchor, fisher, subspace, **weights, storage_dtype=torch.bfloat16, storage_device="cpu")
    bound = kept.bind(model)
    step = bound.add_gradient()
    rounded = ({n: t.bfloat16() for n, t in anchor.items()}, {n: t.bfloat16() for n, t in fisher.items()}, subspace)
    ewc, sub = dense_terms(model, rounded, **weights)
    assert [step.ewc.item(), step.subspace.item()] == pytest.approx([ewc.item(), sub.item()], rel=2e-6)
    basis_bytes = sum(basis.numel() * 4 for basis in subspace.values())
    assert bound.held_bytes() - basis_bytes == 2 * 2 * sum(p.numel() for p in model.parameters())


def test_parameters_without_an_entry_or_frozen_take_no_part():
    model = Mixed()
    model.norm.requires_grad_(False)
    anchor = {name: torch.zeros(p.shape) for name, p in model.named_parameters()}
    fisher = {"norm.weight": torch.ones(5), "linear.bias": torch.ones(5)}
    penalty = InheritancePenalty(anchor, fisher, {"linear.weight": torch.zeros(5, 0)}, ewc_lambda=1.0, gamma=1.0)
    step = penalty.add_gradient(model)
    torch.testing.assert_close(
        step.gradient_norm, torch.stack([p.grad.norm() for p in model.linear.parameters()]).norm()
    )
    touched = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert touched == {"linear.bias", "linear.weight"}
    torch.testing.assert_close(model.linear.weight.grad, 2.0 * model.linear.weight)  # r = 0: all of it restrained


@pytest.mark.parametrize("name", ["embedding.weight", "head.weight"])
def test_a_tied_weight_counts_once_under_either_name(name):
    model = Mixed()
    anchor = {name: torch.zeros(7, 5)}
    value = InheritancePenalty(anchor, {name: torch.ones(7, 5)}, ewc_lambda=2.0).value(model)
    torch.testing.assert_close(value, model.embedding.weight.square().sum())
    both = {"embedding.weight": torch.zeros(7, 5), "head.weight": torch.zeros(7, 5)}
    ones = {key: torch.ones(7, 5) for key in both}
    torch.testing.assert_close(InheritancePenalty(both, ones, ewc_lambda=2.0).value(model), value)


def test_a_stock_state_dict_serves_as_the_anchor():
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=16, n_positions=8))
    anchor = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert "lm_head.weight" in anchor
    assert InheritancePenalty(anchor, anchor_ones(anchor), ewc_lambda=1.0).value(model) == 0.0


def anchor_ones(anchor):
    return {name: torch.ones_like(tensor) for name, tensor in anchor.items()}


def test_the_gradient_scale_of_a_loss_scaler_is_followed():
    model = Mixed().double()
    penalty, _ = random_penalty(model, ewc_lambda=2.0, gamma=0.3)
    steps = []
    for scale in (1.0, 1024.0):
        for p in model.parameters():
            p.grad = scale * torch.ones_like(p)
        steps.append(penalty.add_gradient(model, gradient_scale=scale))
        scaled = [p.grad / scale for p in model.parameters()]
        if scale == 1.0:
            plain = scaled
    torch.testing.assert_close(scaled, plain)
    torch.testing.assert_close(steps[1].gradient_ratio, steps[0].gradient_ratio)


def test_a_specification_never_changes_and_serves_several_models():
    models = [Mixed().double() for _ in range(2)]
    penalty, tensors = random_penalty(models[0], ewc_lambda=2.0, gamma=0.3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        penalty.gamma = 1.0
    bound = [penalty.bind(model) for model in models]
    for _ in range(2):
        for model, one in zip(models, bound, strict=True):
            expected = sum(dense_terms(model, tensors, ewc_lambda=2.0, gamma=0.3))
            torch.testing.assert_close(one.value(), expected, rtol=1e-12, atol=0)
            with torch.no_grad():
                model.linear.weight.add_(0.1)  # what is bound follows its own model


def test_binding_reads_each_tensor_once_and_a_bound_penalty_none():
    model, read = Mixed(), []
    _, tensors = random_penalty(model, ewc_lambda=2.0, gamma=0.3)
    lazy = [LazyTensors(each, lambda name, each=each: read.append(name) or each[name]) for each in tensors]
    bound = InheritancePenalty(*lazy, ewc_lambda=2.0, gamma=0.3).bind(model)
    assert sorted(read) == sorted(name for each in tensors for name in each)
    read.clear()
    bound.terms()
    bound.add_gradient()
    assert read == []


def test_the_fingerprint_tells_penalties_apart():
    model = Mixed()
    first, tensors = random_penalty(model, ewc_lambda=1.0, gamma=1.0)
    again, _ = random_penalty(model, ewc_lambda=2.0, gamma=1.0)
    assert first.fingerprint() == again.fingerprint()
    tensors[1]["norm.bias"][0] += 1e-3
    changed = {key for key, digest in first.fingerprint().items() if digest != again.fingerprint()[key]}
    assert changed == {"fisher"}


def zeros(**changes):
    anchor = {name: torch.zeros(p.shape) for name, p in Mixed().named_parameters()}
    return anchor | changes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ewc_lambda": -1.0}, r"ewc_lambda is -1\.0; it must be a finite number of at least 0"),
        ({"gamma": float("nan")}, r"gamma is nan; it must be a finite number of at least 0"),
        ({"ewc_lambda": "1"}, r"ewc_lambda is '1'; it must be a finite number of at least 0"),
        ({"gamma": None}, r"gamma is None; it must be a finite number of at least 0"),
        ({"ewc_lambda": 1.0}, r"ewc_lambda is 1\.0 but there is nothing for it to act on; pass fisher="),
        ({"gamma": 1.0}, r"gamma is 1\.0 but there is nothing for it to act on; pass subspace="),
        (
            {"anchor": Mixed()},
            r"anchor is a Mixed; pass tensors by the parameters' names, such as \{name: p\.detach\(\)",
        ),
        ({"anchor": Mixed().named_parameters()}, r"anchor is a generator; pass tensors by the parameters' names"),
        (
            {"fisher": {"norm.wieght": torch.ones(5)}},
            r"fisher names parameters that the anchor does not have: norm\.wieght \(nearest: norm\.weight\)",
        ),
        (
            {"anchor": {"transformer.norm.weight": torch.ones(5)}},
            r"the anchor names parameters that the model does not have: transformer\.norm\.weight \(nearest: norm",
        ),
        (
            {"anchor": zeros() | {"norm.weight": torch.ones(4)}},
            r"anchor\['norm\.weight'\] has shape \(4,\), the model's",
        ),
        ({"fisher": {"norm.weight": torch.ones(5, 1)}}, r"fisher\['norm\.weight'\] has shape \(5, 1\), the model's"),
        ({"fisher": {"norm.weight": -torch.ones(5)}}, r"fisher\['norm\.weight'\] has negative or NaN entries"),
        ({"subspace": {"norm.weight": torch.ones(5, 1)}}, r"only matrices have an output subspace"),
        (
            {"subspace": {"conv.weight": torch.eye(5)}},
            r"subspace\['conv\.weight'\] has shape \(5, 5\); expected \(6, r\)",
        ),
        (
            {"subspace": {"linear.weight": torch.eye(6)}},
            r"expected \(5, r\), r ≤ 5: a basis of the output side, dim.* 0",
        ),
        ({"subspace": {"linear.weight": torch.ones(5, 2)}}, r"columns are not orthonormal, max .* = 5 > 0.001"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        InheritancePenalty(**{"anchor": zeros()} | arguments).validate(Mixed())
    assert "\n" not in str(caught.value)


def test_the_models_own_tensors_are_no_anchor():
    model = Mixed()
    with pytest.raises(ValueError, match=r"anchor\['embedding\.weight'\] is the model's own parameter"):
        InheritancePenalty(model.state_dict()).validate(model)


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("constant", [1.0, 1.0, 1.0, 1.0, 0.0, 0.0]),
        ("linear", [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]),
        ("cosine", [1.0, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5, 0.0, 0.0]),
    ],
)
def test_schedules_reach_zero_at_their_fraction(schedule, factors):
    points = [schedule_factor(schedule, progress, until=0.8) for progress in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)]
    assert points == pytest.approx(factors)
