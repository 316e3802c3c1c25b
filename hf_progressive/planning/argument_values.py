"""Whether what `training.arguments` gives is of the types that `TrainingArguments` declares, and in range."""

import dataclasses
import enum
import types
import typing
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from transformers.trainer_pt_utils import AcceleratorConfig

from hf_progressive.config.ranges import Range, require_finite, shown
from hf_progressive.config.strict_yaml import nearest
from hf_progressive.storage import parse_json
from hf_progressive.training.arguments import ProgressiveTrainingArguments

_MOST = 10**9
_RANGES = {
    "adam_epsilon": Range(0, 1, above=True),
    "dataloader_num_workers": Range(0, 1024),
    "dataloader_prefetch_factor": Range(1, 10**6),
    "ddp_bucket_cap_mb": Range(1, _MOST),
    "ddp_timeout": Range(1, _MOST),
    "eval_accumulation_steps": Range(1, _MOST),
    "neftune_noise_alpha": Range(0, 10**6),
    "per_device_eval_batch_size": Range(1, _MOST),
    "save_total_limit": Range(1, _MOST),
    "torch_empty_cache_steps": Range(1, _MOST),
}
"""What numbers may be; others are no smaller than 0 and their default."""

_CHOICES = {"include_num_input_tokens_seen": ("all", "non_padding", "no")}
"""Texts that are checked, in Transformers, where they are used."""

_PARTS = {"accelerator_config": AcceleratorConfig}
"""Mappings whose keys are a class's fields."""


def check_argument_value(name: str, value: Any, of: type = ProgressiveTrainingArguments, path: str = "") -> None:
    """Raise a `ValueError` that names the dotted path unless a value is one that a field of a class takes."""
    path = path or f"training.arguments.{name}"
    require_finite(value, path)
    members = _members(_hints(of)[name])
    fitting = [member for member in members if _fits(member, value)]
    if not fitting:
        kinds = ", or ".join(dict.fromkeys(_KINDS[kind] for member in members if (kind := _kind(member)) in _KINDS))
        spelt = "; write 1.0e-8 for 1e-8, which YAML takes for text" if _is_number_as_text(members, value) else ""
        raise ValueError(f"{path}: expected {kinds}, got {shown(value)}{spelt}")
    field = next(field for field in dataclasses.fields(of) if field.name == name)
    if type(value) in (int, float):
        default = field.default if isinstance(field.default, int | float) else 0
        _RANGES.get(name, Range(min(0, default), _MOST)).check(value, path)
    elif isinstance(value, str):
        _check_text(name, value, members, field.metadata.get("choices"), path)
    if isinstance(value, Mapping) and (part := _PARTS.get(name)):
        for key, item in value.items():
            if key not in _hints(part):
                raise ValueError(f"{path}.{key}: unknown key; {nearest(str(key), _hints(part))}")
            check_argument_value(str(key), item, part, f"{path}.{key}")


def _check_text(name: str, value: str, members: list[Any], choices: Iterable[str] | None, path: str) -> None:
    kinds: list[type[enum.Enum]] = [
        member for member in members if isinstance(member, type) and issubclass(member, enum.Enum)
    ]
    allowed = [str(item.value) for kind in kinds for item in kind]
    allowed = allowed or list(_CHOICES.get(name, ()) if choices is None else choices)
    if allowed and value not in allowed:
        raise ValueError(f"{path}: {shown(value)} is unknown; {nearest(value, allowed)}")
    if value and any(_kind(member) is dict for member in members):
        if not value.startswith("{"):
            if not Path(value).is_file():
                raise ValueError(f"{path}: {value}: no such file")
        elif not isinstance(parse_json(value, path), dict):
            raise ValueError(f"{path}: expected a mapping, got {shown(value)}")


def _is_number_as_text(members: list[Any], value: Any) -> bool:
    if not isinstance(value, str) or float not in members:
        return False
    try:
        float(value)
    except ValueError:
        return False
    return True


@cache
def _hints(of: type) -> dict[str, Any]:
    return typing.get_type_hints(of)


def _members(hint: Any) -> list[Any]:
    return list(typing.get_args(hint)) if typing.get_origin(hint) in (typing.Union, types.UnionType) else [hint]


def _kind(member: Any) -> Any:
    return typing.get_origin(member) or member


_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list of texts",
    dict: "a mapping",
    type(None): "nothing (null)",
}


def _fits(member: Any, value: Any) -> bool:
    kind = _kind(member)
    if kind is Literal:
        return any(type(value) is type(choice) and value == choice for choice in typing.get_args(member))
    if kind is float:
        return type(value) in (int, float)
    if kind is list:
        return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
    if kind is dict:
        of = typing.get_args(member)[1:]
        items = value.values() if isinstance(value, Mapping) else [None]
        return isinstance(value, Mapping) and (of != (bool,) or all(type(item) is bool for item in items))
    return type(value) is kind
