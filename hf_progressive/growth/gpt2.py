"""GPT-2 (`GPT2LMHeadModel`): LayerNorm, learned positions, fused query|key|value, `Conv1D` weights (in, out)."""

from hf_progressive.growth.family_table import Family, WeightRule, linear, norm, reads, writes

_BLOCK = "transformer.h.{layer}."

GPT2 = Family(
    model_type="gpt2",
    title="GPT-2",
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
        *norm(_BLOCK + "ln_1", "gain", "shift"),
        *linear(_BLOCK + "attn.c_attn", reads("normed"), writes("query", "key", "value")),
        *linear(_BLOCK + "attn.c_proj", reads("context"), writes("residual"), init="scaled_normal", closes=True),
        *norm(_BLOCK + "ln_2", "gain", "shift"),
        *linear(_BLOCK + "mlp.c_fc", reads("normed"), writes("mlp")),
        *linear(_BLOCK + "mlp.c_proj", reads("mlp"), writes("residual"), init="scaled_normal", closes=True),
        *norm("transformer.ln_f", "final_gain", "final_shift"),
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
    gated=False,
    dropouts=frozenset({"resid_pdrop", "embd_pdrop", "attn_pdrop"}),
    scaled_scores="scale_attn_weights",
    layered_scores="scale_attn_by_inverse_layer_idx",
    unsupported={"add_cross_attention": "growth maps decoders only"},
)
