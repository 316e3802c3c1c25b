"""Φ's proximal step against the minimum it stands for, solved densely in float64; when it is taken, and when not."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_specification import OUTPUT_DIMENSIONS, Mixed
from torch import nn

from hf_progressive.penalty import InheritancePenalty, ProximalSteps, arithmetic, grouped

EXACT = {"rtol": 1e-11, "atol": 1e-11}


def tensors_of(model, *, rank=2, seed=0):
    """W₀, Ω with zeros in it, and U, in float64; one parameter has no Ω."""
    generator = torch.Generator().manual_seed(seed)
    anchor = {name: torch.randn(p.shape, generator=generator).double() for name, p in model.named_parameters()}
    fisher = {name: (3 * torch.rand(p.shape, generator=generator).double() - 1).relu() for name, p in anchor.items()}
    fisher["embedding.weight"][0, 0] = 2.0
    del fisher["norm.bias"]
    subspace = {}
    for name, dimension in OUTPUT_DIMENSIONS.items():
        out = anchor[name].shape[dimension]
        subspace[name] = torch.linalg.qr(torch.randn(out, out, generator=generator).double()).Q[:, : min(rank, out)]
    return anchor, fisher, subspace


def dense_step(tensors, name, weights, *, rate, ewc_lambda, gamma, side):
    """Solve (I + η∇²)(W − W₀) = V − W₀ for λ's term and then for γ's, with the projector as a matrix."""
    anchor, fisher, subspace = tensors
    delta = weights.double() - anchor[name]
    if name in fisher and ewc_lambda:
        entries = torch.cat([omega.flatten() for omega in fisher.values()])
        hessian = ewc_lambda * torch.diag(fisher[name].flatten()) / entries[entries > 0].mean()
        identity = torch.eye(delta.numel()).double()
        delta = torch.linalg.solve(identity + rate * hessian, delta.flatten()).view(delta.shape)
    if name in subspace and gamma:
        projector = subspace[name] @ subspace[name].T
        identity = torch.eye(len(projector)).double()
        hessian = 2 * gamma * (projector if side == "inside" else identity - projector)
        outwards = delta if OUTPUT_DIMENSIONS[name] == 0 else delta.T  # (out, in)
        outwards = torch.linalg.solve(identity + rate * hessian, outwards)
        delta = outwards if OUTPUT_DIMENSIONS[name] == 0 else outwards.T
    return anchor[name] + delta


@pytest.mark.parametrize("way", [1, 4, 1000, "kernels"])
@settings(max_examples=8)
@given(
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    rank=st.integers(0, 6),
    weights=st.sampled_from([(3.0, 0.0), (0.0, 0.7), (3.0, 0.7), (1e3, 1e3)]),
    side=st.sampled_from(["outside", "inside"]),
    tensor_rate=st.booleans(),
)
def test_the_step_is_the_dense_minimum_for_each_groups_rate(way, shape, rank, weights, side, tensor_rate):
    (ewc_lambda, gamma), factor = weights, 0.5
    torch.manual_seed(0)
    model = Mixed(*shape).double()
    tensors = tensors_of(model, rank=rank)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    slow, fast = model.norm.parameters(), [p for name, p in model.named_parameters() if "norm" not in name]
    rates = (0.01, 0.3)
    if tensor_rate:
        rates = tuple(torch.tensor(rate, dtype=torch.float64) for rate in rates)
    optimizer = torch.optim.SGD([{"params": slow, "lr": rates[0]}, {"params": fast, "lr": rates[1]}])
    penalty = InheritancePenalty(*tensors, ewc_lambda=ewc_lambda, gamma=gamma, apply="proximal", subspace_side=side)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(arithmetic.CHUNK_ELEMENTS, "cpu", way)
        if way == "kernels":
            patch.delitem(arithmetic.CHUNK_ELEMENTS, "cpu")
            patch.setattr(grouped, "PART_ELEMENTS", 20)
            patch.setattr(grouped, "_SMALL_ELEMENTS", 12)
            patch.setattr(grouped, "_COLUMNS", 5)
        step = penalty.bind(model).proximal_step(optimizer, factor=factor)
    for name, parameter in model.named_parameters():
        rate = 0.01 if "norm" in name else 0.3
        options = {"rate": rate, "ewc_lambda": ewc_lambda * factor, "gamma": gamma * factor, "side": side}
        torch.testing.assert_close(parameter.detach(), dense_step(tensors, name, before[name], **options), **EXACT)
        if gamma == 0.0:
            unrestrained = tensors[1].get(name, torch.zeros_like(parameter)) == 0
            assert torch.equal(parameter.detach()[unrestrained], before[name][unrestrained])
    restrained = [n for n in before if (ewc_lambda and n in tensors[1]) or (gamma and n in tensors[2])]
    moved = torch.cat([(before[n] - dict(model.named_parameters())[n].detach()).flatten() for n in restrained])
    distance = torch.cat([(before[n] - tensors[0][n]).flatten() for n in restrained])
    torch.testing.assert_close(step.moved_norm, moved.norm(), **EXACT)
    torch.testing.assert_close(step.moved_ratio, moved.norm() / distance.norm(), **EXACT)


@pytest.mark.parametrize("side", ["outside", "inside"])
def test_the_value_is_of_the_function_whose_minimum_the_step_takes(side):
    """Without the other term, ∇Φ(W) = (V − W)/η, by autograd of the public value."""
    for ewc_lambda, gamma in ((3.0, 0.0), (0.0, 0.7)):
        model = Mixed().double()
        penalty = InheritancePenalty(
            *tensors_of(model), ewc_lambda=ewc_lambda, gamma=gamma, apply="proximal", subspace_side=side
        )
        found = penalty.value(model)
        before = [p.detach().clone() for p in model.parameters()]
        step = penalty.bind(model).proximal_step(torch.optim.SGD(model.parameters(), lr=0.2))
        torch.testing.assert_close(step.value, found.detach(), **EXACT)
        gradients = torch.autograd.grad(penalty.value(model), list(model.parameters()))
        for gradient, v, parameter in zip(gradients, before, model.parameters(), strict=True):
            torch.testing.assert_close(gradient, (v - parameter.detach()) / 0.2, **EXACT)


def test_the_scale_of_the_fisher_does_not_matter():
    """An Ω from an optimizer's state and one from single tokens differ by a factor, if by nothing else."""
    ends = []
    for scale in (1.0, 1e-9):
        torch.manual_seed(0)
        model = Mixed().double()
        anchor, fisher, _ = tensors_of(model)
        fisher = {name: scale * omega for name, omega in fisher.items()}
        penalty = InheritancePenalty(anchor, fisher, ewc_lambda=2.0, apply="proximal")
        penalty.bind(model).proximal_step(torch.optim.SGD(model.parameters(), lr=0.2))
        ends.append([p.detach() for p in model.parameters()])
    torch.testing.assert_close(ends[1], ends[0], **EXACT)
    still = InheritancePenalty(anchor, {n: 0.0 * o for n, o in fisher.items()}, ewc_lambda=2.0, apply="proximal")
    still.bind(model).proximal_step(torch.optim.SGD(model.parameters(), lr=0.2))
    assert all(torch.equal(a, p) for a, p in zip(ends[1], model.parameters(), strict=True))


