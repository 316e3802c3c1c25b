"""Width rules: what the units of a wider axis inherit from."""

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class UnitOrigin:
    """Where a unit of the child comes from.

    Attributes:
        source: The parent's unit; None if the unit is new.
        share: The share of the parent's unit that readers take from this copy; the shares of its copies add up to 1.
    """

    source: int | None = None
    share: float = 1.0


WidthRule = Callable[[int, int], Sequence[UnitOrigin]]
"""(parent's units, child's units) → one origin per unit of the child."""


def append_units(old: int, new: int) -> list[UnitOrigin]:
    """Keep the parent's units and add new ones behind them.

    >>> [unit.source for unit in append_units(2, 3)]
    [0, 1, None]
    """
    return [UnitOrigin(unit if unit < old else None) for unit in range(new)]


def tile_units(old: int, new: int) -> list[UnitOrigin]:
    """Repeat all the parent's units a whole number of times, every copy read by the same share.

    >>> [(unit.source, unit.share) for unit in tile_units(1, 2)]
    [(0, 0.5), (0, 0.5)]
    """
    if new % old:
        raise ValueError(
            f"method 'tile' grows by whole multiples: {old} → {new} is none; take {new - new % old} or"
            f" {new - new % old + old}, or the method 'exact' or 'split'"
        )
    return [UnitOrigin(unit % old, old / new) for unit in range(new)]


def split_units(old: int, new: int) -> list[UnitOrigin]:
    """Repeat the parent's units in turn, the copies of each read by shares in the ratio 1 : 2 : 3 and so on.

    >>> [(unit.source, round(unit.share, 2)) for unit in split_units(2, 3)]
    [(0, 0.33), (1, 1.0), (0, 0.67)]
    """
    copies = [new // old + (unit < new % old) for unit in range(old)]
    return [
        UnitOrigin(unit % old, (unit // old + 1) / (copies[unit % old] * (copies[unit % old] + 1) / 2))
        for unit in range(new)
    ]


def uneven_shares(rule: WidthRule, spread: float) -> WidthRule:
    """Return a width rule whose copies are read by drawn shares, in proportion to 1 + u, u uniform on ± spread.

    The draw depends on the two numbers of units alone: a plan made again from its record is the same plan.

    >>> units = uneven_shares(tile_units, 0.5)(2, 4)
    >>> [unit.source for unit in units], round(units[0].share + units[2].share, 12), units[0].share == units[2].share
    ([0, 1, 0, 1], 1.0, False)
    """

    def drawn(old: int, new: int) -> list[UnitOrigin]:
        units = rule(old, new)
        numbers = random.Random(f"{old} {new}")
        weights = [1.0 + numbers.uniform(-spread, spread) for _ in units]
        totals: defaultdict[int | None, float] = defaultdict(float)
        for unit, weight in zip(units, weights, strict=True):
            totals[unit.source] += weight
        return [
            unit if unit.source is None else replace(unit, share=weight / totals[unit.source])
            for unit, weight in zip(units, weights, strict=True)
        ]

    return drawn
