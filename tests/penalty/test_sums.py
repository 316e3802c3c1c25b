"""Several anchors as one, and L2-SP, against the formulas written out in float64."""

import pytest
import torch
from test_specification import OUTPUT_DIMENSIONS, Mixed, random_penalty

from hf_progressive.penalty import InheritancePenalty, load_saved_penalty, save_penalty

CLOSE = {"rtol": 1e-10, "atol": 1e-12}
LAMBDAS, GAMMAS = (2.0, 0.0, 0.3), (0.4, 0.7, 0.0)


def tasks(model, *, apply="gradient"):
    """Three earlier tasks: each with an anchor and an Ω of its own; λ without γ, γ without λ, and both."""
    penalties = []
    for seed, (ewc_lambda, gamma) in enumerate(zip(LAMBDAS, GAMMAS, strict=True)):
        side = "inside" if seed == 1 else "outside"
        _, (anchor, fisher, subspace) = random_penalty(model, ewc_lambda=0.0, gamma=0.0, seed=seed)
        fisher = {name: (seed + 1) * (2 * omega - 0.5).relu() for name, omega in fisher.items() if name != "norm.bias"}
        strengths = {"ewc_lambda": ewc_lambda, "gamma": gamma}
        penalties.append(InheritancePenalty(anchor, fisher, subspace, **strengths, apply=apply, subspace_side=side))
    return penalties


def test_a_sum_has_the_value_and_gradient_of_its_parts_added_up():
    torch.manual_seed(0)
    model = Mixed().double()
    parts = tasks(model)
    total = InheritancePenalty.sum(parts)
    values = [part.value(model) for part in parts]
    torch.testing.assert_close(total.value(model), sum(values), **CLOSE)
    terms = total.terms(model, factor=0.5)
    for kind in ("ewc", "subspace"):
        torch.testing.assert_close(terms[kind], sum(part.terms(model)[kind] for part in parts) / 2, **CLOSE)
    expected = torch.autograd.grad(sum(values), list(model.parameters()), materialize_grads=True)
    step = total.add_gradient(model)
    torch.testing.assert_close([p.grad for p in model.parameters()], list(expected), **CLOSE)
    torch.testing.assert_close(step.value, sum(values).detach(), **CLOSE)
    norm = torch.stack([g.square().sum() for g in expected]).sum().sqrt()
    torch.testing.assert_close(step.gradient_norm, norm, **CLOSE)
    again = InheritancePenalty.sum([InheritancePenalty.sum(parts[:2]), parts[2]])
    torch.testing.assert_close(again.value(model), total.value(model), **CLOSE)


def test_anchors_far_from_zero_lose_nothing_by_cancellation():
    model = Mixed().double()
    anchors = [{n: 1e6 + torch.full_like(p, x) for n, p in model.named_parameters()} for x in (0.0, 1e-3)]
    parts = [InheritancePenalty.l2_sp(anchor, ewc_lambda=1.0) for anchor in anchors]
    count = sum(p.numel() for p in model.parameters())
    assert InheritancePenalty.sum(parts).constant == pytest.approx(count * 0.25 * 1e-6, rel=1e-6)


def test_memory_does_not_grow_with_the_number_of_anchors():
    model = Mixed()
    parts = [
        InheritancePenalty({n: torch.randn_like(p) for n, p in model.named_parameters()}, fisher, ewc_lambda=1.0)
        for fisher in ({n: torch.rand_like(p) for n, p in model.named_parameters()} for _ in range(5))
    ]
    held = [InheritancePenalty.sum(parts[:count]).bind(model).held_bytes() for count in (1, 2, 5)]
    assert held == [2 * 4 * sum(p.numel() for p in model.parameters())] * 3


def test_the_proximal_step_of_a_sum_weighs_each_task_by_its_own_mean():
    """λ terms alone: the minimum of ‖W − V‖²/2η + Σ_k Φ_k, entry by entry; then γ terms, one after the other."""
    torch.manual_seed(0)
    model = Mixed().double()
    parts = tasks(model, apply="proximal")
    total = InheritancePenalty.sum(parts)
    torch.testing.assert_close(total.value(model), sum(part.value(model) for part in parts), **CLOSE)
    found, ewc = {name: p.detach().clone() for name, p in model.named_parameters()}, total.terms(model)["ewc"]
    rate = 0.3
    step = total.bind(model).proximal_step(torch.optim.SGD(model.parameters(), lr=rate))
    torch.testing.assert_close(step.ewc, ewc, **CLOSE)
    means = [torch.cat([o[o > 0] for o in part.fisher.values()]).mean() for part in parts]
    for name, parameter in model.named_parameters():
        weight, weighted = 1.0 / rate, found[name] / rate
        for part, mean in zip(parts, means, strict=True):
            omega = part.ewc_lambda * part.fisher.get(name, torch.zeros(())) / mean
            weight, weighted = weight + omega, weighted + omega * part.anchor[name]
        expected = weighted / weight
        for part in parts:
            if name in OUTPUT_DIMENSIONS and part.gamma:
                basis = part.subspace[name]
                projector = basis @ basis.T
                if part.subspace_side == "outside":
                    projector = torch.eye(len(projector)) - projector
                pull = 2 * part.gamma * rate / (1 + 2 * part.gamma * rate) * projector
                delta = expected - part.anchor[name]
                expected = expected - (pull @ delta if OUTPUT_DIMENSIONS[name] == 0 else delta @ pull)
        torch.testing.assert_close(parameter.detach(), expected, **CLOSE)


