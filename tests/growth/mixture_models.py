"""Tiny mixtures of experts, and dense models that become such, with weights far from their initial ones."""

import os
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

PAIRS = int(os.environ.get("GROWTH_PAIRS", "60"))
"""Random pairs of each family, as `test_families` has them."""

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 29,
    "max_position_embeddings": 16,
    "rms_norm_eps": 1e-2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
QWEN = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
MIXTURE_FIELDS = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
    "qwen3_moe": {**QWEN, "head_dim": 8},
    "qwen2_moe": {**QWEN, "shared_expert_intermediate_size": 12},
    "flex_olmo": {"num_experts": 4, "num_experts_per_tok": 2},
}
OF_QWEN = ("qwen3_moe", "qwen2_moe")


def config_of(model_type: str, **fields: Any) -> Any:
    """A config of a mixture or of a dense family, with an epsilon that matters."""
    dense = {} if model_type in ("qwen2", "olmo2") else {"head_dim": 8}
    return AutoConfig.for_model(model_type, **SIZES | MIXTURE_FIELDS.get(model_type, dense) | fields)


def experts_field(model_type: str) -> str:
    """The config field of the number of experts."""
    return "num_local_experts" if model_type == "mixtral" else "num_experts"


def build(config: Any, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Any:
    """A model whose gains, biases, routers and matrices are all random and large enough to matter."""
    generator = torch.Generator().manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).to(torch.float64).eval()
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if "norm" in name:
            parameter.data = parameter.data + 0.3 * noise
        elif parameter.ndim == 1:
            parameter.data = 0.3 * noise
        else:
            parameter.data = noise / parameter.shape[-1] ** 0.5
    model.tie_weights()
    model.config.architectures = [type(model).__name__]
    return model.to(dtype)
