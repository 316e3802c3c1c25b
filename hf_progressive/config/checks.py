"""What the configuration's fields are checked for; the message of every `ValueError` is one line."""

from typing import Any


def require(condition: bool, message: str) -> None:
    """Raise a `ValueError` with a message (the field, its value, what would be right) unless a condition holds."""
    if not condition:
        raise ValueError(message)


def require_positive(config: Any, *names: str) -> None:
    """Raise unless a configuration's fields of these names are positive, or None."""
    for name in names:
        value = getattr(config, name)
        require(value is None or value > 0, f"{name}: {value} is not positive")


def require_fraction(config: Any, *names: str) -> None:
    """Raise unless a configuration's fields of these names lie between 0 and 1."""
    for name in names:
        value = getattr(config, name)
        require(0.0 <= value <= 1.0, f"{name}: {value} is not between 0 and 1")
