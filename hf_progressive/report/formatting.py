"""Numbers as people read them: FLOPs in one unit throughout, counts, shares, times and intervals."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

_UNITS = {"": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18, "Z": 21, "Y": 24}
_COUNTS = {"": 0, "k": 3, "M": 6, "B": 9, "T": 12}
_MOST_NAMES = 12  # that a sentence lists
_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
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

        >>> FlopUnit.for_values([4.2e14, 1.23e15]).name, FlopUnit.for_values([9.996e14]).name
        ('PFLOP', 'PFLOP')
        """
        largest = float(f"{max(values, default=0.0):.2e}")  # as it is written
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
        """Write FLOPs in this unit, without its name, with three significant digits.

        >>> FlopUnit("P").number(1.2345e15), FlopUnit("P").number(4.2e13)
        ('1.23', '0.0420')
        """
        return significant(flops / self.size)

    def text(self, flops: float) -> str:
        """Write FLOPs in this unit, with its name.

        >>> FlopUnit("E").text(7.119e18)
        '7.12 EFLOP'
        """
        return f"{self.number(flops)} {self.name}"


def significant(value: float, digits: int = 3) -> str:
    """Write a number with a fixed count of significant digits and no exponent.

    Digits before the point are never rounded away.

    >>> significant(0.04196), significant(9.996), significant(-123456.0)
    ('0.0420', '10.0', '−123456')
    """
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")
    return decimals(value, max(0, digits - 1 - math.floor(math.log10(abs(rounded)))))


def minus(text: str) -> str:
    """Replace the hyphen of a negative number by a minus sign, which is as wide as a plus sign.

    >>> minus("-0.5")
    '−0.5'
    """
    return text.replace("-", "−")


def decimals(value: float | None, digits: int = 2) -> str:
    """Write a number with a fixed count of decimals, or a dash where there is none.

    >>> decimals(-1.234), decimals(None)
    ('−1.23', '–')
    """
    return NOTHING if value is None else minus(f"{value:.{digits}f}")


def signed(value: float) -> str:
    """Write a difference in bits per byte: four decimals and a sign, which zero has too.

    >>> signed(0.00214), signed(-0.01), signed(-0.00001)
    ('+0.0021', '−0.0100', '+0.0000')
    """
    return minus(f"{value:+z.4f}")


def signed_ends(low: float | None, high: float | None) -> str:
    """Write the interval of a difference in bits per byte.

    >>> signed_ends(-0.01, 0.00214), signed_ends(None, None)
    ('−0.0100 to +0.0021', 'one seed, no interval')
    """
    return "one seed, no interval" if low is None or high is None else f"{signed(low)} to {signed(high)}"


def small(value: float) -> str:
    """Write a number of which the magnitude matters, such as a rounding error.

    >>> small(2.08e-6), small(0.0)
    ('2.1e−06', '0')
    """
    return minus(f"{value:.1e}") if value else "0"


def count(number: float) -> str:
    """Write a count of parameters or tokens with three significant digits and k, M, B or T.

    >>> count(664_320), count(1_080_000_000), count(12)
    ('664 k', '1.08 B', '12')
    """
    if number < 1000:
        return f"{number:g}"
    rounded = float(f"{number:.2e}")
    suffix = [suffix for suffix, exponent in _COUNTS.items() if rounded >= 10**exponent][-1]
    return f"{significant(rounded / 10 ** _COUNTS[suffix])} {suffix}"


def counted(number: int, word: str) -> str:
    """Write how many there are of something.

    >>> counted(1, "rung"), counted(3, "rung")
    ('1 rung', '3 rungs')
    """
    return f"{number} {word}{'s' * (number != 1)}"


def in_words(number: int) -> str:
    """Write a small count in words.

    >>> in_words(4), in_words(12)
    ('four', '12')
    """
    return _WORDS[number] if number < len(_WORDS) else str(number)


def all_of(number: int) -> str:
    """Write that all of a small count are meant.

    >>> all_of(2), all_of(3)
    ('both', 'all three')
    """
    return "both" if number == 2 else f"all {in_words(number)}"


def percent(share: float, digits: int = 0) -> str:
    """Write a share in per cent.

    >>> percent(0.583), percent(-0.12), percent(0.0314, 1)
    ('58 %', '−12 %', '3.1 %')
    """
    return minus(f"{100 * share:z.{digits}f} %")


def duration(seconds: float) -> str:
    """Write a time in at most two units.

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


def two_ends(low: float | None, high: float | None) -> str:
    """Write an interval, of which one end may be open; None for both where there is none.

    >>> two_ends(0.913, 1.2), two_ends(-0.2, 0.1), two_ends(None, None)
    ('0.91 to 1.20', '−0.20 to 0.10', 'one seed, no interval')
    >>> two_ends(0.9, None), two_ends(None, 1.1)
    ('0.90 or more', '1.10 or less')
    """
    if low is None and high is None:
        return "one seed, no interval"
    if low is None:
        return f"{decimals(high)} or less"
    return f"{decimals(low)} or more" if high is None else f"{decimals(low)} to {decimals(high)}"


def span(values: Sequence[float], write: Callable[[float], str]) -> str:
    """Write the range of some numbers, or the one number where they read the same.

    >>> span([0.5, 0.25], percent), span([0.501, 0.5], percent)
    ('25 % to 50 %', '50 %')
    """
    least, most = write(min(values)), write(max(values))
    return least if least == most else f"{least} to {most}"


def join_names(names: Sequence[str]) -> str:
    """Write some names as a list.

    >>> join_names(["d10"]), join_names(["d10", "d11", "d12"]), join_names([f"d{depth}" for depth in range(2, 101)])
    ('d10', 'd10, d11 and d12', 'd2, d3, d4 … d100 (99)')
    """
    if len(names) > _MOST_NAMES:
        return f"{', '.join(names[:3])} … {names[-1]} ({len(names)})"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
