"""Gemma 2 and the text models of Gemma 3: norms before and behind attention and MLP, gains stored less 1, soft caps.

Gemma 3 has norms of queries and keys too, and other rotations in layers that slide.
"""

from typing import Any

from hf_progressive.growth.family_table import Family, WeightRule, linear, norm, reads, writes
from hf_progressive.growth.llama import BLOCK, llama_like

_BIAS = "attention_bias"
_OFFSET = 1.0


def _family(model_type: str, title: str, *query_norms: WeightRule, **options: Any) -> Family:
    attention, mlp = BLOCK + "self_attn.", BLOCK + "mlp."
    return llama_like(
        model_type,
        title,
        (
            *linear(attention + "q_proj", writes("query"), reads("normed"), bias=_BIAS),
            *linear(attention + "k_proj", writes("key"), reads("normed"), bias=_BIAS),
            *linear(attention + "v_proj", writes("value"), reads("normed"), bias=_BIAS),
            *linear(attention + "o_proj", writes("residual"), reads("context"), bias=_BIAS),
            *query_norms,
            *linear(mlp + "gate_proj", writes("mlp"), reads("normed"), bias=None),
            *linear(mlp + "up_proj", writes("mlp"), reads("normed"), bias=None),
            *linear(mlp + "down_proj", writes("residual"), reads("mlp"), bias=None),
            *norm(BLOCK + "input_layernorm", "gain", offset=_OFFSET),
            *norm(BLOCK + "post_attention_layernorm", "post_gain", offset=_OFFSET, closes=True),
            *norm(BLOCK + "pre_feedforward_layernorm", "gain", offset=_OFFSET),
            *norm(BLOCK + "post_feedforward_layernorm", "post_gain", offset=_OFFSET, closes=True),
            *norm("model.norm", "final_gain", offset=_OFFSET),
        ),
        layer_fields=("layer_types",),
        scaled_scores=False,  # by query_pre_attn_scalar, whatever the head_dim
        head_dim_fields={"query_pre_attn_scalar": lambda head_dim: head_dim},
        scaled_embedding=True,
        **options,
    )


GEMMA2 = _family("gemma2", "Gemma 2")
GEMMA3_TEXT = _family(
    "gemma3_text",
    "Gemma 3 (text)",
    *norm(BLOCK + "self_attn.q_norm", "head_dim", offset=_OFFSET),
    *norm(BLOCK + "self_attn.k_norm", "head_dim", offset=_OFFSET),
    normed_queries=True,
)
