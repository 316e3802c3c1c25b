"""The from-scratch budget that is worth a model: where the baselines' own curve has the same bits per byte.

A training run's validations in mid-run lie above what it would have had with a decay there, so that only *finished*
models, each at the end of its own decay, make such a curve.

This module imports neither torch nor transformers.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from hf_progressive.records.matching import Measured, flops_to_match

_LARGEST_EXPONENT = 700.0  # e^709 is the largest float


class EquivalentBudget(NamedTuple):
    """A budget at which a curve of finished models has given bits per byte."""

    flops: float
    """The budget."""

    extrapolated: bool
    """Whether it lies outside the finished models, on the line through the two at that end."""


def equivalent_budget(finished: Sequence[Measured], bits_per_byte: float) -> EquivalentBudget | None:
    """Look up the budget at which finished models have given bits per byte, linear in log FLOPs.

    Between two models it is where the line through them first comes down to the value; outside all of them, the line
    through the nearest two goes on.

    Args:
        finished: Models of one seed at two budgets or more, in any order.
        bits_per_byte: The value.

    Returns:
        The budget; None where the line at that end does not fall, so that it leads nowhere.

    Raises:
        ValueError: There are fewer than two models, two have the same budget or one has none, or a value is not
            finite.

    >>> from types import SimpleNamespace as Model
    >>> finished = [Model(flops=1.0, bits_per_byte=3.0), Model(flops=4.0, bits_per_byte=2.0)]
    >>> equivalent_budget(finished, 2.5), equivalent_budget(finished, 1.5)
    (EquivalentBudget(flops=2.0, extrapolated=False), EquivalentBudget(flops=8.0, extrapolated=True))
    """
    ordered = sorted(finished, key=lambda model: model.flops)
    if len(ordered) < 2:
        raise ValueError(f"finished: {len(ordered)} of the two models that a line needs; finish more budgets")
    if ordered[0].flops <= 0 or len({model.flops for model in ordered}) < len(ordered):
        raise ValueError("finished: budgets must differ and be above 0; give each finished model once")
    inside = flops_to_match(ordered, bits_per_byte)
    if inside is not None and ordered[0].bits_per_byte >= bits_per_byte:
        return EquivalentBudget(inside, extrapolated=False)
    before, after = ordered[-2:] if inside is None else ordered[:2]
    slope = (after.bits_per_byte - before.bits_per_byte) / math.log(after.flops / before.flops)
    if slope >= 0:
        return None
    exponent = (bits_per_byte - after.bits_per_byte) / slope
    if abs(exponent) > _LARGEST_EXPONENT:
        return None
    flops = after.flops * math.exp(exponent)
    return EquivalentBudget(flops, extrapolated=True) if 0 < flops < math.inf else None
