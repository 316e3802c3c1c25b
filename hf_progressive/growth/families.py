"""The families that can grow, by `model_type`. Adding one here adds a file with its table and a line.

From outside of the package, `register_family` adds one for the running process:

    from hf_progressive import grow_checkpoint, register_family
    from hf_progressive.growth import Family, WeightRule, linear, norm, reads, writes

    LAYER, EMBEDDING = "model.layers.{layer}.", "model.embed_tokens.weight"
    ATTENTION, MLP, BIAS = LAYER + "self_attn.", LAYER + "mlp.", "use_bias"  # the config field that switches biases

    register_family(
        Family(
            model_type="starcoder2",
            size_fields={
                "width": "hidden_size",
                "layers": "num_hidden_layers",
                "heads": "num_attention_heads",
                "kv_heads": "num_key_value_heads",
                "mlp": "intermediate_size",
                "vocab": "vocab_size",
                "positions": "max_position_embeddings",
            },
            rules=(
                WeightRule(EMBEDDING, (reads("vocab"), writes("embedding"))),
                *linear(ATTENTION + "q_proj", writes("query"), reads("normed"), bias=BIAS),
                *linear(ATTENTION + "k_proj", writes("key"), reads("normed"), bias=BIAS),
                *linear(ATTENTION + "v_proj", writes("value"), reads("normed"), bias=BIAS),
                *linear(ATTENTION + "o_proj", writes("residual"), reads("context"), bias=BIAS, closes=True),
                *linear(MLP + "c_fc", writes("mlp"), reads("normed"), bias=BIAS),
                *linear(MLP + "c_proj", writes("residual"), reads("mlp"), bias=BIAS, closes=True),
                *norm(LAYER + "input_layernorm", "gain", "shift"),
                *norm(LAYER + "post_attention_layernorm", "gain", "shift"),
                *norm("model.norm", "final_gain", "final_shift"),
                WeightRule("lm_head.weight", (writes("vocab"), reads("final")), tied_to=EMBEDDING),
            ),
            norm="layer",
            eps_field="norm_epsilon",
            prefix="model.",
            neutral_fields=frozenset({"residual_dropout", "embedding_dropout"}),
            rotary=True,
        )
    )
    grow_checkpoint("bigcode/starcoder2-3b", "grown", {"num_hidden_layers": 32})
"""

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import Any, get_args

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from hf_progressive.config.ranges import class_of
from hf_progressive.config.strict_yaml import nearest
from hf_progressive.growth.falcon import FALCON
from hf_progressive.growth.family_table import AxisName, Family, Norm, Sizes
from hf_progressive.growth.gemma2 import GEMMA2, GEMMA3_TEXT
from hf_progressive.growth.gpt2 import GPT2
from hf_progressive.growth.gpt_neox import GPT_NEOX
from hf_progressive.growth.llama import GEMMA, GRANITE, LLAMA, MISTRAL, QWEN2, QWEN3, SMOLLM3
from hf_progressive.growth.mixtures import MIXTURES
from hf_progressive.growth.nanochat import NANOCHAT
from hf_progressive.growth.olmo2 import OLMO2, OLMO3
from hf_progressive.growth.opt import OPT
from hf_progressive.growth.phi3 import PHI3
from hf_progressive.growth.unmerged import refuse_quantized

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        GPT2,
        LLAMA,
        MISTRAL,
        QWEN2,
        QWEN3,
        GEMMA,
        GRANITE,
        SMOLLM3,
        NANOCHAT,
        GPT_NEOX,
        OPT,
        GEMMA2,
        GEMMA3_TEXT,
        PHI3,
        FALCON,
        OLMO2,
        OLMO3,
    )
}
"""Every family of dense models, by the `model_type` of its configs; `MIXTURES` has those with experts."""

_SMALL = {"width": 24, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 10, "mlp": 14, "vocab": 22, "positions": 18,
          "experts": 3, "chosen": 2, "expert_mlp": 6, "shared_mlp": 26}  # fmt: skip
"""Sizes of the model that a table is compared with: as far as a family allows, no two axes are of one length."""

_TOKENS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}


def family_of(config: Any) -> Family:
    """Return the family of a config; one that is unknown, or an option that growth cannot map, is a ValueError."""
    if not isinstance(config, PreTrainedConfig):
        what = repr(config) if isinstance(config, str) else class_of(config)
        raise ValueError(f"{what} is no model's config; load one, as by AutoConfig.from_pretrained(...)")
    known = FAMILIES | MIXTURES
    family = known.get(config.model_type)
    if family is None:
        raise ValueError(
            f"model_type {config.model_type!r} cannot be grown; families known: {', '.join(known)}; add one from"
            " Python with register_family"
        )
    refuse_quantized(config, "grown")
    family.refuse_unsupported(config)
    return family


