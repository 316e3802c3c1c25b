"""OPT: LayerNorm of a fixed epsilon, learned positions of two rows more than the context, biases."""

from hf_progressive.growth.family_table import Family, WeightRule, linear, norm, reads, writes

_BLOCK = "model.decoder.layers.{layer}."
_ATTENTION = _BLOCK + "self_attn."
_EMBEDDING = "model.decoder.embed_tokens.weight"
_BIAS = "enable_bias"

OPT = Family(
    model_type="opt",
    title="OPT",
    size_fields={
        "width": "hidden_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "mlp": "ffn_dim",
        "vocab": "vocab_size",
        "positions": "max_position_embeddings",
    },
    rules=(
        WeightRule(_EMBEDDING, (reads("vocab"), writes("embedding"))),
        WeightRule("model.decoder.embed_positions.weight", (reads("positions"), writes("embedding"))),
        *norm("model.decoder.final_layer_norm", "final_gain", "final_shift"),
        *linear(_ATTENTION + "k_proj", writes("key"), reads("normed"), bias=_BIAS),
        *linear(_ATTENTION + "v_proj", writes("value"), reads("normed"), bias=_BIAS),
        *linear(_ATTENTION + "q_proj", writes("query"), reads("normed"), bias=_BIAS),
        *linear(_ATTENTION + "out_proj", writes("residual"), reads("context"), bias=_BIAS, closes=True),
        *norm(_BLOCK + "self_attn_layer_norm", "gain", "shift"),
        *linear(_BLOCK + "fc1", writes("mlp"), reads("normed"), bias=_BIAS),
        *linear(_BLOCK + "fc2", writes("residual"), reads("mlp"), bias=_BIAS, closes=True),
        *norm(_BLOCK + "final_layer_norm", "gain", "shift"),
        WeightRule("lm_head.weight", (writes("vocab"), reads("final")), tied_to=_EMBEDDING),
    ),
    norm="layer",
    eps_field="",  # torch's own, 1e-5
    prefix="model.",
    position_rows=2,
    repeats={"word_embed_proj_dim": "width"},
    init_field="init_std",
    gated=False,
    dropouts=frozenset({"dropout", "attention_dropout", "layerdrop"}),
    unsupported={"_remove_final_layer_norm": "the output head would read the stream without a norm"},
    required={
        "do_layer_norm_before": "a norm behind the sum cannot take new channels or silent layers",
        "layer_norm_elementwise_affine": "a norm without gain cannot make up for new channels",
    },
)
