"""W₀, Ω and U are found under every name that a wrapper or a tie gives a parameter; ones stay one number."""

import pytest
import torch
from test_lora import gpt2
from torch import nn

from hf_progressive.estimation import estimate_fisher
from hf_progressive.penalty import InheritancePenalty, LoraPenalty

IDS = torch.randint(40, (4, 8), generator=torch.Generator().manual_seed(3))


def anchor_and_fisher(model, seed=5):
    generator = torch.Generator().manual_seed(seed)
    anchor = {name: p.detach() + 0.1 for name, p in model.named_parameters()}
    return anchor, {name: torch.rand(p.shape, generator=generator) for name, p in model.named_parameters()}


def peft_wrapped(model):
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))


WRAPPED = {
    "compiled": torch.compile,
    "DataParallel": nn.DataParallel,
    "compiled DataParallel": lambda model: torch.compile(nn.DataParallel(model)),
    "DataParallel of a compiled one": lambda model: nn.DataParallel(torch.compile(model)),
    "PEFT": peft_wrapped,
    "DataParallel of PEFT": lambda model: nn.DataParallel(peft_wrapped(model)),
}


@pytest.mark.parametrize("wrap", WRAPPED)
def test_plain_names_fit_a_wrapped_model_and_its_own_names_a_plain_one(wrap):
    plain, wrapped = gpt2(), WRAPPED[wrap](gpt2())
    anchor, fisher = anchor_and_fisher(plain)
    expected = InheritancePenalty(anchor, fisher, ewc_lambda=2.0).terms(plain)["ewc"]
    assert InheritancePenalty(anchor, fisher, ewc_lambda=2.0).terms(wrapped)["ewc"] == expected > 0
    own = {name: p for name, p in wrapped.named_parameters() if "lora_" not in name}
    assert not own.keys() & anchor.keys()
    renamed = [dict(zip(own, tensors.values(), strict=True)) for tensors in (anchor, fisher)]
    assert InheritancePenalty(*renamed, ewc_lambda=2.0).terms(plain)["ewc"] == expected


def test_an_estimate_of_a_wrapped_model_fits_the_plain_one():
    found, expected = estimate_fisher(nn.DataParallel(gpt2()), [IDS]), estimate_fisher(gpt2(), [IDS])
    assert [f"module.{name}" for name in expected] == list(found)
    anchor, _ = anchor_and_fisher(gpt2())
    of_wrapped = InheritancePenalty({f"module.{name}": t for name, t in anchor.items()}, found, ewc_lambda=1.0)
    of_plain = InheritancePenalty(anchor, expected, ewc_lambda=1.0)
    torch.testing.assert_close(of_wrapped.terms(gpt2())["ewc"], of_plain.terms(gpt2())["ewc"])


@pytest.mark.parametrize("apply", ["gradient", "proximal"])
def test_omega_of_a_tied_weight_is_found_under_either_name(apply):
    model = gpt2()
    first, second = "transformer.wte.weight", "lm_head.weight"
    assert model.lm_head.weight is model.transformer.wte.weight
    anchor, fisher = anchor_and_fisher(model)
    expected = InheritancePenalty(anchor, fisher, ewc_lambda=2.0, apply=apply).terms(model)["ewc"]
    both = {**anchor, second: anchor[first]}
    other = {second if name == first else name: omega for name, omega in fisher.items()}
    for named in (both, {name: t for name, t in both.items() if name != first}):
        found = InheritancePenalty(named, other, ewc_lambda=2.0, apply=apply).terms(model)["ewc"]
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match=r"fisher\['lm_head.weight'\] has negative"):
        InheritancePenalty(both, {second: -fisher[first]}, ewc_lambda=2.0).validate(model)


def test_omega_of_a_tied_weight_holds_the_adapter_of_the_other_name():
    peft = pytest.importorskip("peft")
    _, fisher = anchor_and_fisher(gpt2())
    adapted = peft.get_peft_model(gpt2(), peft.LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False))
    delta = adapted.base_model.model.lm_head.get_delta_weight("default")
    found = LoraPenalty(fisher, ewc_lambda=1.0).terms(adapted)["ewc"]
    torch.testing.assert_close(found, 0.5 * (fisher["transformer.wte.weight"] * delta**2).sum().detach())


@pytest.mark.parametrize("changes", [{"storage_dtype": torch.bfloat16}, {"storage_device": "meta"}])
def test_ones_stay_one_number_where_they_are_converted_or_moved(changes):
    model = gpt2()
    anchor, _ = anchor_and_fisher(model)
    bound = InheritancePenalty.l2_sp(anchor, ewc_lambda=1.0, **changes).bind(model)
    entries, size = sum(t.numel() for t in anchor.values()), 2 if "storage_dtype" in changes else 4
    assert bound.held_bytes() == (entries + len(anchor)) * size