def field_advice(name: str, model_type: str, known: Iterable[str]) -> str:
    """Return advice on a field that a family's configuration does not have: its own name for it, or the nearest one.

    >>> field_advice("n_layer", "llama", ["num_hidden_layers"])
    "did you mean 'num_hidden_layers'?"
    """
    families = FAMILIES | MIXTURES
    sizes = families[model_type].size_fields
    axes = {axis for family in families.values() for axis, field in family.size_fields.items() if field == name}
    for axis in sorted(axes & sizes.keys()):
        return f"did you mean {sizes[axis]!r}?"
    near = difflib.get_close_matches(name.lower(), list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else f"the sizes are {', '.join(dict.fromkeys(sizes.values()))}"


def register_family(family: Family) -> Family:
    """Make a family of models known to growth, for as long as the process runs.

    A family is a table: which tensors the stock class has, which axes each of them reads and writes, and the config
    fields that size the axes. `hf_progressive.growth.family_table` explains every entry, the docstring of
    `hf_progressive.growth.families` shows a whole table. It is compared, name by name and shape by shape, with small
    models that the stock class makes on the meta device: with tied and untied embeddings, and with every switch of the
    config on and off, but those that the table says are unsupported. What no shape shows (the kind of norm, what
    scales scores or embeddings) shows in the comparison of logits that `grow_checkpoint` makes.

    Args:
        family: The family: its `model_type`, one that `transformers` has a causal language model for, its table
            `rules`, `size_fields`, and the facts that decide which growth is exact.

    Returns:
        The family.

    Raises:
        ValueError: The `model_type` is known here already, or not to transformers; a config field does not exist; or
            the table lacks tensors of the stock class, has others, or gives them another shape or order.

    >>> from hf_progressive.growth import Family
    >>> from hf_progressive.growth.llama import LLAMA
    >>> register_family(LLAMA)
    Traceback (most recent call last):
    ValueError: model_type 'llama' can be grown already; a family is registered once
    """
    if not isinstance(family, Family):
        raise ValueError(f"family is {class_of(family)}; give a Family of hf_progressive.growth, the table of one")
    if family.model_type in FAMILIES | MIXTURES:
        raise ValueError(f"model_type {family.model_type!r} can be grown already; a family is registered once")
    if faults := list(dict.fromkeys(_faults(family))):
        raise ValueError(f"the family {family.model_type!r} is not complete: {'; '.join(faults)}")
    FAMILIES[family.model_type] = family
    return family


def _faults(family: Family) -> Iterator[str]:
    # What a table lacks or has wrongly, in small models of the stock class.
    try:
        default = AutoConfig.for_model(family.model_type)
    except ValueError:
        yield "transformers has no model of this type"
        return
    if type(default) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        yield f"transformers has no causal language model for {class_of(default)}"
        return
    if misnamed := list(_misnamed(family)):
        yield from misnamed
        return
    wrong = list(_wrong_fields(family, default))
    yield from wrong
    if family.norm != "rms" and any("post_gain" in dim.axes for rule in family.rules for dim in rule.dims):
        yield "post_gain: a norm behind attention or MLP is exact for an RMS norm with a gain alone"
    if not any(rule.per_layer for rule in family.rules):
        yield "no tensor has {layer} in its name"
    elif not wrong:
        for config in _small_configs(family, default):
            yield from _differences(family, config)


# Axes and a norm that no table knows.
def _misnamed(family: Family) -> Iterator[str]:
    unknown = {axis for rule in family.rules for dim in rule.dims for axis in dim.axes} - {*get_args(AxisName)}
    yield from (
        f"the axis {axis!r} is not known; {nearest(str(axis), get_args(AxisName))}" for axis in sorted(unknown)
    )
    if family.norm not in get_args(Norm):
        yield f"norm {family.norm!r} is not known; {nearest(family.norm, get_args(Norm))}"


# Fields that the config does not have, and sizes that are not sizes or are missing.
def _wrong_fields(family: Family, default: Any) -> Iterator[str]:
    conditions = {rule.when for rule in family.rules if isinstance(rule.when, str) and rule.when}
    named = {*family.size_fields.values(), *family.layer_fields, *family.neutral_fields, *conditions}
    named |= {family.eps_field, family.alibi, family.init_field, *family.repeats, *family.dropouts}
    named -= {family.size_fields.get("head_dim"), ""}  # a config without head_dim divides the width by the heads
    own = _own_fields(default)
    yield from (f"{name} is not a field of {type(default).__name__}" for name in sorted(named - own))
    sizes = [entry.name for entry in fields(Sizes)]
    yield from (f"size_fields: {name} is not one of {', '.join(sizes)}" for name in family.size_fields.keys() - sizes)
    needed = ("width", "layers", "heads", "mlp", "vocab", "positions")
    yield from (f"size_fields: {name} is missing" for name in needed if name not in family.size_fields)


def _own_fields(config: Any) -> set[str]:
    return {entry.name for entry in fields(type(config))} | set(type(config).attribute_map)


# Small configs, tied and not, with each of the class's switches in turn set the other way.
def _small_configs(family: Family, default: Any) -> Iterator[Any]:
    own = _own_fields(default)
    small = {field: _SMALL[name] for name, field in family.size_fields.items() if field in own}
    general = {entry.name for entry in fields(PreTrainedConfig)} | {"use_cache"}
    general |= family.unsupported.keys() | family.required.keys()
    switches = [name for name in own - general if isinstance(getattr(default, name), bool)]
    for tied in (True, False):
        for switched in ({}, *({name: not getattr(default, name)} for name in sorted(switches))):
            options = small | _TOKENS | switched | {"tie_word_embeddings": tied}
            yield AutoConfig.for_model(family.model_type, **options)


def _differences(family: Family, config: Any) -> Iterator[str]:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    stock = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    table = {name: family.shape(rule, config) for name, rule, _ in family.tensors(config)}
    yield from (f"{name} is not in the table" for name in stock if name not in table)
    yield from (f"{name} is not in the stock class" for name in table if name not in stock)
    for name in table.keys() & stock.keys():
        if table[name] != stock[name]:
            yield f"{name} has shape {stock[name]} in the stock class, {table[name]} by the table"
    if stock.keys() == table.keys() and list(stock) != list(table):
        first = next(name for name, other in zip(stock, table, strict=True) if name != other)
        yield f"the table is not in the stock class's order: {first} comes too late"