def prepared(optimizer_class=torch.optim.AdamW, **options):
    torch.manual_seed(0)
    model = Mixed()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    anchor, fisher, subspace = tensors_of(model)
    penalty = InheritancePenalty(anchor, fisher, subspace, ewc_lambda=2.0, gamma=0.1, apply="proximal")
    optimizer = optimizer_class(model.parameters(), lr=0.1, **options)
    noted = []
    steps = ProximalSteps(penalty.bind(model), optimizer, note=lambda step, factor: noted.append(step))
    return model, optimizer, steps, noted


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_a_loss_scaler_skips_moves_nothing(fused):
    """A fused optimizer asks on the device whether it may step, and its step returns either way."""
    model, optimizer, _, noted = prepared(fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.zeros(()))
    start = [p.detach().clone() for p in model.parameters()]
    model.norm.weight.grad[0] = float("inf")
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(a, p) for a, p in zip(start, model.parameters(), strict=True))
    model.norm.weight.grad[0] = 1.0
    scaler.step(optimizer)
    assert not any(torch.equal(a, p) for a, p in zip(start, model.parameters(), strict=True))
    assert noted[-1].moved_ratio > 0.01


def test_the_hook_is_the_step_after_the_step_and_goes_when_it_is_removed():
    model, optimizer, steps, noted = prepared()
    other, alone, others, _ = prepared()
    others.remove()
    for each in (optimizer, alone):
        each.param_groups[0]["lr"] = 0.05  # as a scheduler does
        each.step()
    anchor, fisher, subspace = tensors_of(other)
    penalty = InheritancePenalty(anchor, fisher, subspace, ewc_lambda=2.0, gamma=0.1, apply="proximal")
    step = penalty.bind(other).proximal_step(alone)
    assert torch.equal(step.moved_norm, noted[0].moved_norm)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    steps.remove()
    optimizer.step()
    assert len(noted) == 1


def test_what_is_frozen_or_not_stepped_stays_and_counts_in_the_terms():
    torch.manual_seed(0)
    model = Mixed().double()
    model.conv.requires_grad_(False)
    penalty = InheritancePenalty(*tensors_of(model), ewc_lambda=2.0, gamma=0.0, apply="proximal")
    expected = penalty.terms(model)["ewc"]
    still = [*model.conv.parameters(), *model.norm.parameters()]
    before = [p.detach().clone() for p in still]
    stepped = [*model.linear.parameters(), *model.embedding.parameters(), model.conv.weight]
    step = penalty.bind(model).proximal_step(torch.optim.SGD(stepped, lr=0.2))
    torch.testing.assert_close(step.ewc, expected, **EXACT)
    assert all(torch.equal(a, p) for a, p in zip(before, still, strict=True))


def test_each_way_refuses_the_calls_of_the_other_and_an_optimizer_of_other_weights():
    model = Mixed()
    anchor, fisher, _ = tensors_of(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    proximal = InheritancePenalty(anchor, fisher, ewc_lambda=1.0, apply="proximal").bind(model)
    with pytest.raises(ValueError, match=r'has apply="proximal": let proximal_step\(optimizer\) follow'):
        proximal.add_gradient()
    with pytest.raises(ValueError, match=r'has apply="gradient": call add_gradient\(\) before'):
        InheritancePenalty(anchor, fisher, ewc_lambda=1.0).bind(model).proximal_step(optimizer)
    with pytest.raises(ValueError, match=r"SGD does not step the model's own weights, nor ZeRO's .* use apply="):
        ProximalSteps(proximal, torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1))
    with pytest.raises(ValueError, match="apply is 'prox'; it must be one of gradient, proximal"):
        InheritancePenalty(anchor, fisher, apply="prox")
    with pytest.raises(ValueError, match="subspace_side is 'out'; it must be one of outside, inside"):
        InheritancePenalty(anchor, fisher, subspace_side="out")
