"""What the configuration's fields are checked for; the message of every `ValueError` is one line."""

import types
import typing
from collections.abc import Sequence
from typing import Annotated, Any

from hf_progressive.config import strict_yaml
from hf_progressive.config.ranges import class_of, shown

LONGEST_NAME = 100
"""Characters of a name that a folder, and a repository on the Hub, is called by."""


def require(condition: bool, message: str) -> None:
    """Raise a `ValueError` with a message (the field, its value, what would be right) unless a condition holds."""
    if not condition:
        raise ValueError(message)


def require_config(config: Any, kind: type[Any], load: str) -> None:
    """Raise unless what is given for a configuration is one, and not the name of its file."""
    require(
        isinstance(config, kind), f"config is {class_of(config)}; give a {kind.__name__}, as {load}(FILE) returns it"
    )


def require_folder_name(name: str) -> None:
    """Raise unless a run or a study can have this name, which is its folder's."""
    plain = name.strip() == name != "" and name.isprintable() and not name.startswith(".")
    require(
        plain and "/" not in name and "\\" not in name and len(name) <= LONGEST_NAME,
        f"name: {shown(name)} cannot name a folder; leave out '/', '\\', blanks at its ends and a '.' in front, and"
        f" take {LONGEST_NAME} characters at the most",
    )


def require_distinct(name: str, values: Sequence[Any]) -> None:
    """Raise if a list names something twice."""
    twice = next((value for index, value in enumerate(values) if value in values[:index]), None)
    require(twice is None, f"{name}: {twice!r} is given twice; list each once")


def require_rising(name: str, fractions: Sequence[float]) -> None:
    """Raise unless there are fractions, each above the one before it."""
    require(len(fractions) > 0, f"{name}: the list is empty")
    rising = all(a < b for a, b in zip(fractions, fractions[1:], strict=False))
    require(rising, f"{name}: {list(fractions)} does not rise; list each fraction once, from the smallest")


def require_in_range(config: Any) -> None:
    """Raise unless every number of a configuration is one, finite, and in the range that its field's type declares.

    What is read from YAML is so already; this holds for what is built in Python, too. An empty text, which would be
    the working directory where it names a file, is refused as well, and so is a home folder in a shell's words.
    """
    for name, hint in strict_yaml.type_hints(config.__class__).items():
        value = getattr(config, name)
        require(
            value != "" and not (isinstance(value, tuple) and "" in value), f"{name}: a text is empty; leave it out"
        )
        for text in value if isinstance(value, tuple) else (value,):
            at_home = isinstance(text, str) and (text == "~" or text.startswith("~/"))
            require(not at_home, f"{name}: {shown(text)}: only a shell knows '~'; write the home folder out")
        if _has_range(hint):
            strict_yaml.convert(hint, value, name, exact=True)


def _has_range(hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType, tuple):
        return any(_has_range(argument) for argument in arguments)
    return origin is Annotated
