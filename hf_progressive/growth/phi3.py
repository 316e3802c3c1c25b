"""Phi-3: like Llama, with query, key and value in one matrix and the MLP's gate and input in another."""

from hf_progressive.growth.family_table import Family, WeightRule, linear, norm, reads, writes
from hf_progressive.growth.llama import SIZE_FIELDS

_BLOCK = "model.layers.{layer}."
_EMBEDDING = "model.embed_tokens.weight"

PHI3 = Family(
    model_type="phi3",
    title="Phi-3",
    size_fields=SIZE_FIELDS,
    rules=(
        WeightRule(_EMBEDDING, (reads("vocab"), writes("embedding"))),
        *linear(_BLOCK + "self_attn.o_proj", writes("residual"), reads("context"), bias=None, closes=True),
        *linear(_BLOCK + "self_attn.qkv_proj", writes("query", "key", "value"), reads("normed"), bias=None),
        *linear(_BLOCK + "mlp.gate_up_proj", writes("mlp", "mlp"), reads("normed"), bias=None),
        *linear(_BLOCK + "mlp.down_proj", writes("residual"), reads("mlp"), bias=None, closes=True),
        *norm(_BLOCK + "input_layernorm", "gain"),
        *norm(_BLOCK + "post_attention_layernorm", "gain"),
        *norm("model.norm", "final_gain"),
        WeightRule("lm_head.weight", (writes("vocab"), reads("final")), tied_to=_EMBEDDING),
    ),
    norm="rms",
    eps_field="rms_norm_eps",
    prefix="model.",
    ignored=(_BLOCK + "self_attn.rotary_emb.inv_freq",),
    dropouts=frozenset({"resid_pdrop", "embd_pdrop", "attention_dropout"}),
    rotary=True,
    partial_rotary=True,
)
