"""OLMo 2 and OLMo 3: norms behind attention and MLP, which read the stream as it is; query and key norms of all heads.

OLMo 3 has sliding windows in some layers.
"""

from typing import Any

from hf_progressive.growth.family_table import Family, linear, norm, reads, writes
from hf_progressive.growth.llama import BLOCK, llama_like

_ATTENTION = BLOCK + "self_attn."
_MLP = BLOCK + "mlp."
_BIAS = "attention_bias"


def _family(model_type: str, title: str, **options: Any) -> Family:
    return llama_like(
        model_type,
        title,
        (
            *linear(_ATTENTION + "q_proj", writes("query"), reads("residual"), bias=_BIAS),
            *linear(_ATTENTION + "k_proj", writes("key"), reads("residual"), bias=_BIAS),
            *linear(_ATTENTION + "v_proj", writes("value"), reads("residual"), bias=_BIAS),
            *linear(_ATTENTION + "o_proj", writes("residual"), reads("context"), bias=_BIAS),
            *norm(_ATTENTION + "q_norm", "query_gain"),
            *norm(_ATTENTION + "k_norm", "key_gain"),
            *linear(_MLP + "gate_proj", writes("mlp"), reads("residual"), bias=None),
            *linear(_MLP + "up_proj", writes("mlp"), reads("residual"), bias=None),
            *linear(_MLP + "down_proj", writes("residual"), reads("mlp"), bias=None),
            *norm(BLOCK + "post_attention_layernorm", "post_gain", closes=True),
            *norm(BLOCK + "post_feedforward_layernorm", "post_gain", closes=True),
            *norm("model.norm", "final_gain"),
        ),
        normed_queries="all_heads",
        **options,
    )


OLMO2 = _family("olmo2", "OLMo 2")
OLMO3 = _family("olmo3", "OLMo 3", layer_fields=("layer_types",))
