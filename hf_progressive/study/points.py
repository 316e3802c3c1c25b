"""Finished models as points, FLOPs against bits per byte, and what follows from them for one child and its baseline.

This module imports neither torch nor transformers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hf_progressive.records.matching import flops_to_match, saving, transfer_efficiency


@dataclass(frozen=True, kw_only=True)
class Point:
    """One finished model."""

    fraction: float
    """Share of the baseline's budget that it trained for."""

    flops: float
    """FLOPs that it would cost alone: its estimates, and all of its training steps."""

    bits_per_byte: float
    """Validation bits per byte."""


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """Where a child reaches its baseline."""

    flops: float | None
    """FLOPs to match; None where no finished child came down to the target."""

    reached: Literal["between", "at_most", "no"]
    """Between two finished children; at the smallest one already, so that `flops` is an upper bound; or not."""

    gap_bits_per_byte: float
    """Bits per byte of the longest child above the target; negative below it."""


def crossing(child: Sequence[Point], target_bits_per_byte: float) -> Crossing:
    """Find the FLOPs at which finished children match a target.

    Every point is a model at the end of its own decay, so the line through them is what a user would get who had
    chosen that budget. Between two points the bits per byte are taken to be linear in log FLOPs. Below the smallest
    budget nothing is extrapolated: a target that is met there is met *at most* at its FLOPs.

    >>> points = [Point(fraction=f, flops=f, bits_per_byte=2 - math.log2(f)) for f in (0.25, 0.5, 1.0)]
    >>> round(crossing(points, 2.5).flops, 6)
    0.707107
    """
    ordered = sorted(child, key=lambda point: point.flops)
    gap = ordered[-1].bits_per_byte - target_bits_per_byte
    flops = flops_to_match(ordered, target_bits_per_byte)
    if flops is None:
        return Crossing(flops=None, reached="no", gap_bits_per_byte=gap)
    at_most = ordered[0].bits_per_byte <= target_bits_per_byte
    return Crossing(flops=flops, reached="at_most" if at_most else "between", gap_bits_per_byte=gap)


def bits_per_byte_at(points: Sequence[Point], flops: float, *, beyond: float = 0.0) -> float | None:
    """Interpolate the bits per byte of finished models of one recipe and seed, linear in log FLOPs.

    By the share `beyond` the line through the nearest two goes on outside of them; None farther out, and of one model.

    >>> points = [Point(fraction=f, flops=f, bits_per_byte=2 - math.log2(f)) for f in (0.25, 0.5, 1.0)]
    >>> bits_per_byte_at(points, 0.5), bits_per_byte_at(points, 1.1)
    (3.0, None)
    >>> round(bits_per_byte_at(points, 2**0.1, beyond=0.1), 6)
    1.9
    """
    ordered = sorted(points, key=lambda point: point.flops)
    if len(ordered) < 2 or not ordered[0].flops * (1 - beyond) <= flops <= ordered[-1].flops * (1 + beyond):
        return None
    inner = [i for i, point in enumerate(ordered) if point.flops <= flops]
    index = min(max(inner, default=0), len(ordered) - 2)
    before, after = ordered[index], ordered[index + 1]
    share = math.log(flops / before.flops) / math.log(after.flops / before.flops)
    return before.bits_per_byte + share * (after.bits_per_byte - before.bits_per_byte)


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """What one child, of one seed, saved against its baseline."""

    crossing: Crossing
    """Where it matched."""

    parent_flops: float
    """FLOPs of everything that went into the parent, its own ancestors included."""

    saving: float | None
    """1 − C_child / C_scratch; a lower bound where the crossing is at most."""

    eta: float | None
    """(C_scratch − C_child) / C_lineage; a lower bound where the crossing is at most."""


def target_of(cold: Sequence[Point]) -> Point:
    """Return the baseline that trained for its whole budget."""
    return next(point for point in cold if point.fraction == 1.0)


def transfer(child: Sequence[Point], cold: Sequence[Point], parent_flops: float) -> Transfer:
    """Compare finished children with the finished baseline of the whole budget.

    >>> cold = [Point(fraction=1.0, flops=100.0, bits_per_byte=2.0)]
    >>> child = [Point(fraction=f, flops=100 * f, bits_per_byte=3 - 2 * f) for f in (0.2, 0.5)]
    >>> transfer(child, cold, parent_flops=50.0).eta
    1.0
    """
    target = target_of(cold)
    found = crossing(child, target.bits_per_byte)
    share = eta = None
    if found.flops is not None:
        share = saving(child_flops=found.flops, cold_flops=target.flops)
        eta = transfer_efficiency(child_flops=found.flops, cold_flops=target.flops, lineage_flops=parent_flops)
    return Transfer(crossing=found, parent_flops=parent_flops, saving=share, eta=eta)
