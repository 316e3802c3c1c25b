"""Complete a target: from what a user names to the child's whole config, with everything else kept."""

import logging
import re
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from hf_progressive.config.ranges import Range, require_finite, shown, with_article
from hf_progressive.growth.families import field_advice
from hf_progressive.growth.family_table import Family, Sizes
from hf_progressive.growth.positions import check_listed_rates

logger = logging.getLogger(__name__)

_NEUTRAL_FIELDS = frozenset(
    {
        "attn_pdrop",
        "embd_pdrop",
        "resid_pdrop",
        "attention_dropout",
        "initializer_range",
        "use_cache",
        "pretraining_tp",
    }
)
NO_SIZES = {
    **dict.fromkeys(
        ("dtype", "torch_dtype"),
        "the weights' dtype is no size; grow takes --dtype, grow_checkpoint dtype=, and a ladder trains in float32",
    ),
    **dict.fromkeys(
        ("return_dict", "output_hidden_states", "output_attentions", "is_encoder_decoder"),
        "it says how a model is called, which whoever calls it says",
    ),
    **dict.fromkeys(("id2label", "label2id", "num_labels", "problem_type"), "a causal language model has no labels"),
    "architectures": "the class follows from the model_type",
    "transformers_version": "it is that of the Transformers that write the config",
}
"""Fields that a target cannot set, and why."""

_ROPE_KEYS = ("rope_theta", "rope_scaling", "rope_type", "partial_rotary_factor")
LARGEST_SIZE = 1 << 24
"""Units of any kind; the largest vocabularies have a million entries."""
MOST_LAYERS = 10_000
"""Layers of a model that is planned."""
_NEUTRAL_ENDINGS = ("_token_id",)
_IN_RANGE = (
    ("_token_id", Range(0, LARGEST_SIZE)),
    ("initializer_range", Range(0, 1000)),
    ("dropout", Range(0, 1)),
    ("_pdrop", Range(0, 1)),
)  # by the ending of a field's name
_CONTEXT = "n_ctx"  # beside n_positions in configs of GPT-2, no field of the class; llama.cpp's converter reads it


def complete_target(family: Family, source: Any, target: Any | Mapping[str, Any]) -> Any:
    """Return the child's config, of the source's class, before its epsilon is rescaled.

    `target` is a whole config of the same family, or some of its fields; the others are kept, or derived where the
    family derives them. Neither config given is changed.
    """
    if isinstance(target, Mapping):
        config = _from_fields(family, source, target)
    elif target.model_type != source.model_type:
        raise ValueError(
            f"{with_article(source.model_type)} cannot grow into {with_article(target.model_type)}; the family must"
            " stay, but under the method 'upcycle', which makes mixtures of experts of dense models"
        )
    else:
        architectures = target.architectures or source.architectures
        config = _built(type(source), target.to_dict() | {"architectures": architectures})
    family.refuse_unsupported(config)
    _check_sizes(family, source, config)
    _check_function(family, source, config)
    positions = family.size_fields["positions"]
    if getattr(source, _CONTEXT, None) == getattr(source, positions):
        setattr(config, _CONTEXT, getattr(config, positions))
    return config


def warn_of_nothing_larger(family: Family, source: Any, child: Any, target: Any | Mapping[str, Any]) -> None:
    """Warn if a target names sizes that all are the parent's; one that names none, or another dropout, is meant so."""
    if family.sizes(child) != family.sizes(source):
        return
    others = target.keys() - family.size_fields.values() if isinstance(target, Mapping) else ()
    if target != {} and all(getattr(source, name, None) == getattr(child, name, None) for name in others):
        logger.warning("nothing is added: the parent has the target's sizes already; name larger ones")


