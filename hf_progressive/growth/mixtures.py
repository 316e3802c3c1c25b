"""Mixtures of experts: Mixtral, Qwen3-MoE, Qwen2-MoE, with Llama's attention and norms, and FlexOlmo, with OLMo 2's.

Files hold every expert alone, under the names that were published; the stock classes fuse them on loading. All experts
of a layer are one tensor here, as they are one parameter there.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from hf_progressive.growth.family_table import AxisName, Family, WeightRule, linear, norm, reads, writes
from hf_progressive.growth.llama import SIZE_FIELDS

logger = logging.getLogger(__name__)

_KERNEL_BYTES = 16  # rows of the matrices that torch's grouped_mm multiplies are multiples of so many
_BLOCK = "model.layers.{layer}."
_ATTENTION = _BLOCK + "self_attn."
_MLP = _BLOCK + "mlp."
_EMBEDDING = "model.embed_tokens.weight"
_TRAINING_FIELDS = frozenset({"router_aux_loss_coef", "output_router_logits"})


def _rules(
    *mlp: WeightRule, qkv_bias: str | None = None, output_bias: str | None = None, normed_queries: bool = False
) -> tuple[WeightRule, ...]:
    query_norms = [*norm(_ATTENTION + "q_norm", "head_dim"), *norm(_ATTENTION + "k_norm", "head_dim")]
    return (
        WeightRule(_EMBEDDING, (reads("vocab"), writes("embedding"))),
        *linear(_ATTENTION + "q_proj", writes("query"), reads("normed"), bias=qkv_bias),
        *linear(_ATTENTION + "k_proj", writes("key"), reads("normed"), bias=qkv_bias),
        *linear(_ATTENTION + "v_proj", writes("value"), reads("normed"), bias=qkv_bias),
        *linear(_ATTENTION + "o_proj", writes("residual"), reads("context"), bias=output_bias, closes=True),
        *(query_norms if normed_queries else ()),
        *mlp,
        *norm(_BLOCK + "input_layernorm", "gain"),
        *norm(_BLOCK + "post_attention_layernorm", "gain"),
        *norm("model.norm", "final_gain"),
        WeightRule("lm_head.weight", (writes("vocab"), reads("final")), tied_to=_EMBEDDING),
    )


def _router(published: str = "", *, stream: AxisName = "normed", sparse: bool | None = None) -> WeightRule:
    # A router without bias, and the name it has in files, if that is another.
    names = (published,) if published else ()
    return WeightRule(_MLP + "gate.weight", (writes("experts"), reads(stream)), published=names, sparse=sparse)


def _experts(
    gate: str,
    up: str,
    down: str,
    *,
    axis: AxisName,
    stream: AxisName = "normed",
    closes: bool = True,
    sparse: bool | None = None,
) -> Iterator[WeightRule]:
    # Gated experts, of which files hold every matrix alone, by the names these have there.
    yield WeightRule(
        _MLP + "experts.gate_up_proj",
        (writes("experts"), writes(axis, axis), reads(stream)),
        published=(gate, up),
        sparse=sparse,
    )
    yield WeightRule(
        _MLP + "experts.down_proj",
        (writes("experts"), writes("residual"), reads(axis)),
        published=(down,),
        closes=closes,
        sparse=sparse,
    )


def _gated(name: str, axis: AxisName, *, sparse: bool) -> Iterator[WeightRule]:
    for part in ("gate_proj", "up_proj"):
        yield WeightRule(f"{name}{part}.weight", (writes(axis), reads("normed")), sparse=sparse)
    yield WeightRule(f"{name}down_proj.weight", (writes("residual"), reads(axis)), closes=True, sparse=sparse)


def _sparse_layers(config: Any) -> list[bool]:
    step, dense = config.decoder_sparse_step, config.mlp_only_layers
    return [layer not in dense and (layer + 1) % step == 0 for layer in range(config.num_hidden_layers)]


def _follow_sparse(config: Any, sparse: Sequence[bool]) -> None:
    config.decoder_sparse_step = 1
    config.mlp_only_layers = [layer for layer, mixture in enumerate(sparse) if not mixture]


def _family(
    model_type: str,
    title: str,
    rules: tuple[WeightRule, ...],
    sizes: dict[str, str],
    neutral: frozenset[str],
    **options: Any,
) -> Family:
    return Family(
        model_type=model_type,
        title=title,
        size_fields={**SIZE_FIELDS, "chosen": "num_experts_per_tok", **sizes},
        rules=rules,
        norm="rms",
        eps_field="rms_norm_eps",
        prefix="model.",
        ignored=(_ATTENTION + "rotary_emb.inv_freq",),
        neutral_fields=_TRAINING_FIELDS | neutral,
        rotary=True,
        **options,
    )


_PUBLISHED = _BLOCK + "block_sparse_moe."
_QWEN_EXPERT = _MLP + "experts.{expert}."
_QWEN_NAMES = tuple(f"{_QWEN_EXPERT}{part}.weight" for part in ("gate_proj", "up_proj", "down_proj"))
_SPARSITY = frozenset({"decoder_sparse_step", "mlp_only_layers"})  # which follow the layers

MIXTRAL = _family(
    "mixtral",
    "Mixtral",
    _rules(
        _router(_PUBLISHED + "gate.weight"),
        *_experts(*(f"{_PUBLISHED}experts.{{expert}}.{part}.weight" for part in ("w1", "w3", "w2")), axis="mlp"),
    ),
    {"experts": "num_local_experts"},
    frozenset({"router_jitter_noise"}),
    normed_choice=True,
)
QWEN3_MOE = _family(
    "qwen3_moe",
    "Qwen3-MoE",
    _rules(
        *_experts(*_QWEN_NAMES, axis="expert_mlp", sparse=True),
        _router(sparse=True),
        *_gated(_MLP, "mlp", sparse=False),
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        normed_queries=True,
    ),
    {"experts": "num_experts", "expert_mlp": "moe_intermediate_size"},
    _SPARSITY,
    normed_queries=True,
    sparse_layers=_sparse_layers,
    follow_sparse=_follow_sparse,
    normed_choice="norm_topk_prob",
)
QWEN2_MOE = _family(
    "qwen2_moe",
    "Qwen2-MoE",
    _rules(
        _router(sparse=True),
        *_experts(*_QWEN_NAMES, axis="expert_mlp", sparse=True),
        *_gated(_MLP + "shared_expert.", "shared_mlp", sparse=True),
        WeightRule(_MLP + "shared_expert_gate.weight", (writes("one"), reads("normed")), sparse=True),
        *_gated(_MLP, "mlp", sparse=False),
        qkv_bias="qkv_bias",
    ),
    {
        "experts": "num_experts",
        "expert_mlp": "moe_intermediate_size",
        "shared_mlp": "shared_expert_intermediate_size",
    },
    _SPARSITY | {"max_window_layers"},
    layer_fields=("layer_types",),
    sparse_layers=_sparse_layers,
    follow_sparse=_follow_sparse,
    normed_choice="norm_topk_prob",
)

FLEX_OLMO = Family(
    model_type="flex_olmo",
    title="FlexOlmo",
    size_fields={**SIZE_FIELDS, "experts": "num_experts", "chosen": "num_experts_per_tok"},
    rules=(
        WeightRule(_EMBEDDING, (reads("vocab"), writes("embedding"))),
        *linear(_ATTENTION + "q_proj", writes("query"), reads("residual"), bias="attention_bias"),
        *linear(_ATTENTION + "k_proj", writes("key"), reads("residual"), bias="attention_bias"),
        *linear(_ATTENTION + "v_proj", writes("value"), reads("residual"), bias="attention_bias"),
        *linear(_ATTENTION + "o_proj", writes("residual"), reads("context"), bias="attention_bias"),
        *norm(_ATTENTION + "q_norm", "query_gain"),
        *norm(_ATTENTION + "k_norm", "key_gain"),
        _router(stream="residual"),
        *_experts(*_QWEN_NAMES, axis="mlp", stream="residual", closes=False),
        *norm(_BLOCK + "post_attention_layernorm", "post_gain", closes=True),
        *norm(_BLOCK + "post_feedforward_layernorm", "post_gain", closes=True),
        *norm("model.norm", "final_gain"),
        WeightRule("lm_head.weight", (writes("vocab"), reads("final")), tied_to=_EMBEDDING),
    ),
    norm="rms",
    eps_field="rms_norm_eps",
    prefix="model.",
    ignored=(_ATTENTION + "rotary_emb.inv_freq",),
    neutral_fields=_TRAINING_FIELDS,
    rotary=True,
    normed_queries="all_heads",
    normed_choice="norm_topk_prob",
)

MIXTURES: dict[str, Family] = {family.model_type: family for family in (MIXTRAL, QWEN3_MOE, QWEN2_MOE, FLEX_OLMO)}
"""Every family with experts, by the `model_type` of its configs."""


def write_sparsity(family: Family, source: Any, target: Any, sparse: Sequence[bool]) -> None:
    """Write into a target which of its layers are mixtures, as its parent's are.

    Raises:
        ValueError: The target names others.
    """
    assert family.follow_sparse is not None
    named = {name: getattr(target, name, None) for name in sorted(_SPARSITY)}
    family.follow_sparse(target, sparse)
    for name, value in named.items():
        if value not in (getattr(source, name, None), getattr(target, name, None)):
            raise ValueError(
                f"{name}={value}: which layers are mixtures follows from the growth and cannot be chosen; leave it out"
            )


def warn_of_rows_for_kernels(family: Family, config: Any, dtype: torch.dtype) -> None:
    """Warn of a mixture whose sizes the stock class's kernel for experts refuses, where growth's comparison does not.

    The comparison runs the experts one by one.
    """
    if not family.has_experts or dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return
    unit = _KERNEL_BYTES // dtype.itemsize
    units = "expert_mlp" if "expert_mlp" in family.size_fields else "mlp"
    fields = (family.size_fields["width"], family.size_fields[units])
    odd = [(name, getattr(config, name)) for name in fields if getattr(config, name) % unit]
    if odd:
        logger.warning(
            "%s: in %s the stock class's kernel for experts takes multiples of %d; take %s, or load the model with"
            " experts_implementation='eager'",
            ", ".join(f"{name}={size}" for name, size in odd),
            str(dtype).removeprefix("torch."),
            unit,
            " and ".join(f"{name}={size + -size % unit}" for name, size in odd),
        )
