"""Phi-3: like Llama, with query, key and value in one matrix and the MLP's gate and input in another."""

from hf_progressive.growth.family_table import linear, norm, reads, writes
from hf_progressive.growth.llama import BLOCK, llama_like

PHI3 = llama_like(
    "phi3",
    "Phi-3",
    (
        *linear(BLOCK + "self_attn.o_proj", writes("residual"), reads("context"), bias=None, closes=True),
        *linear(BLOCK + "self_attn.qkv_proj", writes("query", "key", "value"), reads("normed"), bias=None),
        *linear(BLOCK + "mlp.gate_up_proj", writes("mlp", "mlp"), reads("normed"), bias=None),
        *linear(BLOCK + "mlp.down_proj", writes("residual"), reads("mlp"), bias=None, closes=True),
        *norm(BLOCK + "input_layernorm", "gain"),
        *norm(BLOCK + "post_attention_layernorm", "gain"),
        *norm("model.norm", "final_gain"),
    ),
    dropouts=frozenset({"resid_pdrop", "embd_pdrop", "attention_dropout"}),
    partial_rotary=True,
)