def _from_fields(family: Family, source: Any, target: Mapping[str, Any]) -> Any:
    aliases = type(source).attribute_map
    own = set(source.to_dict()) | {entry.name for entry in fields(type(source))}
    for name in target:
        if not isinstance(name, str):
            raise ValueError(f"the target names {shown(name)}; give names of the config's fields")
        if name in NO_SIZES and _plain(target[name]) != _plain(getattr(source, name, None)):
            raise ValueError(f"{name}: {NO_SIZES[name]}; leave it out of the target")
        if name not in own and name not in aliases:
            _refuse_rope_key(source, name)
            advice = field_advice(name, source.model_type, [*own, *aliases])
            if name == "head_dim":  # which tables have for families that divide the width by the heads, too
                advice = f"it is {family.size_fields['width']} / {family.size_fields['heads']}; set these"
            raise ValueError(f"{name!r} is not a field of {type(source).__name__}; {advice}")
    if "model_type" in target and target["model_type"] != source.model_type:
        other = with_article(target["model_type"])
        raise ValueError(f"model_type: {with_article(source.model_type)} cannot grow into {other}; leave it out")
    for name in (family.eps_field, *family.layer_fields):
        if name and name in target:
            raise ValueError(f"{name} follows from the growth and cannot be chosen; leave it out of the target")
    check_field_values(target)
    named = {aliases.get(name, name): value for name, value in target.items()}
    if len(named) < len(target):
        raise ValueError(f"the target names a field twice: {', '.join(target)}")
    _check_counts("the target", {name: named[name] for name in _size_fields(family) if name in named})
    heads, kv_heads = family.size_fields["heads"], family.size_fields.get("kv_heads")
    follow = kv_heads and heads in named and getattr(source, kv_heads) == getattr(source, heads)
    follow = follow and family.normed_queries != "all_heads"  # which asks that they stay
    derived = {kv_heads: named[heads]} if follow else {}
    for name, size in family.repeats.items():
        derived[name] = named.get(family.size_fields[size], getattr(source, family.size_fields[size]))
    kept = {name: value for name, value in source.to_dict().items() if name not in family.layer_fields}
    values = kept | derived | named
    check_listed_rates(family, source, values)
    return _built(type(source), values)


def check_field_values(named: Mapping[str, Any]) -> None:
    """Raise a `ValueError` if a number that someone gives a configuration's field is none that a model can have."""
    for name, value in named.items():
        require_finite(value, name)
        for number in value if isinstance(value, list | tuple) else [value]:
            for ending, limits in _IN_RANGE:
                if name.endswith(ending) and type(number) in (int, float):
                    limits.check(number, name)


def check_token_numbers(source: Any, target: Any, vocab_field: str) -> None:
    """Raise a ValueError if a target gives a special token a number that is outside of its vocabulary.

    The stock class cannot be built with such a padding token, and no tokenizer's token has another such number.
    """
    rows = getattr(target, vocab_field)
    for name in sorted(name for name in target.to_dict() if name.endswith("_token_id")):
        value = getattr(target, name)
        numbers = [n for n in (value if isinstance(value, list | tuple) else [value]) if isinstance(n, int)]
        if value != getattr(source, name, None) and numbers and max(numbers) >= rows:
            raise ValueError(
                f"{name}={value}: is outside of the vocabulary of {rows}, whose last number is {rows - 1}; take one of"
                f" its numbers, or {vocab_field}={max(numbers) + 1}"
            )


def _plain(value: Any) -> Any:
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value


def _refuse_rope_key(source: Any, name: str) -> None:
    rope = getattr(source, "rope_parameters", None)
    if rope is not None and name in _ROPE_KEYS:
        raise ValueError(
            f"{name}: lives in rope_parameters, {rope} in the parent, which growth keeps: others would change the"
            " function; leave it out, and edit config.json afterwards if that is meant"
        )


def _built(config_class: type[Any], values: Mapping[str, Any]) -> Any:
    try:
        return config_class.from_dict(dict(values))
    except (ValueError, TypeError, AttributeError, LookupError, StrictDataclassError) as error:
        raise ValueError(f"not a valid {config_class.__name__}: {in_words(error)}") from None


