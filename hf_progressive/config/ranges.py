"""What a number may be: declared in a field's type, checked wherever a value of that type is read."""

import dataclasses
import math
import re
from typing import Annotated, Any

_LONGEST_SHOWN = 80
_BEGINS_WITH_A_VOWEL = re.compile(r"[aeio]|nd|[AEIO]|[FHLMNRSX][A-Z]")  # as it is spoken: MPT is spelled out
_LARGEST_WHOLE = 10**30  # beyond any count or FLOPs, and what a float holds by far


def shown(value: object) -> str:
    """Return a value as a message repeats it: on one line, and no longer than a reader wants.

    >>> shown("1e-3"), shown("x" * 1000)[-5:], shown(10**5000)
    ("'1e-3'", 'xx...', 'a number of 16,610 bits')
    """
    if isinstance(value, int) and abs(value) > _LARGEST_WHOLE:
        return f"a number of {value.bit_length():,} bits"
    try:
        text = repr(value)
    except ValueError:  # a number of thousands of digits within
        return f"{class_of(value)} with a number of thousands of digits"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."


def with_article(name: object) -> str:
    """Return the name of a class or of a family as a sentence has it.

    >>> [with_article(name) for name in ("dict", "int", "ndarray", "NoneType", "OPTModel", "MptModel", "MPTModel")]
    ['a dict', 'an int', 'an ndarray', 'a NoneType', 'an OPTModel', 'a MptModel', 'an MPTModel']
    """
    return f"{'an' if _BEGINS_WITH_A_VOWEL.match(str(name)) else 'a'} {name}"


def class_of(value: object) -> str:
    """Return the name of a value's class as a sentence has it."""
    return with_article(type(value).__name__)


def shown_key(key: object) -> str:
    """Return a key as a dotted path has it; one that would not be a part of a line, as a message repeats it."""
    text = str(key)
    return text if text and text.isprintable() and len(text) <= _LONGEST_SHOWN else shown(key)


def require_finite(value: Any, path: str) -> None:
    """Raise a `ValueError` that names the path unless all numbers in a plain value are finite and of a usable size."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{path}: {value} is not a finite number")
    if isinstance(value, int) and abs(value) > _LARGEST_WHOLE:
        raise ValueError(f"{path}: {shown(value)} is too large")
    if isinstance(value, dict):
        for key, item in value.items():
            require_finite(item, f"{path}.{shown_key(key)}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            require_finite(item, f"{path}.{index}")


@dataclasses.dataclass(frozen=True)
class Range:
    """What a number may be, in a field's `Annotated` type."""

    minimum: float
    """The smallest value, or what all values are above."""

    maximum: float = math.inf
    """The largest value, or what all values are below."""

    _: dataclasses.KW_ONLY

    above: bool = False
    """Whether the smallest value itself is left out."""

    below: bool = False
    """Whether the largest value itself is left out."""

    def check(self, value: float, path: str) -> None:
        """Raise a `ValueError` that names the path unless the value lies in the range."""
        enough = self.minimum < value if self.above else self.minimum <= value
        if not (enough and (value < self.maximum if self.below else value <= self.maximum)):
            raise ValueError(f"{path}: expected {self}, got {shown(value)}")

    def __str__(self) -> str:
        least, most = _written(self.minimum), _written(self.maximum)
        if not (self.above or self.below or self.maximum == math.inf):
            return f"{least} to {most}"
        lower = f"above {least}" if self.above else f"{least} or more"
        if self.maximum == math.inf:
            return lower
        return f"{lower}, {'below' if self.below else 'at most'} {most}"


def _written(limit: float) -> str:
    return f"{limit:,}" if isinstance(limit, int) and abs(limit) <= _LARGEST_WRITTEN_OUT else f"{limit:g}"


_LARGEST_WRITTEN_OUT = 10**10
_MOST = 10**15
_LARGEST_SEED = 2**31 - 1

Positive = Annotated[float, Range(0, above=True)]
"""A number above 0."""

NotNegative = Annotated[float, Range(0)]
"""A number of 0 or more."""

Fraction = Annotated[float, Range(0, 1)]
"""A share, both ends included."""

PositiveFraction = Annotated[float, Range(0, 1, above=True)]
"""A share of something, and not of nothing."""

Whole = Annotated[int, Range(1, _MOST)]
"""A number of things, at least one."""

Seed = Annotated[int, Range(0, _LARGEST_SEED)]
"""A seed: with a rung's place added, NumPy takes it, whose largest is 2³² − 1."""

LearningRate = Annotated[float, Range(0, 1000, above=True)]
"""A peak learning rate."""
