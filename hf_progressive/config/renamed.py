"""Keys that a configuration may still give under the name that they had before."""

import logging
from typing import Any

logger = logging.getLogger(__name__)

RENAMED = {
    "warmdown_fraction": "decay_fraction",
    "baseline": "reference",
    "arms": "recipes",
    "arm": "recipe",
    "parent_arm": "parent_recipe",
}
"""Old name → new one. No new key, at any place, has an old one's name."""

_noted: set[str] = set()


def with_current_names(value: Any) -> Any:
    """Return a copy of plain values with every renamed key under its new name; each is noted once in a process.

    A key that is given under both names raises a `ValueError`.

    >>> with_current_names({"training": {"warmdown_fraction": 0.5}, "set": {"training.warmdown_fraction": 0.1}})
    {'training': {'decay_fraction': 0.5}, 'set': {'training.decay_fraction': 0.1}}
    """
    if isinstance(value, list | tuple):
        return [with_current_names(item) for item in value]
    if not isinstance(value, dict):
        return value
    result: dict[Any, Any] = {}
    for key, item in value.items():
        name = current_path(key) if isinstance(key, str) else key
        if name != key and (name in value or name in result):
            raise ValueError(f"{key}: is called {name} now, and is given under both names; keep {name}")
        result[name] = with_current_names(item)
    return result


def current_path(path: str) -> str:
    """Return a dotted path with every renamed key in it under its new name.

    >>> current_path("ladder.training.warmdown_fraction")
    'ladder.training.decay_fraction'
    """
    keys = path.split(".")
    for key in RENAMED.keys() & set(keys) - _noted:
        _noted.add(key)
        logger.warning("%s: is called %s now; the old name is taken until 0.3", key, RENAMED[key])
    return ".".join(RENAMED.get(key, key) for key in keys)


def former_name(key: str) -> str:
    """Return the name that a key had first; files that are named by a digest of keys are found by it.

    >>> former_name("reference"), former_name("seed")
    ('baseline', 'seed')
    """
    return next((old for old, new in RENAMED.items() if new == key), key)
