"""Falcon: LayerNorm, queries, keys and values fused by key/value head, and three architectures in one class.

The 7B model has one key/value head, and one norm for attention and the MLP beside it; the 40B model has groups of
heads and a norm for each of the two; the RW models have as many key/value heads as heads, slopes (ALiBi) in place of
rotations, and the MLP behind attention.
"""

from typing import Any

from hf_progressive.growth.family_table import Family, WeightRule, linear, norm, reads, writes, writes_grouped

_BLOCK = "transformer.h.{layer}."
_EMBEDDING = "transformer.word_embeddings.weight"
_BIAS = "bias"


def _kv_heads(config: Any) -> int:
    if config.new_decoder_architecture:
        return int(config.num_kv_heads)
    return 1 if config.multi_query else int(config.num_attention_heads)


def _has_two_norms(config: Any) -> bool:
    norms = config.num_ln_in_parallel_attn
    if norms is None and config.new_decoder_architecture:
        norms = 2  # the class writes it into the config when it builds a layer
    return bool(config.parallel_attn) and norms == 2


def _has_input_norm(config: Any) -> bool:
    return not _has_two_norms(config)


def _is_sequential(config: Any) -> bool:
    return not config.parallel_attn


FALCON = Family(
    model_type="falcon",
    title="Falcon",
    size_fields={
        "width": "hidden_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "kv_heads": "num_kv_heads",
        "mlp": "ffn_hidden_size",
        "vocab": "vocab_size",
        "positions": "max_position_embeddings",
    },
    rules=(
        WeightRule(_EMBEDDING, (reads("vocab"), writes("embedding"))),
        *linear(
            _BLOCK + "self_attention.query_key_value",
            writes_grouped("query", "key", "value"),
            reads("normed"),
            bias=_BIAS,
        ),
        *linear(_BLOCK + "self_attention.dense", writes("residual"), reads("context"), bias=_BIAS, closes=True),
        *linear(_BLOCK + "mlp.dense_h_to_4h", writes("mlp"), reads("normed"), bias=_BIAS),
        *linear(_BLOCK + "mlp.dense_4h_to_h", writes("residual"), reads("mlp"), bias=_BIAS, closes=True),
        *norm(_BLOCK + "post_attention_layernorm", "gain", "shift", when=_is_sequential),
        *norm(_BLOCK + "ln_attn", "gain", "shift", when=_has_two_norms),
        *norm(_BLOCK + "ln_mlp", "gain", "shift", when=_has_two_norms),
        *norm(_BLOCK + "input_layernorm", "gain", "shift", when=_has_input_norm),
        *norm("transformer.ln_f", "final_gain", "final_shift"),
        WeightRule("lm_head.weight", (writes("vocab"), reads("final")), tied_to=_EMBEDDING),
    ),
    norm="layer",
    eps_field="layer_norm_epsilon",
    prefix="transformer.",
    ignored=(_BLOCK + "self_attention.rotary_emb.inv_freq",),
    dropouts=frozenset({"hidden_dropout", "attention_dropout"}),
    kv_heads=_kv_heads,
    rotary=True,
    alibi="alibi",
    gated=False,
)
