"""FLOPs to match: where a model's validation curve reaches a target, and what inheritance saved by it.

A child *matches* its baseline, the same architecture trained from scratch on its full budget, at the training FLOPs
at which the child's validation bits per byte first come down to the baseline's final ones. The child's FLOPs start
with what estimating its parent's Fisher information and subspace cost; they do not include the parent's training, to
which `transfer_efficiency` relates them.

This module imports neither torch nor transformers.
"""

import math
from collections.abc import Sequence
from typing import Protocol, TypeVar


class Measured(Protocol):
    """A point of a validation curve, or a finished model."""

    @property
    def flops(self) -> float:
        """FLOPs that it took."""

    @property
    def bits_per_byte(self) -> float:
        """What it reached."""


Point = TypeVar("Point", bound=Measured)


def crossing_interval(curve: Sequence[Point], target_bits_per_byte: float) -> tuple[Point, Point] | None:
    """Return the two points between which a curve first reaches a target, or goes below it.

    Args:
        curve: Points in the order of training, whose FLOPs do not fall.
        target_bits_per_byte: The value to reach.

    Returns:
        The last point above the target and the one after it; the first point twice if it is not above the target;
        None if the curve ends before it reaches the target.

    Raises:
        ValueError: The curve has no points, a value is not finite, or the FLOPs are negative or fall.
    """
    check_curve(curve)
    if not math.isfinite(target_bits_per_byte):
        raise ValueError(f"target_bits_per_byte: {target_bits_per_byte} is not a finite number")
    before = curve[0]
    for point in curve:
        if point.bits_per_byte <= target_bits_per_byte:
            return before, point
        before = point
    return None


def flops_to_match(curve: Sequence[Measured], target_bits_per_byte: float) -> float | None:
    """Return the FLOPs at which a validation curve first reaches a target; None if it ends before.

    Between two points the bits per byte are taken to be linear in log FLOPs, since learning curves are nearly
    straight there. An interval that starts at 0 FLOPs has no logarithm and is interpolated linearly in FLOPs, which
    on a falling, convex curve puts the crossing later, not earlier. A curve that comes down to the target, leaves it
    and returns counts from its first arrival.

    Args:
        curve: Points in the order of training, whose FLOPs do not fall.
        target_bits_per_byte: The baseline's final bits per byte.

    Raises:
        ValueError: The curve has no points, a value is not finite, or the FLOPs are negative or fall.

    >>> from types import SimpleNamespace as Point
    >>> curve = [Point(flops=1.0, bits_per_byte=3.0), Point(flops=4.0, bits_per_byte=2.0)]
    >>> flops_to_match(curve, 2.5), flops_to_match(curve, 1.9)
    (2.0, None)
    """
    interval = crossing_interval(curve, target_bits_per_byte)
    if interval is None:
        return None
    before, after = interval
    start, end = before.flops, after.flops
    fall = before.bits_per_byte - after.bits_per_byte
    share = (before.bits_per_byte - target_bits_per_byte) / fall if fall > 0 else 1.0
    crossing = start ** (1 - share) * end**share if start > 0 else end * share
    return min(max(crossing, start), end)  # rounding must not carry it out of the interval


def saving(*, child_flops: float, cold_flops: float) -> float:
    """Return the share of a cold run's FLOPs that a child did not need: 1 − C_child / C_scratch.

    Args:
        child_flops: FLOPs of the child to match, Fisher and subspace estimation included.
        cold_flops: FLOPs of the baseline's full budget.

    Returns:
        The share; negative if the child needed more than the baseline.

    Raises:
        ValueError: `cold_flops` is not above 0, or `child_flops` is negative; neither may be NaN or infinite.

    >>> saving(child_flops=26.0, cold_flops=100.0)
    0.74
    """
    _require_flops("child_flops", child_flops, positive=False)
    _require_flops("cold_flops", cold_flops, positive=True)
    return 1 - child_flops / cold_flops


def transfer_efficiency(*, child_flops: float, cold_flops: float, lineage_flops: float) -> float:
    """Return η = (C_scratch − C_child) / C_lineage, the share of what was spent before that carries over to the child.

    C_lineage is everything that went into the child's parent, its ancestors included. At η = 1 the family up to the
    child, C_lineage + C_child, costs what the child costs cold. The saving of the child is η · C_lineage / C_scratch.

    Args:
        child_flops: FLOPs of the child to match, Fisher and subspace estimation included.
        cold_flops: FLOPs of the baseline's full budget.
        lineage_flops: FLOPs of all that went into the parent: its own training and estimates, and its ancestors'.

    Returns:
        η; 0 if nothing carried over, negative if inheritance did harm.

    Raises:
        ValueError: `lineage_flops` or `cold_flops` is not above 0, or `child_flops` is negative; none may be NaN or
            infinite.

    >>> round(transfer_efficiency(child_flops=26.0, cold_flops=100.0, lineage_flops=74.0), 3)
    1.0
    """
    _require_flops("child_flops", child_flops, positive=False)
    _require_flops("cold_flops", cold_flops, positive=True)
    _require_flops("lineage_flops", lineage_flops, positive=True)
    return (cold_flops - child_flops) / lineage_flops


def last_model_cost(*, child_flops: float, cold_flops: float, lineage_flops: float) -> float:
    """Return (C_lineage + C_child) / C_scratch: what a model costs with all that it inherits, over its baseline.

    Below 1 it is cheaper to grow the model than to train it from scratch, as η is above 1: the cost is
    1 + (1 − η) · C_lineage / C_scratch.

    Args:
        child_flops: FLOPs of the child to match, Fisher and subspace estimation included.
        cold_flops: FLOPs from scratch at the same bits per byte.
        lineage_flops: FLOPs of all that went into the child's initial weights, its ancestors included.

    Returns:
        The cost, in units of the baseline's.

    Raises:
        ValueError: `cold_flops` is not above 0, or another one is negative; none may be NaN or infinite.

    >>> last_model_cost(child_flops=26.0, cold_flops=100.0, lineage_flops=54.0)
    0.8
    """
    _require_flops("child_flops", child_flops, positive=False)
    _require_flops("cold_flops", cold_flops, positive=True)
    _require_flops("lineage_flops", lineage_flops, positive=False)
    return (lineage_flops + child_flops) / cold_flops


def _require_flops(name: str, value: float, *, positive: bool) -> None:
    if not math.isfinite(value) or value < 0 or (positive and value == 0):
        raise ValueError(f"{name}: {value} is not a finite number {'above 0' if positive else 'of 0 or more'}")


def check_curve(curve: Sequence[Measured]) -> None:
    """Raise a `ValueError` unless a curve has points, finite values and FLOPs that do not fall."""
    if not curve:
        raise ValueError("curve: it has no points; evaluate at least once")
    reached = 0.0
    for index, point in enumerate(curve):
        if not math.isfinite(point.bits_per_byte):
            raise ValueError(f"curve: point {index} has {point.bits_per_byte} bits per byte; drop unfinished runs")
        _require_flops(f"curve: FLOPs of point {index}", point.flops, positive=False)
        if point.flops < reached:
            raise ValueError(
                f"curve: FLOPs fall from {reached:g} to {point.flops:g} at point {index}; "
                f"give the evaluations in the order of training"
            )
        reached = point.flops
