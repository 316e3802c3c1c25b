"""Φ and Fisher information on the device against the dense formula and a slow loop."""

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from hf_progressive.estimation.fisher import estimate_fisher
from hf_progressive.penalty import InheritancePenalty

EWC_LAMBDA, GAMMA, RANK, VOCABULARY = 3.0, 0.7, 24, 61
CLOSE = {torch.float64: 1e-12, torch.float32: 3e-6}


def gpt2(width=96, layers=2):
    torch.manual_seed(0)
    config = GPT2Config(n_layer=layers, n_embd=width, n_head=4, vocab_size=VOCABULARY, n_positions=32)
    return away_from_zero(GPT2LMHeadModel(config))


def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        num_hidden_layers=2, hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=VOCABULARY, max_position_embeddings=32, pad_token_id=None, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return away_from_zero(LlamaForCausalLM(config))


def away_from_zero(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def output_dimension(model, name):
    """0 for a Linear weight (out, in), 1 for a Conv1D (in, out) and an Embedding (vocabulary, out)."""
    return 0 if isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Linear) else 1


def random_tensors(model):
    generator = torch.Generator().manual_seed(1)

    def draw(shape):
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    anchor, fisher, subspace = {}, {}, {}
    for name, p in model.named_parameters():
        anchor[name] = (p.detach().cpu().double() + 0.1 * draw(p.shape)).to(p)
        fisher[name] = draw(p.shape).to(p)
        if p.ndim == 2:
            out = p.shape[output_dimension(model, name)]
            subspace[name] = torch.linalg.qr(draw((out, out))).Q[:, :RANK].to(p)
    return anchor, fisher, subspace


def dense_terms(model, anchor, fisher, subspace):
    """The formula as it is written, in float64 on the CPU, with the projector as a matrix."""
    parameters = {name: p.detach().cpu().double().requires_grad_() for name, p in model.named_parameters()}
    ewc = torch.zeros((), dtype=torch.float64)
    outside = torch.zeros((), dtype=torch.float64)
    for name, p in parameters.items():
        delta = p - anchor[name].cpu().double()
        ewc = ewc + EWC_LAMBDA * 0.5 * (fisher[name].cpu().double() * delta**2).sum()
        if name in subspace:
            basis = subspace[name].cpu().double()
            restrained = torch.eye(len(basis), dtype=torch.float64) - basis @ basis.T
            delta = delta if output_dimension(model, name) == 0 else delta.T  # (out, in)
            outside = outside + GAMMA * torch.trace(restrained @ delta @ delta.T @ restrained.T)
    gradients = torch.autograd.grad(ewc + outside, list(parameters.values()))
    return ewc.item(), outside.item(), dict(zip(parameters, gradients, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("build", [gpt2, llama])
def test_value_and_gradient_equal_the_dense_formula(build, dtype, device, record_property):
    model = build().to(device, dtype)
    tensors = random_tensors(model)
    penalty = InheritancePenalty(*tensors, ewc_lambda=EWC_LAMBDA, gamma=GAMMA)
    step = penalty.add_gradient(model)
    value = penalty.value(model).item()
    ewc, outside, gradients = dense_terms(model, *tensors)
    close = CLOSE[dtype]
    assert [step.ewc.item(), step.subspace.item()] == pytest.approx([ewc, outside], rel=close)
    assert value == pytest.approx(ewc + outside, rel=close)
    worst = 0.0
    for name, p in model.named_parameters():
        expected = gradients[name]
        worst = max(worst, ((p.grad.cpu().double() - expected).abs().max() / expected.abs().max()).item())
    record_property("relative_gradient_difference", worst)
    assert worst <= close


def test_adding_the_gradient_waits_for_no_result(cuda):
    model = gpt2().to(cuda)
    bound = InheritancePenalty(*random_tensors(model), ewc_lambda=EWC_LAMBDA, gamma=GAMMA).bind(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    bound.add_gradient(factor=0.9)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    for factor in (0.8, 0.5):
        bound.add_gradient(factor=factor)
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("build", [gpt2, llama])
def test_fisher_equals_a_loop_over_sequences(build, dtype, device, record_property):
    model = build().to(device, dtype)
    ids = torch.randint(VOCABULARY, (5, 17), generator=torch.Generator().manual_seed(1))
    exact = build().double()  # on the CPU, one sequence at a time
    expected = {name: torch.zeros_like(p) for name, p in exact.named_parameters()}
    for row in ids:
        logits = exact(input_ids=row[None]).logits[0, :-1]
        loss = nn.functional.cross_entropy(logits, row[1:], reduction="sum")
        gradients = torch.autograd.grad(loss, list(exact.parameters()))
        for name, gradient in zip(expected, gradients, strict=True):
            expected[name] += gradient**2 / (len(ids) * (ids.shape[1] - 1))
    batches = [ids[:2].to(device), {"input_ids": ids[2:].to(device)}]
    found = estimate_fisher(model, batches, definition="sequence")
    worst = max(((found[n].cpu().double() - e).abs().max() / e.abs().max()).item() for n, e in expected.items())
    record_property("relative_difference", worst)
    # The stock Llama's norms compute in float32, in a float64 model too.
    assert worst <= (1e-9 if dtype == torch.float64 and build is gpt2 else 2e-4)
