"""What the configuration's fields are checked for."""

from typing import Any


def require(condition: bool, message: str) -> None:
    """Raise a `ValueError` with a message unless a condition holds.

    Args:
        condition: What must hold.
        message: One line: the field, its value, and what would be right.

    Raises:
        ValueError: It does not hold.
    """
    if not condition:
        raise ValueError(message)


def require_positive(config: Any, *names: str) -> None:
    """Raise unless fields are positive, or None.

    Args:
        config: A configuration.
        *names: Its fields.
    """
    for name in names:
        value = getattr(config, name)
        require(value is None or value > 0, f"{name}: {value} is not positive")


def require_fraction(config: Any, *names: str) -> None:
    """Raise unless fields lie between 0 and 1.

    Args:
        config: A configuration.
        *names: Its fields.
    """
    for name in names:
        value = getattr(config, name)
        require(0.0 <= value <= 1.0, f"{name}: {value} is not between 0 and 1")
