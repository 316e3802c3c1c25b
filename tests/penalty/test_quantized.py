"""Φ beside quantized base weights: what LoRA adds to them is held, they themselves are refused by name."""

import pytest
import torch
from test_lora import LAMBDA, adapted, dense, fisher_of, llama, lora
from torch import nn

from hf_progressive.estimation import estimate_fisher
from hf_progressive.penalty import InheritancePenalty, LoraPenalty

peft = pytest.importorskip("peft")
BATCH = torch.randint(40, (4, 8), generator=torch.Generator().manual_seed(0))


class Packed(nn.Module):
    """A linear layer as GPTQ leaves it, integers in a buffer, or as bitsandbytes does, in a parameter."""

    def __init__(self, linear, *, as_parameter):
        super().__init__()
        self.scale = float(linear.weight.detach().abs().max()) / 127
        integers = (linear.weight.detach() / self.scale).round().to(torch.int8)
        if as_parameter:
            self.weight = nn.Parameter(integers, requires_grad=False)
        else:
            self.register_buffer("qweight", integers)

    def forward(self, x):
        integers = self.weight if hasattr(self, "weight") else self.qweight
        return x @ (integers.to(x) * self.scale).T


def packed(model, *, as_parameter):
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and "lora_" not in name and "lm_head" not in name:
            owner, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(owner), attribute, Packed(module, as_parameter=as_parameter))
    return model


@pytest.mark.parametrize("as_parameter", [True, False])
def test_what_lora_adds_to_packed_weights_is_held_as_to_plain_ones(as_parameter):
    fisher, model = fisher_of(llama()), adapted(llama(), lora("q_proj", "down_proj"))
    value = float(dense(model, fisher).detach())
    penalty = LoraPenalty(fisher, ewc_lambda=LAMBDA)
    packed(model, as_parameter=as_parameter)
    penalty.validate(model)
    assert float(penalty.bind(model).add_gradient().ewc) == pytest.approx(value, rel=1e-12)
    with pytest.raises(ValueError, match="does not have: model.layers.0.self_attn.q_proj.wieght"):
        LoraPenalty({"model.layers.0.self_attn.q_proj.wieght": torch.ones(16, 16)}, ewc_lambda=1.0).validate(model)


def test_packed_weights_themselves_are_refused_by_name():
    anchor = {name: p.detach().clone() for name, p in llama().named_parameters()}
    with pytest.raises(ValueError, match=r"q_proj.weight.*is quantized \(torch.int8\) and does not move; leave"):
        InheritancePenalty.l2_sp(anchor, ewc_lambda=1.0).validate(packed(llama(), as_parameter=True))
    for as_parameter, part in ((True, "weight"), (False, "qweight")):
        with pytest.raises(ValueError, match=rf"q_proj.{part} is quantized \(torch.int8\) and has no gradient; estim"):
            estimate_fisher(packed(llama(), as_parameter=as_parameter), [BATCH])


@pytest.mark.parametrize("library", ["torchao", "optimum.quanto"])
def test_a_librarys_int8_weights(library):
    found = pytest.importorskip(library, reason=f"{library} is not installed")
    model, fisher = llama(), estimate_fisher(llama(), [BATCH])
    if library == "torchao":
        found.quantize_(model, found.quantization.Int8WeightOnlyConfig())
    else:
        found.quantize(model, weights=found.qint8, exclude="lm_head")
        found.freeze(model)
    anchor = {name: p.detach().clone() for name, p in llama().named_parameters()}
    with pytest.raises(ValueError, match=r"is quantized \(\w+Tensor\) and does not move"):
        InheritancePenalty.l2_sp(anchor, ewc_lambda=1.0).validate(model)
    of_quantized = estimate_fisher(model, [BATCH])
    name = "model.layers.1.mlp.down_proj.weight"
    torch.testing.assert_close(of_quantized[name], fisher[name], rtol=0.2, atol=float(fisher[name].max()) / 50)
    wrapped = peft.get_peft_model(model, lora("q_proj", "down_proj"))
    for factor_name, factor in wrapped.named_parameters():
        if "lora_B" in factor_name:
            nn.init.normal_(factor, std=0.3)
    penalty = LoraPenalty(fisher, ewc_lambda=LAMBDA)
    value = sum(
        0.5 * LAMBDA * float((fisher[n.removeprefix("base_model.model.") + ".weight"] * delta**2).sum())
        for n, m in wrapped.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)
        for delta in (m.get_delta_weight("default").detach(),)
    )  # fmt: skip
    assert float(penalty.bind(wrapped).add_gradient().ewc) == pytest.approx(value, rel=1e-4)
