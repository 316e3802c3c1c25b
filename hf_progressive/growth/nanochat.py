"""NanoChat: RMSNorm without weights (of queries and keys too), rotary positions, squared ReLU, softcapped logits."""

from hf_progressive.growth.family_table import Family, WeightRule, reads, writes
from hf_progressive.growth.llama import SIZE_FIELDS

_ATTENTION = "model.layers.{layer}.self_attn."
_MLP = "model.layers.{layer}.mlp."
_EMBEDDING = "model.embed_tokens.weight"

NANOCHAT = Family(
    model_type="nanochat",
    size_fields=SIZE_FIELDS,
    rules=(
        # The embedding is normalised before it enters the stream, which does not see the factor it is written with.
        WeightRule(_EMBEDDING, (reads("vocab"), writes("embedding"))),
        WeightRule(_ATTENTION + "q_proj.weight", (writes("query"), reads("normed"))),
        WeightRule(_ATTENTION + "q_proj.bias", (writes("query"),), init="zeros", when="attention_bias"),
        WeightRule(_ATTENTION + "k_proj.weight", (writes("key"), reads("normed"))),
        WeightRule(_ATTENTION + "k_proj.bias", (writes("key"),), init="zeros", when="attention_bias"),
        WeightRule(_ATTENTION + "v_proj.weight", (writes("value"), reads("normed"))),
        WeightRule(_ATTENTION + "v_proj.bias", (writes("value"),), init="zeros", when="attention_bias"),
        WeightRule(_ATTENTION + "o_proj.weight", (writes("residual"), reads("context")), "scaled_normal", closes=True),
        WeightRule(
            _ATTENTION + "o_proj.bias", (writes("residual"),), init="zeros", closes=True, when="attention_bias"
        ),
        WeightRule(_MLP + "fc1.weight", (writes("mlp"), reads("normed"))),
        WeightRule(_MLP + "fc2.weight", (writes("residual"), reads("mlp")), closes=True),
        WeightRule("lm_head.weight", (writes("vocab"), reads("final")), tied_to=_EMBEDDING),
    ),
    norm="weightless_rms",
    eps_field="rms_norm_eps",
    prefix="model.",
    rotary=True,
    normed_queries=True,
)
