"""The matrices inside a model's layers, which Muon trains, and the matrices that a fused one stores side by side."""

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_progressive.growth.families import FAMILIES


@dataclass(frozen=True)
class Parts:
    """How a fused weight divides: along which dimension, and into matrices of which lengths.

    The matrices stand one after the other, or, with `groups`, a group's rows of each, then the next group's.
    """

    dimension: int
    lengths: tuple[int, ...]
    groups: int = 1


def hidden_matrices(model: Any) -> dict[str, Parts | None]:
    """Name the weights that Muon trains: those of linear layers, but for the output head and what is tied to it.

    Embeddings, the output head, norms, biases, and weights of more or fewer than two dimensions are left to AdamW.

    Returns:
        By a parameter's name, in the order of `named_parameters`, how a fused weight divides (GPT-2's `c_attn` into
        query, key and value, as `hf_progressive.growth.families` describes it); None for one matrix, which a fused
        weight of an unknown family counts as too.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_head=2, n_layer=1, n_positions=8, vocab_size=16))
    >>> for name, parts in hidden_matrices(model).items():
    ...     print(name, parts)
    transformer.h.0.attn.c_attn.weight Parts(dimension=1, lengths=(8, 8, 8), groups=1)
    transformer.h.0.attn.c_proj.weight None
    transformer.h.0.mlp.c_fc.weight None
    transformer.h.0.mlp.c_proj.weight None
    """
    linear = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear | Conv1D)}
    for embedding in (model.get_input_embeddings(), model.get_output_embeddings()):
        linear.discard(id(getattr(embedding, "weight", None)))
    fused = _fused(model.config)
    return {
        name: fused.get(name)
        for name, parameter in model.named_parameters()
        if id(parameter) in linear and parameter.ndim == 2
    }


def _fused(config: Any) -> dict[str, Parts]:
    family = FAMILIES.get(config.model_type)
    if family is None:
        return {}
    lengths, heads = family.axis_lengths(config), family.sizes(config).kv_heads
    return {
        name: Parts(index, tuple(lengths[axis] for axis in dim.axes), heads if dim.grouped else 1)
        for name, rule, _ in family.tensors(config)
        for index, dim in enumerate(rule.dims)
        if len(rule.dims) == 2 and len(dim.axes) > 1
    }
