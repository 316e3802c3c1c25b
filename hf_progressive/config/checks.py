"""What the configuration's fields are checked for; the message of every `ValueError` is one line."""

import types
import typing
from typing import Annotated, Any

from hf_progressive.config import strict_yaml


def require(condition: bool, message: str) -> None:
    """Raise a `ValueError` with a message (the field, its value, what would be right) unless a condition holds."""
    if not condition:
        raise ValueError(message)


def require_in_range(config: Any) -> None:
    """Raise unless every number of a configuration is one, finite, and in the range that its field's type declares.

    What is read from YAML is so already; this holds for what is built in Python, too.
    """
    for name, hint in strict_yaml.type_hints(config.__class__).items():
        if _has_range(hint):
            strict_yaml.convert(hint, getattr(config, name), name, exact=True)


def _has_range(hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType, tuple):
        return any(_has_range(argument) for argument in arguments)
    return origin is Annotated
