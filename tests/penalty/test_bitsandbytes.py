"""Φ over weights that bitsandbytes holds in four and eight bits, as QLoRA does, against a dense model in float64."""

import pytest
import torch
from test_lora import LAMBDA, lora
from test_other_trainers import KeptGradient
from torch import nn
from trainer_fixtures import arguments, logged
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from hf_progressive import ProgressiveTrainer, estimate_fisher
from hf_progressive.penalty import InheritancePenalty, LoraPenalty

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
peft = pytest.importorskip("peft")

BLOCKS = torch.randint(64, (8, 16), generator=torch.Generator().manual_seed(0))
ROWS = [{"input_ids": row, "labels": row} for row in BLOCKS]
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}
FORMS = {"nf4": NF4, "nf4, scales too": NF4 | {"bnb_4bit_use_double_quant": True}, "int8": {"load_in_8bit": True}}


def plain():
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes))


@pytest.fixture(scope="module")
def fisher():
    return estimate_fisher(plain(), [BLOCKS])


@pytest.fixture(scope="module", params=FORMS)
def checkpoint(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    plain().save_pretrained(folder)
    return folder, FORMS[request.param]


def quantized(checkpoint):
    folder, form = checkpoint
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=BitsAndBytesConfig(**form))


def adapted(model):
    torch.manual_seed(2)
    wrapped = peft.get_peft_model(model, lora("q_proj", "down_proj"))
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return wrapped


def dense(model):
    """A model in float64 of the weights that a quantized one stands for, with its adapters."""
    whole = plain().double()
    for name, layer in model.named_modules():
        if "proj" in name.rpartition(".")[2]:
            base = getattr(layer, "base_layer", layer)
            weight = peft.utils.integrations.dequantize_bnb_weight(base.weight, state=getattr(base, "state", None))
            whole.get_submodule(name.removeprefix("base_model.model.")).weight.data = weight.double()
    whole = adapted(whole).double()
    factors = {name: p.double() for name, p in model.named_parameters() if "lora_" in name}
    assert set(whole.load_state_dict(factors, strict=False).unexpected_keys) == set()
    return whole


def moved(model, fisher):
    """½λ Σ Ω (W − W₀)², W being what the merged model has, and its gradients by differentiation."""
    before = {name: m.base_layer.weight.detach().clone() for name, m in model.named_modules() if hasattr(m, "lora_A")}
    value = torch.zeros((), dtype=torch.float64)
    for name, weight in before.items():
        layer = model.get_submodule(name)
        added = layer(torch.eye(weight.shape[1], dtype=torch.float64)).T - weight  # without a bias, W is what I gives
        value = value + 0.5 * LAMBDA * (fisher[f"{name.removeprefix('base_model.model.')}.weight"] * added**2).sum()
    value.backward()
    return float(value.detach()), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_the_penalty_is_that_of_a_dense_model_of_the_same_weights(checkpoint, fisher):
    model = adapted(quantized(checkpoint))
    whole = dense(model)
    coarse = "load_in_8bit" in checkpoint[1]  # which rounds what goes into a layer too
    with torch.no_grad():
        difference = (model(input_ids=BLOCKS).logits - whole(input_ids=BLOCKS).logits).abs().max()
    assert difference < (0.05 if coarse else 1e-5) * whole(input_ids=BLOCKS).logits.abs().max()
    value, gradients = moved(whole, fisher)
    assert float(LoraPenalty(fisher, ewc_lambda=LAMBDA).bind(model).add_gradient().ewc) == pytest.approx(
        value, rel=1e-5
    )
    found = {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}
    torch.testing.assert_close(found, gradients, rtol=1e-4, atol=1e-8)


def test_a_trainer_adds_its_gradient_and_leaves_the_quantized_weights(checkpoint, fisher, tmp_path):
    def train(penalty, steps):
        kept, model = KeptGradient(), adapted(peft.prepare_model_for_kbit_training(quantized(checkpoint)))
        settings = arguments(tmp_path, max_grad_norm=0.0, max_steps=steps)
        trainer = ProgressiveTrainer(model, settings, train_dataset=ROWS, penalty=penalty, callbacks=[kept])
        trainer.train()
        return trainer, kept.gradients

    _, task = train(None, 1)
    trainer, both = train(LoraPenalty(fisher, ewc_lambda=LAMBDA), 4)
    value, gradients = moved(dense(adapted(quantized(checkpoint))), fisher)
    assert both.keys() == task.keys() == gradients.keys()
    scale = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(both[name].double() - task[name], gradient, rtol=1e-4, atol=1e-6 * scale)
    held = logged(trainer, "phi/ewc")
    assert held[0] == pytest.approx(value, rel=1e-5)
    assert held[-1] != held[0]
    first, last = quantized(checkpoint), dict(trainer.model.base_model.model.named_parameters())
    for name, weight in first.named_parameters():
        after = last.get(name, last.get(name.replace("proj.weight", "proj.base_layer.weight")))
        assert torch.equal(weight, after.to(weight.dtype)), name


def test_the_quantized_weights_themselves_are_refused_by_name(checkpoint):
    model = quantized(checkpoint)
    anchor = {name: parameter.detach().clone() for name, parameter in plain().named_parameters()}
    with pytest.raises(ValueError, match=r"q_proj.weight.*is quantized \(torch.u?int8\) and does not move; leave"):
        InheritancePenalty.l2_sp(anchor, ewc_lambda=1.0).validate(model)
    with pytest.raises(ValueError, match=r"q_proj.weight is quantized \(torch.u?int8\) and has no gradient; estimate"):
        estimate_fisher(model, [BLOCKS])
