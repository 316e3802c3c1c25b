"""GPT-NeoX (Pythia): LayerNorm, attention beside the MLP, partial rotation, queries, keys and values fused by head."""

from hf_progressive.growth.family_table import Family, WeightRule, linear, norm, reads, writes, writes_grouped

_BLOCK = "gpt_neox.layers.{layer}."
_EMBEDDING = "gpt_neox.embed_in.weight"
_BIAS = "attention_bias"

GPT_NEOX = Family(
    model_type="gpt_neox",
    title="GPT-NeoX (Pythia)",
    size_fields={
        "width": "hidden_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "mlp": "intermediate_size",
        "vocab": "vocab_size",
        "positions": "max_position_embeddings",
    },
    rules=(
        WeightRule(_EMBEDDING, (reads("vocab"), writes("embedding"))),
        *norm(_BLOCK + "input_layernorm", "gain", "shift"),
        *norm(_BLOCK + "post_attention_layernorm", "gain", "shift"),  # reads the stream before attention, if parallel
        *linear(
            _BLOCK + "attention.query_key_value", writes_grouped("query", "key", "value"), reads("normed"), bias=_BIAS
        ),
        *linear(_BLOCK + "attention.dense", writes("residual"), reads("context"), bias=_BIAS, closes=True),
        *linear(_BLOCK + "mlp.dense_h_to_4h", writes("mlp"), reads("normed")),
        *linear(_BLOCK + "mlp.dense_4h_to_h", writes("residual"), reads("mlp"), closes=True),
        *norm("gpt_neox.final_layer_norm", "final_gain", "final_shift"),
        WeightRule(
            "lm_head.weight",
            (writes("vocab"), reads("final")),
            tied_to=_EMBEDDING,
            published=("embed_out.weight",),
        ),
    ),
    norm="layer",
    eps_field="layer_norm_eps",
    prefix="gpt_neox.",
    head_prefixes=("lm_head.", "embed_out."),
    ignored=(
        _BLOCK + "attention.bias",
        _BLOCK + "attention.masked_bias",
        _BLOCK + "attention.rotary_emb.inv_freq",
    ),
    dropouts=frozenset({"attention_dropout", "hidden_dropout"}),
    neutral_fields=frozenset({"classifier_dropout", "is_decoder"}),
    rotary=True,
    partial_rotary=True,
    gated=False,
)