def test_a_sum_comes_back_from_its_files(tmp_path):
    model = Mixed().double()
    total = InheritancePenalty.sum(tasks(model, apply="proximal"))
    save_penalty(total, tmp_path / "phi")
    again = load_saved_penalty(tmp_path / "phi")
    assert again.fingerprint() == total.fingerprint()
    assert [each.subspace_side for each in again.further] == ["outside", "inside"]
    assert (again.apply, again.constant) == ("proximal", total.constant)
    torch.testing.assert_close(again.value(model), total.value(model), rtol=0, atol=0)


def test_l2_sp_is_the_squared_distance_and_holds_no_fisher():
    model = Mixed()
    anchor = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    distance = sum((p.double() - anchor[n].double()).square().sum() for n, p in model.named_parameters())
    for apply in ("gradient", "proximal"):
        penalty = InheritancePenalty.l2_sp(anchor, ewc_lambda=3.0, apply=apply)
        assert penalty.value(model).item() == pytest.approx(1.5 * distance.item(), rel=1e-6)
        held = penalty.bind(model).held_bytes()
        assert held - sum(4 * p.numel() for p in model.parameters()) == 4 * len(anchor)


def test_what_cannot_be_summed_is_refused():
    model = Mixed()
    first, second, _ = tasks(model)
    with pytest.raises(ValueError, match="there is no penalty to sum"):
        InheritancePenalty.sum([])
    with pytest.raises(ValueError, match="penalty 1 has apply='gradient', penalty 2 'proximal'; only like"):
        InheritancePenalty.sum([first, tasks(model, apply="proximal")[0]])
    fewer = {name: tensor for name, tensor in second.anchor.items() if not name.startswith("norm")}
    with pytest.raises(ValueError, match=r"do not name the same parameters: only one has norm\.bias; anchor both"):
        InheritancePenalty.sum([first, InheritancePenalty(fewer)])
    with pytest.raises(ValueError, match=r"anchor\['norm\.bias'\] has shape \(5,\) in penalty 1, \(4,\) in penalty 2"):
        InheritancePenalty.sum([first, InheritancePenalty({**second.anchor, "norm.bias": torch.ones(4)})])


def test_a_tied_weight_that_is_named_twice_counts_once(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 3, bias=False), torch.nn.Linear(3, 3, bias=False)).double()
    model[1].weight = model[0].weight
    anchors = [{name: value.clone() + x for name, value in model.state_dict().items()} for x in (0.1, -0.2, 0.4)]
    assert len(anchors[0]) == 2
    parts = [InheritancePenalty.l2_sp(anchor, ewc_lambda=1.0) for anchor in anchors]
    expected = sum(part.value(model) for part in parts)
    total = InheritancePenalty.sum(parts)
    again = InheritancePenalty.sum([InheritancePenalty.sum(parts[:2]), parts[2]])
    save_penalty(total, tmp_path / "saved")
    for each in (total, again, load_saved_penalty(tmp_path / "saved")):
        torch.testing.assert_close(each.value(model), expected, **CLOSE)


def test_what_is_no_penalty_or_no_tensor_is_refused_in_one_line():
    model = Mixed()
    anchor = {name: p.detach() + 1 for name, p in model.named_parameters()}
    single = InheritancePenalty.l2_sp(anchor, ewc_lambda=1.0)
    torch.testing.assert_close(InheritancePenalty.sum(single).value(model), single.value(model))
    with pytest.raises(ValueError, match="penalty 2 is a NoneType; only InheritancePenalty can be summed"):
        InheritancePenalty.sum([single, None])
    name = next(iter(anchor))
    for values, message in (
        (anchor[name].tolist(), r"is a list; give a tensor"),
        (anchor[name] * float("inf"), "has entries that are not finite"),
    ):
        wrong = InheritancePenalty(anchor | {name: values}, {name: torch.ones_like(anchor[name])}, ewc_lambda=1.0)
        with pytest.raises(ValueError, match=message):
            wrong.value(model)
