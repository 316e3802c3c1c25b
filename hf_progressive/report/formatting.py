"""Numbers as people read them: FLOPs in one unit throughout, counts, shares and times."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

_UNITS = {"": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18, "Z": 21, "Y": 24}
_COUNTS = {"": 0, "k": 3, "M": 6, "B": 9, "T": 12}
_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")

NOTHING = "–"
"""What stands where there is no value."""


@dataclass(frozen=True)
class FlopUnit:
    """A unit in which all FLOPs of one report are given, so that they compare at a glance."""

    prefix: str
    """The SI prefix."""

    @classmethod
    def for_values(cls, values: Iterable[float]) -> "FlopUnit":
        """Choose the unit in which the largest value has one to three digits before the point.

        Args:
            values: FLOPs.

        Returns:
            The unit; plain FLOPs if there are no values.

        >>> FlopUnit.for_values([4.2e14, 1.23e15]).name
        'PFLOP'
        """
        largest = max(values, default=0.0)
        fitting = [prefix for prefix, exponent in _UNITS.items() if largest >= 10**exponent]
        return cls(fitting[-1] if fitting else "")

    @property
    def name(self) -> str:
        """The unit's name: a count of operations, not a rate."""
        return f"{self.prefix}FLOP"

    @property
    def size(self) -> float:
        """FLOPs in one unit."""
        return float(10 ** _UNITS[self.prefix])

    @property
    def definition(self) -> str:
        """What the unit means, in a sentence."""
        exponent = str(_UNITS[self.prefix]).translate(_SUPERSCRIPTS)
        return f"1 {self.name} is 10{exponent} floating-point operations"

    def number(self, flops: float) -> str:
        """Write FLOPs in this unit, without its name.

        Args:
            flops: FLOPs.

        Returns:
            Three significant digits.

        >>> FlopUnit("P").number(1.2345e15), FlopUnit("P").number(4.2e13)
        ('1.23', '0.0420')
        """
        return significant(flops / self.size)

    def text(self, flops: float) -> str:
        """Write FLOPs in this unit.

        Args:
            flops: FLOPs.

        Returns:
            Number and unit.

        >>> FlopUnit("E").text(7.119e18)
        '7.12 EFLOP'
        """
        return f"{self.number(flops)} {self.name}"


def significant(value: float, digits: int = 3) -> str:
    """Write a number with a fixed count of significant digits and no exponent.

    Args:
        value: The number.
        digits: Significant digits; digits before the point are never rounded away.

    Returns:
        The number, with a minus sign proper where it is negative.

    >>> significant(0.04196), significant(9.996), significant(-123456.0)
    ('0.0420', '10.0', '−123456')
    """
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return minus(f"{value:.{decimals}f}")


def minus(text: str) -> str:
    """Replace the hyphen of a negative number by a minus sign, which is as wide as a plus sign.

    Args:
        text: A number.

    Returns:
        The number.

    >>> minus("-0.5")
    '−0.5'
    """
    return text.replace("-", "−")


def small(value: float) -> str:
    """Write a number of which the magnitude matters, such as a rounding error.

    Args:
        value: The number.

    Returns:
        Two significant digits and a power of ten.

    >>> small(2.08e-6), small(0.0)
    ('2.1e−06', '0')
    """
    return minus(f"{value:.1e}") if value else "0"


def count(number: float) -> str:
    """Write a count of parameters or tokens.

    Args:
        number: The count.

    Returns:
        Three significant digits and k, M, B or T.

    >>> count(664_320), count(1_080_000_000), count(12)
    ('664 k', '1.08 B', '12')
    """
    if number < 1000:
        return f"{number:g}"
    rounded = float(f"{number:.2e}")
    suffix = [suffix for suffix, exponent in _COUNTS.items() if rounded >= 10**exponent][-1]
    return f"{significant(rounded / 10 ** _COUNTS[suffix])} {suffix}"


def percent(share: float) -> str:
    """Write a share in whole per cent.

    Args:
        share: The share, 1 for all.

    Returns:
        Per cent.

    >>> percent(0.583), percent(-0.12)
    ('58 %', '−12 %')
    """
    return minus(f"{100 * share:.0f} %").replace("−0 %", "0 %")


def duration(seconds: float) -> str:
    """Write a time.

    Args:
        seconds: The time.

    Returns:
        At most two units.

    >>> duration(3.14), duration(192), duration(7500)
    ('3.1 s', '3 min 12 s', '2 h 5 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min"
