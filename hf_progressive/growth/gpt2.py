"""GPT-2 (`GPT2LMHeadModel`): LayerNorm, learned positions, fused query|key|value, `Conv1D` weights (in, out)."""

from hf_progressive.growth.family_table import Family, WeightRule, reads, writes

_BLOCK = "transformer.h.{layer}."

GPT2 = Family(
    model_type="gpt2",
    size_fields={
        "width": "n_embd",
        "layers": "n_layer",
        "heads": "n_head",
        "mlp": "n_inner",
        "vocab": "vocab_size",
        "positions": "n_positions",
    },
    rules=(
        WeightRule("transformer.wte.weight", (reads("vocab"), writes("embedding"))),
        WeightRule("transformer.wpe.weight", (reads("positions"), writes("embedding"))),
        WeightRule(_BLOCK + "ln_1.weight", (writes("gain"),), init="ones"),
        WeightRule(_BLOCK + "ln_1.bias", (writes("shift"),), init="zeros"),
        WeightRule(_BLOCK + "attn.c_attn.weight", (reads("normed"), writes("query", "key", "value"))),
        WeightRule(_BLOCK + "attn.c_attn.bias", (writes("query", "key", "value"),), init="zeros"),
        WeightRule(
            _BLOCK + "attn.c_proj.weight", (reads("context"), writes("residual")), init="scaled_normal", closes=True
        ),
        WeightRule(_BLOCK + "attn.c_proj.bias", (writes("residual"),), init="zeros", closes=True),
        WeightRule(_BLOCK + "ln_2.weight", (writes("gain"),), init="ones"),
        WeightRule(_BLOCK + "ln_2.bias", (writes("shift"),), init="zeros"),
        WeightRule(_BLOCK + "mlp.c_fc.weight", (reads("normed"), writes("mlp"))),
        WeightRule(_BLOCK + "mlp.c_fc.bias", (writes("mlp"),), init="zeros"),
        WeightRule(
            _BLOCK + "mlp.c_proj.weight", (reads("mlp"), writes("residual")), init="scaled_normal", closes=True
        ),
        WeightRule(_BLOCK + "mlp.c_proj.bias", (writes("residual"),), init="zeros", closes=True),
        WeightRule("transformer.ln_f.weight", (writes("final_gain"),), init="ones"),
        WeightRule("transformer.ln_f.bias", (writes("final_shift"),), init="zeros"),
        WeightRule("lm_head.weight", (writes("vocab"), reads("final")), tied_to="transformer.wte.weight"),
    ),
    norm="layer",
    eps_field="layer_norm_epsilon",
    prefix="transformer.",
    ignored=(_BLOCK + "attn.bias", _BLOCK + "attn.masked_bias"),
    neutral_fields=frozenset(
        {
            "reorder_and_upcast_attn",  # the precision of the scores, not their value
            "summary_type",
            "summary_use_proj",
            "summary_activation",
            "summary_proj_to_labels",
            "summary_first_dropout",
        }
    ),
    scaled_scores="scale_attn_weights",
    layered_scores="scale_attn_by_inverse_layer_idx",
    unsupported={"add_cross_attention": "growth maps decoders only"},
)