def in_words(error: Exception) -> str:
    r"""Return what a configuration's class found wrong, without the names of its checks and exceptions.

    >>> in_words(ValueError("Class validation error for validator 'validate_it':\n    ValueError: 3 is too few."))
    '3 is too few.'
    """
    text = _CHECK.sub("", " ".join(str(error).split()))
    spelt = next((match[1] for match in _NUMBER_AS_TEXT.finditer(text) if _is_number(match[1])), None)
    # Of a field with several types, which it has, and not what each of them says of the value.
    text = re.sub(r"<class '(\w+)'>", r"\1", text.partition(". Errors: ")[0])
    return text if spelt is None else f"{text}; write 1.0e-8 for 1e-8, which YAML takes for text"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


_NUMBER_AS_TEXT = re.compile(r"expected float, got str \(value: '([^']*)'\)")
_CHECK = re.compile(r"(?:Class validation|Validation) error for (?:validator|field) '\w+': \w+Error: ")


def _size_fields(family: Family) -> list[str]:
    return list(dict.fromkeys(family.size_fields.values()))


def _check_counts(whose: str, sizes: Mapping[str, Any]) -> None:
    for name, value in sizes.items():
        if isinstance(value, int) and not 1 <= value <= LARGEST_SIZE:
            raise ValueError(f"{whose} has {name}={value}; take a number from 1 to {LARGEST_SIZE:,}")


def _check_sizes(family: Family, source: Any, target: Any) -> None:
    for whose, config in (("the parent", source), ("the target", target)):
        _check_counts(whose, {name: getattr(config, name, None) for name in _size_fields(family)})
        layers = getattr(config, family.size_fields["layers"])
        if layers > MOST_LAYERS:
            raise ValueError(f"{whose} has {layers} layers; {MOST_LAYERS:,} are the most that growth plans")
    old, new = family.sizes(source), family.sizes(target)
    if family.derives_head_dim(target):
        _check_head_dim(family, old, new)
    if new.heads % new.kv_heads:
        heads, fitting = family.size_fields["heads"], -(-new.heads // new.kv_heads) * new.kv_heads
        raise ValueError(
            f"{new.heads} heads are not divisible by {new.kv_heads} key/value heads; take {heads}={fitting}"
        )
    sizes = zip(asdict(old).items(), asdict(new).values(), strict=True)
    smaller = [f"{name} {before} → {after}" for (name, before), after in sizes if after < before]
    if smaller:
        raise ValueError(f"growth never shrinks: {', '.join(smaller)}; take at least the parent's sizes")


def _check_head_dim(family: Family, old: Sizes, new: Sizes) -> None:
    width, heads = family.size_fields["width"], family.size_fields["heads"]
    if new.width % new.heads:
        fitting = new.width // old.head_dim
        raise ValueError(
            f"{width}={new.width} is not divisible by {heads}={new.heads}; at the parent's head_dim of {old.head_dim}"
            f" take {heads}={fitting} and {width}={fitting * old.head_dim}"
        )
    if new.head_dim < old.head_dim:
        raise ValueError(
            f"{heads}={new.heads} at {width}={new.width} would shrink head_dim from {old.head_dim} to {new.head_dim};"
            f" heads grow with the width: take {width}={new.heads * old.head_dim}"
        )


def _check_function(family: Family, source: Any, target: Any) -> None:
    general = {entry.name for entry in fields(PreTrainedConfig)} - {"tie_word_embeddings"}
    exempt = (
        general
        | _NEUTRAL_FIELDS
        | family.neutral_fields
        | family.dropouts
        | family.repeats.keys()
        | set(_size_fields(family))
        | {family.eps_field, *family.layer_fields}
    )
    changed = [
        f"{name} {getattr(source, name)!r} → {getattr(target, name)!r}"
        for name in (entry.name for entry in fields(type(source)))
        if name not in exempt and not name.startswith("_") and not name.endswith(_NEUTRAL_ENDINGS)
        if getattr(source, name) != getattr(target, name)
        if not (name == "tie_word_embeddings" and source.tie_word_embeddings)  # untying is growth
    ]
    if changed:
        raise ValueError(f"growth cannot change {', '.join(changed)}; keep the parent's")
