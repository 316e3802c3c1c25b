"""NanoChat: RMSNorm without weights (of queries and keys too), rotary positions, squared ReLU, softcapped logits."""

from hf_progressive.growth.family_table import Family, WeightRule, linear, reads, writes
from hf_progressive.growth.llama import SIZE_FIELDS

_ATTENTION = "model.layers.{layer}.self_attn."
_MLP = "model.layers.{layer}.mlp."
_BIAS = "attention_bias"
_EMBEDDING = "model.embed_tokens.weight"

NANOCHAT = Family(
    model_type="nanochat",
    title="NanoChat",
    size_fields=SIZE_FIELDS,
    rules=(
        # The embedding is normalised before it enters the stream, which does not see the factor it is written with.
        WeightRule(_EMBEDDING, (reads("vocab"), writes("embedding"))),
        *linear(_ATTENTION + "q_proj", writes("query"), reads("normed"), bias=_BIAS),
        *linear(_ATTENTION + "k_proj", writes("key"), reads("normed"), bias=_BIAS),
        *linear(_ATTENTION + "v_proj", writes("value"), reads("normed"), bias=_BIAS),
        *linear(
            _ATTENTION + "o_proj", writes("residual"), reads("context"), bias=_BIAS, init="scaled_normal", closes=True
        ),
        *linear(_MLP + "fc1", writes("mlp"), reads("normed"), bias=None),
        *linear(_MLP + "fc2", writes("residual"), reads("mlp"), bias=None, closes=True),
        WeightRule("lm_head.weight", (writes("vocab"), reads("final")), tied_to=_EMBEDDING),
    ),
    norm="weightless_rms",
    eps_field="rms_norm_eps",
    prefix="model.",
    gated=False,
    rotary=True,
    normed_queries=True,
)
