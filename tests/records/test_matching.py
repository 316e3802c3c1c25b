"""FLOPs to match against a slow oracle: a walk along the interpolated curve in small steps."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_progressive.records.matching import (
    crossing_interval,
    flops_to_match,
    last_model_cost,
    saving,
    transfer_efficiency,
)
from hf_progressive.records.measurements import CurvePoint


def points(*pairs):
    return [CurvePoint(flops=flops, bits_per_byte=bits) for flops, bits in pairs]


def walk(curve, target, steps=2000):
    """Go along each segment in small equal steps of its abscissa; return the first FLOPs at or below the target."""
    if curve[0].bits_per_byte <= target:
        return curve[0].flops
    for before, after in zip(curve, curve[1:], strict=False):
        (x0, y0), (x1, y1) = ((p.flops, p.bits_per_byte) for p in (before, after))
        for i in range(1, steps + 1):
            # y is linear in log FLOPs, or in FLOPs where the segment starts at 0
            x = x0 + (x1 - x0) * i / steps if x0 == 0 else math.exp(math.log(x0) + math.log(x1 / x0) * i / steps)
            y = y1 if i == steps else y0 + (y1 - y0) * i / steps  # the end exactly, without rounding
            if y <= target:
                return x
    return None


BITS = st.floats(1.0, 8.0).map(lambda value: round(value, 6))
"""Far enough apart, or equal, that rounding does not decide on which side of a target they lie."""


@st.composite
def curves(draw):
    count = draw(st.integers(1, 8))
    start = draw(st.sampled_from([0.0, 1e9, 3.7e15]))
    increments = draw(st.lists(st.floats(1e8, 1e16), min_size=count - 1, max_size=count - 1))
    flops = [start]
    for increment in increments:
        flops.append(flops[-1] + increment)
    bits = draw(st.lists(BITS, min_size=count, max_size=count))
    return points(*zip(flops, bits, strict=True))


@given(curves(), BITS)
def test_first_crossing_equals_a_walk_along_the_curve(curve, target):
    found, expected = flops_to_match(curve, target), walk(curve, target)
    if found is None or expected is None:
        assert found is None
        # The walk's last step may miss a target by rounding only where an evaluation lies on it.
        assert expected is None or min(p.bits_per_byte for p in curve) > target - 1e-12
        return
    interval = crossing_interval(curve, target)
    assert interval is not None
    start, end = interval[0].flops, interval[1].flops
    step = end / 2000 if start == 0 else end * math.log(end / start) / 2000
    assert start <= found <= end
    assert abs(found - expected) <= 1.01 * step + 1e-9 * end


@pytest.mark.parametrize(
    ("curve", "target", "expected"),
    [
        pytest.param(points((1e15, 4.0), (1e17, 2.0)), 3.0, 1e16, id="half-way-in-log-flops"),
        pytest.param(points((0, 4.0), (8e15, 2.0)), 3.5, 2e15, id="linear-from-zero"),
        pytest.param(points((3e14, 2.0), (1e17, 1.0)), 2.5, 3e14, id="matched-before-training"),
        pytest.param(points((0, 2.0), (1e17, 1.0)), 2.0, 0.0, id="matched-for-nothing"),
        pytest.param(points((1, 2.0), (2, 3.0), (4, 1.5), (8, 3.0), (16, 1.0)), 1.5, 4.0, id="first-arrival-counts"),
        pytest.param(points((1, 4.0), (2, 3.0), (2, 2.0)), 2.5, 2.0, id="two-evaluations-at-one-place"),
        pytest.param(points((1, 4.0), (2, 3.0)), 3.0, 2.0, id="reached-with-the-last-point"),
        pytest.param(points((1, 4.0), (2, 3.0)), 2.9999, None, id="not-matched"),
    ],
)
def test_known_crossings(curve, target, expected):
    assert flops_to_match(curve, target) == (None if expected is None else pytest.approx(expected, rel=1e-12))


def test_interval_is_the_pair_of_evaluations_around_the_crossing():
    curve = points((1, 4.0), (2, 3.0), (4, 2.0), (8, 1.0))
    assert crossing_interval(curve, 2.5) == (curve[1], curve[2])
    assert crossing_interval(curve, 5.0) == (curve[0], curve[0])
    assert crossing_interval(curve, 0.5) is None


@given(st.floats(1e-3, 1e3), st.lists(st.floats(0.0, 1.0), min_size=1, max_size=6), st.floats(0.5, 0.9))
def test_a_family_at_eta_one_costs_its_largest_member(first, ignored, ratio):
    """Σ C_child telescopes to C_last when every η is 1, and saving = η · C_lineage / C_cold on every rung."""
    cold = [first / ratio**i for i in range(len(ignored) + 1)]
    spent = [cold[0]]
    for parent, child in zip(cold, cold[1:], strict=False):
        needed = child - parent  # what η = 1 means
        eta = transfer_efficiency(child_flops=needed, cold_flops=child, lineage_flops=sum(spent))
        spent.append(needed)
        assert eta == pytest.approx(1.0, rel=1e-9)
        assert saving(child_flops=needed, cold_flops=child) == pytest.approx(eta * parent / child, rel=1e-9)
        assert last_model_cost(child_flops=needed, cold_flops=child, lineage_flops=sum(spent[:-1])) == pytest.approx(1)
    assert sum(spent) == pytest.approx(cold[-1], rel=1e-9)


def test_a_child_that_needs_more_than_its_baseline_has_a_negative_efficiency():
    assert transfer_efficiency(child_flops=3.0, cold_flops=2.0, lineage_flops=4.0) == -0.25
    assert saving(child_flops=3.0, cold_flops=2.0) == -0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: flops_to_match([], 1.0), "curve: it has no points"),
        (lambda: flops_to_match(points((1, math.nan)), 1.0), "point 0 has nan bits per byte"),
        (lambda: flops_to_match(points((2, 3.0), (1, 2.0)), 1.0), "FLOPs fall from 2 to 1 at point 1"),
        (lambda: flops_to_match(points((-1, 3.0)), 1.0), "FLOPs of point 0: -1 is not a finite number of 0 or more"),
        (lambda: flops_to_match(points((1, 3.0)), math.inf), "target_bits_per_byte: inf is not a finite number"),
        (lambda: saving(child_flops=1.0, cold_flops=0.0), "cold_flops: 0.0 is not a finite number above 0"),
        (
            lambda: last_model_cost(child_flops=1.0, cold_flops=0.0, lineage_flops=1.0),
            "cold_flops: 0.0 is not a finite number above 0",
        ),
        (
            lambda: last_model_cost(child_flops=1.0, cold_flops=1.0, lineage_flops=-1.0),
            "lineage_flops: -1.0 is not a finite number of 0 or more",
        ),
        (
            lambda: transfer_efficiency(child_flops=1.0, cold_flops=1.0, lineage_flops=math.nan),
            "lineage_flops: nan is not a finite number above 0",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
