"""Φ on what LoRA adds: against autograd through PEFT's own product, densely, in float64; and what is refused."""

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from hf_progressive.penalty import LoraPenalty, arithmetic, load_saved_penalty, save_penalty
from hf_progressive.penalty.validation import require_trained

peft = pytest.importorskip("peft")
LAMBDA = 0.7


def llama():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=40, **sizes))


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=8))


def convolutions():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, dilation=2), nn.Conv2d(6, 4, 1))


def fisher_of(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.rand(p.shape, generator=generator, dtype=torch.float64) for n, p in model.named_parameters()}


def adapted(model, *configs, active=None):
    """A model in float64 with an adapter of each config, their factors drawn so that no product is zero."""
    torch.manual_seed(2)
    wrapped = peft.get_peft_model(model, configs[0])
    for number, config in enumerate(configs[1:], start=1):
        wrapped.add_adapter(f"number_{number}", config)
    if active is not None:
        wrapped.base_model.set_adapter(active)
    wrapped = wrapped.double()
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    return wrapped


def lora(*targets, **options):
    return peft.LoraConfig(target_modules=list(targets), **{"r": 3, "lora_alpha": 5} | options)


def dense(model, fisher):
    """½λ Σ Ω ΔW², ΔW as PEFT would merge it, through autograd."""
    value = torch.zeros((), dtype=torch.float64)
    for name, layer in model.named_modules():
        if isinstance(layer, peft.tuners.lora.LoraLayer):
            delta = sum(
                layer.get_delta_weight(active)
                for active in layer.active_adapters
                if active in layer.lora_A or active in layer.lora_embedding_A
            )
            omega = fisher[name.removeprefix("base_model.model.") + ".weight"]
            value = value + 0.5 * LAMBDA * (omega * delta**2).sum()
    return value


CASES = {
    "linear": (llama, [lora("q_proj", "down_proj")], None),
    "rslora, ranks by layer": (llama, [lora("q_proj", "v_proj", use_rslora=True, rank_pattern={"v_proj": 2})], None),
    "two adapters, the second active": (llama, [lora("q_proj"), lora("q_proj", "k_proj", r=2)], ["number_1"]),
    "two adapters at once": (llama, [lora("q_proj"), lora("q_proj", "k_proj", r=2)], ["default", "number_1"]),
    "Conv1D": (gpt2, [lora("c_attn", "c_fc", fan_in_fan_out=True)], None),
    "embedding": (llama, [lora("embed_tokens", "q_proj")], None),
    "convolution": (convolutions, [lora("0", "1")], None),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("chunk", [1 << 17, 40])
def test_value_and_gradient_equal_the_dense_formula(monkeypatch, case, chunk):
    monkeypatch.setitem(arithmetic.CHUNK_ELEMENTS, "cpu", chunk)
    build, configs, active = CASES[case]
    fisher = fisher_of(build())
    model = adapted(build(), *configs, active=active)
    value = dense(model, fisher)
    value.backward()
    value = float(value.detach())
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    step = LoraPenalty(fisher, ewc_lambda=LAMBDA).bind(model).add_gradient(gradient_scale=8.0)
    found = {name: p.grad / 8.0 for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-12, atol=1e-12)
    assert float(step.ewc) == pytest.approx(value, rel=1e-12)
    norm = sum(float(gradient.square().sum()) for gradient in expected.values()) ** 0.5
    assert (float(step.gradient_norm), float(step.task_gradient_norm)) == (pytest.approx(norm, rel=1e-12), 0.0)


def test_it_is_added_to_what_is_found_in_the_factors_own_precision():
    fisher, model = fisher_of(llama()), adapted(llama(), lora("q_proj")).to(torch.bfloat16)
    for name, parameter in model.named_parameters():
        parameter.grad = torch.ones_like(parameter) if "lora_" in name else None
    bound = LoraPenalty(fisher, ewc_lambda=LAMBDA, storage_dtype=torch.bfloat16).bind(model)
    step = bound.add_gradient(factor=0.5)
    reference = adapted(llama(), lora("q_proj"))
    reference.load_state_dict(model.state_dict())
    value = 0.5 * dense(reference, fisher)
    value.backward()
    assert bound.held_bytes() == 2 * 2 * 16 * 16
    assert float(step.ewc) == pytest.approx(float(value.detach()), rel=1e-2)
    for (name, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        if "lora_" in name:
            torch.testing.assert_close(ours.grad.double(), 1.0 + theirs.grad, rtol=1e-2, atol=1e-2)
    assert float(bound.add_gradient(factor=0.0).ewc) == 0.0


def test_it_is_read_back(tmp_path):
    model, fisher = adapted(llama(), lora("q_proj")), fisher_of(llama())
    penalty = LoraPenalty(fisher, ewc_lambda=LAMBDA)
    save_penalty(penalty, tmp_path / "phi")
    again = load_saved_penalty(tmp_path / "phi")
    assert again.fingerprint() == penalty.fingerprint()
    assert again.terms(model) == penalty.terms(model)
    assert float(again.terms(model)["ewc"]) > 0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lora("q_proj", use_dora=True), "adapter 'default': DoRA adds more than s·B·A"),
        (lora("c_attn", lora_bias=True), "lora_bias moves the bias too"),
        (lora("q_proj", init_lora_weights="pissa"), "init_lora_weights='pissa' changes the base weights"),
        (lora("q_proj", init_lora_weights="olora"), "init_lora_weights='olora' changes the base weights"),
    ],
)
def test_what_adds_something_else_is_refused_in_one_line(config, message):
    build = gpt2 if "c_attn" in config.target_modules else llama
    model = peft.get_peft_model(build(), config)
    with pytest.raises(ValueError, match=message) as caught:
        LoraPenalty(fisher_of(build()), ewc_lambda=1.0).validate(model)
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_is_refused_in_one_line():
    fisher, model = fisher_of(llama()), adapted(llama(), lora("q_proj"))
    query = "model.layers.0.self_attn.q_proj.weight"

    def refused(message, *, of=model, ewc_lambda=1.0, **changes):
        with pytest.raises(ValueError, match=message):
            LoraPenalty(changes or fisher, ewc_lambda=ewc_lambda).validate(of)

    refused("ewc_lambda is nan", ewc_lambda=float("nan"))
    refused("ewc_lambda is '1'; it must be a finite number", ewc_lambda="1")
    refused(
        r"names parameters that the model does not have: model\.layers\.7\.w", **{"model.layers.7.w": torch.ones(2)}
    )
    refused(r"has shape \(2, 2\), what the adapters add \(16, 16\)", **{query: torch.ones(2, 2)})
    refused("negative or NaN entries", **{query: -torch.ones(16, 16)})
    refused("no active adapter of a weight that fisher names", **{"lm_head.weight": torch.ones(40, 16)})
    refused("the model has no LoRA adapters", of=llama())
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    refused("no active adapter of a weight that fisher names requires a gradient")
    model.merge_adapter()
    refused("its adapters are merged")
    with pytest.raises(ValueError, match=r"every parameter it restrains is frozen .* use LoraPenalty\(fisher, ewc_la"):
        require_trained(model, [query])
