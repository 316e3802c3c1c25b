"""The FLOPs formula: what one token costs in training, counted on the stock class."""

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.pytorch_utils import Conv1D

FORWARD_SHARE = 1 / 3
"""The forward pass's share of training FLOPs: the backward pass has two products for each one of it."""


def meta_model(config: PretrainedConfig) -> Any:
    """Build a model's stock class on the meta device, which allocates nothing."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def flops_per_token(config: PretrainedConfig, context: int | None = None) -> int:
    """Count the training FLOPs, forward and backward, that one token costs.

    6·N + 12·L·A·T, where N counts the weights of all matrices that multiply the token stream (the output head among
    them, tied or not; look-ups, biases and gains are not multiplications; of a mixture's experts those that a token is
    sent to), L layers, A the query heads times their
    width, and T the context, by default the configuration's largest number of positions. A multiply-add is two FLOPs,
    and the backward pass has two products for each one of the forward. The second term is QKᵀ and the product with V.
    Source: PaLM (arXiv 2204.02311), appendix B; nanochat counts the same way. Attention counts in full, not causally:
    masked entries are computed by plain kernels, and hardware comparisons (MFU) use this convention. Softmax, norms
    and activations, under 1 %, are left out, and so is what gradient checkpointing computes twice.

    >>> from transformers import GPT2Config
    >>> config = GPT2Config(n_layer=1, n_embd=64, n_head=1, n_positions=32, vocab_size=300)
    >>> flops_per_token(config) == 6 * (12 * 64**2 + 300 * 64) + 12 * 1 * 64 * 32
    True
    """
    matrices = sum(_matrices(module, config) for module in meta_model(config).modules())
    layers: int = config.num_hidden_layers
    heads: int = config.num_attention_heads
    head_dim: int = getattr(config, "head_dim", None) or config.hidden_size // heads
    tokens: int = config.max_position_embeddings if context is None else context
    return 6 * matrices + 12 * layers * heads * head_dim * tokens


def _matrices(module: nn.Module, config: PretrainedConfig) -> int:
    # The weights of a module's own that multiply a token.
    if isinstance(module, nn.Linear | Conv1D):
        return module.weight.numel()
    if isinstance(module, nn.Embedding):
        return 0
    own = list(module.parameters(recurse=False))
    routers = sum(parameter.numel() for parameter in own if parameter.ndim == 2)
    return routers + sum(
        parameter.numel() - unused_by_a_token(parameter, config) for parameter in own if parameter.ndim == 3
    )


def unused_by_a_token(parameter: torch.Tensor, config: PretrainedConfig) -> int:
    """Count the entries of a parameter that a token does not meet: of a tensor of experts, those it is not sent to."""
    if parameter.ndim != 3:
        return 0
    experts, chosen = parameter.shape[0], int(config.num_experts_per_tok)
    return parameter.numel() // experts * (experts - chosen)
