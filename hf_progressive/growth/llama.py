"""Llama and its relatives: RMSNorm, rotary positions, grouped-query attention, gated MLP, `Linear` weights (out, in).

They share one table; what sets them apart is said by option.
"""

from typing import Any

from hf_progressive.growth.family_table import Family, WeightRule, linear, norm, reads, writes

SIZE_FIELDS = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "mlp": "intermediate_size",
    "vocab": "vocab_size",
    "positions": "max_position_embeddings",
}
"""Config fields of the sizes, as Llama and many families after it name them."""

BLOCK = "model.layers.{layer}."
"""Prefix of a layer's tensors, as these families name them."""

_EMBEDDING = "model.embed_tokens.weight"
EMBEDDING = WeightRule(_EMBEDDING, (reads("vocab"), writes("embedding")))
HEAD = WeightRule("lm_head.weight", (writes("vocab"), reads("final")), tied_to=_EMBEDDING)
"""The first tensor of these families, and the last."""


def llama_like(model_type: str, title: str, rules: tuple[WeightRule, ...], **options: Any) -> Family:
    """Describe a family that differs from Llama in its rules between `EMBEDDING` and `HEAD`, and by options."""
    return Family(
        model_type=model_type,
        title=title,
        size_fields=SIZE_FIELDS,
        rules=(EMBEDDING, *rules, HEAD),
        norm="rms",
        eps_field="rms_norm_eps",
        prefix="model.",
        ignored=(BLOCK + "self_attn.rotary_emb.inv_freq",),
        rotary=True,
        **options,
    )


def _rules(
    *,
    qkv_bias: str | None = None,
    output_bias: str | None = None,
    mlp_bias: str | None = None,
    normed_queries: bool = False,
    offset: float = 0.0,
) -> tuple[WeightRule, ...]:
    attention, mlp = BLOCK + "self_attn.", BLOCK + "mlp."
    query_norms = [*norm(attention + "q_norm", "head_dim"), *norm(attention + "k_norm", "head_dim")]
    return (
        *linear(attention + "q_proj", writes("query"), reads("normed"), bias=qkv_bias),
        *linear(attention + "k_proj", writes("key"), reads("normed"), bias=qkv_bias),
        *linear(attention + "v_proj", writes("value"), reads("normed"), bias=qkv_bias),
        *linear(attention + "o_proj", writes("residual"), reads("context"), bias=output_bias, closes=True),
        *(query_norms if normed_queries else ()),
        *linear(mlp + "gate_proj", writes("mlp"), reads("normed"), bias=mlp_bias),
        *linear(mlp + "up_proj", writes("mlp"), reads("normed"), bias=mlp_bias),
        *linear(mlp + "down_proj", writes("residual"), reads("mlp"), bias=mlp_bias, closes=True),
        *norm(BLOCK + "input_layernorm", "gain", offset=offset),
        *norm(BLOCK + "post_attention_layernorm", "gain", offset=offset),
        *norm("model.norm", "final_gain", offset=offset),
    )


LLAMA = llama_like(
    "llama", "Llama", _rules(qkv_bias="attention_bias", output_bias="attention_bias", mlp_bias="mlp_bias")
)
MISTRAL = llama_like("mistral", "Mistral", _rules())
QWEN2 = llama_like(
    "qwen2",
    "Qwen2",
    _rules(qkv_bias=""),
    layer_fields=("layer_types",),
    neutral_fields=frozenset({"max_window_layers"}),
)
QWEN3 = llama_like(
    "qwen3",
    "Qwen3",
    _rules(qkv_bias="attention_bias", output_bias="attention_bias", normed_queries=True),
    normed_queries=True,
    layer_fields=("layer_types",),
    neutral_fields=frozenset({"max_window_layers"}),  # said by layer_types
)
GEMMA = llama_like(
    "gemma",
    "Gemma",
    _rules(qkv_bias="attention_bias", output_bias="attention_bias", offset=1.0),
    scaled_embedding=True,
)
GRANITE = llama_like(
    "granite",
    "Granite",
    _rules(qkv_bias="attention_bias", output_bias="attention_bias", mlp_bias="mlp_bias"),
    scaled_scores=False,  # by attention_multiplier, whatever the head_dim
    head_dim_fields={"attention_multiplier": lambda head_dim: 1 / head_dim},  # as the published models have it
)
SMOLLM3 = llama_like(
    "smollm3",
    "SmolLM3",
    _rules(qkv_bias="attention_bias", output_bias="attention_bias", mlp_bias="mlp_bias"),
    layer_fields=("layer_types", "no_rope_layers"),
)
