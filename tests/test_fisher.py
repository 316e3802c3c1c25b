"""The Fisher diagonal against a loop that backpropagates one sequence at a time through the stock class."""

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config
from transformers.models.nanochat import NanoChatConfig

from hf_progressive.phi.fisher import estimate_fisher

GPT2 = {"n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 16, "vocab_size": 61}
LLAMA = {
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 16,
    "vocab_size": 61,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
CONFIGS = {
    "gpt2": GPT2Config(**GPT2),
    "gpt2-untied": GPT2Config(**GPT2, tie_word_embeddings=False),
    "llama": LlamaConfig(**LLAMA, tie_word_embeddings=False),
    "llama-tied-bias": LlamaConfig(**LLAMA, tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    "qwen2": Qwen2Config(**LLAMA, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**LLAMA, tie_word_embeddings=False),
    "mistral": MistralConfig(**LLAMA),
    "nanochat": NanoChatConfig(**(LLAMA | {"pad_token_id": 1})),
}


def build(name, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]).to(dtype)
    with torch.no_grad():  # away from initial zeros and ones, where mistakes hide
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def sequences(count=5, length=9, vocab=61, seed=1):
    return torch.randint(vocab, (count, length), generator=torch.Generator().manual_seed(seed))


def token_losses(model, ids):
    """Nats of tokens 1 … T−1 of one sequence, (T − 1,)."""
    logits = model(ids[None]).logits[0, :-1]
    return -torch.log_softmax(logits, dim=-1)[torch.arange(len(ids) - 1), ids[1:]]


def squared_gradients(model, loss):
    gradients = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True, allow_unused=True)
    named = zip(model.named_parameters(), gradients, strict=True)
    return {name: torch.zeros_like(p) if g is None else g**2 for (name, p), g in named}


def slow_fisher(model, ids):
    """The sequence definition, term by term."""
    model.eval()
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for row in ids:
        for name, square in squared_gradients(model, token_losses(model, row).sum()).items():
            total[name] += square
    return {name: value / (len(ids) * (ids.shape[1] - 1)) for name, value in total.items()}


def assert_equal(actual, expected, rtol=1e-10):
    assert list(actual) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=rtol, atol=rtol * float(value.max()), msg=name)


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_a_loop_over_sequences(name):
    model, ids = build(name), sequences()
    model.train()
    actual = estimate_fisher(model, [ids[:2], {"input_ids": ids[2:]}])
    assert_equal(actual, slow_fisher(model, ids))


def test_is_not_the_square_of_a_batch_mean():
    model, ids = build("gpt2").eval(), sequences()
    losses = torch.stack([token_losses(model, row).sum() for row in ids])
    mean_squared = squared_gradients(model, losses.mean())["transformer.wte.weight"].sum()
    fisher = estimate_fisher(model, [ids])["transformer.wte.weight"].sum() * (ids.shape[1] - 1)
    assert mean_squared < 0.5 * fisher
