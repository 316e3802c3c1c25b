"""Crossings, savings and η of curves whose answer is known in closed form."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_progressive.study.points import Point, bits_per_byte_at, crossing, transfer

COLD_FRACTIONS = (0.5, 0.65, 0.8, 1.0)
CHILD_FRACTIONS = (0.2, 0.35, 0.5, 0.65, 0.8)


def curve(fractions: tuple[float, ...], budget: float, slope: float, level: float, before: float = 0) -> list[Point]:
    """Points on bpb = level − slope · ln(FLOPs / budget): a straight line in log FLOPs."""
    points = []
    for fraction in fractions:
        flops = before + fraction * budget
        points.append(Point(fraction=fraction, flops=flops, bits_per_byte=level - slope * math.log(flops / budget)))
    return points


@given(
    slope=st.floats(0.05, 1.0),
    share=st.floats(0.21, 0.79),
    budget=st.floats(1e12, 1e20),
    before=st.floats(0, 0.001),
    parent=st.floats(0.4, 0.9),
)
def test_a_straight_line_is_crossed_where_algebra_says(
    slope: float, share: float, budget: float, before: float, parent: float
) -> None:
    # The child is at the baseline's final level, 2, exactly at `share` of the budget.
    child = curve(CHILD_FRACTIONS, budget, slope, 2 + slope * math.log(share), before * budget)
    cold = curve(COLD_FRACTIONS, budget, slope, 2.0)
    result = transfer(child, cold, parent_flops=parent * budget)
    assert result.crossing.reached == "between"
    assert result.crossing.flops == pytest.approx(share * budget, rel=1e-9)
    assert result.saving == pytest.approx(1 - share)
    assert result.eta == pytest.approx((1 - share) / parent)


def test_between_points_that_bend_the_crossing_is_on_the_chord() -> None:
    child = [Point(fraction=f, flops=f, bits_per_byte=b) for f, b in ((0.2, 3.0), (0.4, 2.4), (0.8, 2.2))]
    # From .4 to .8 the chord falls .2 over one octave; 2.25 is three quarters of the octave.
    assert crossing(child, 2.25).flops == pytest.approx(0.4 * 2**0.75)


def test_below_the_smallest_budget_nothing_is_extrapolated() -> None:
    found = crossing(curve(CHILD_FRACTIONS, 1.0, 0.1, 1.0), 5.0)
    assert (found.flops, found.reached) == (0.2, "at_most")
    assert found.gap_bits_per_byte == pytest.approx(1.0 - 0.1 * math.log(0.8) - 5.0)


def test_a_child_that_does_not_match_has_a_gap_and_no_eta() -> None:
    cold = curve(COLD_FRACTIONS, 1.0, 0.1, 2.0)
    result = transfer(curve(CHILD_FRACTIONS, 1.0, 0.1, 2.0), cold, parent_flops=0.7)
    assert (result.crossing.flops, result.saving, result.eta) == (None, None, None)
    assert result.crossing.gap_bits_per_byte == pytest.approx(-0.1 * math.log(0.8))


def test_the_order_of_the_points_does_not_matter() -> None:
    child = curve(CHILD_FRACTIONS, 1.0, 0.1, 1.95)
    assert crossing(child[::-1], 2.0) == crossing(child, 2.0)


def test_at_eta_one_on_every_rung_the_family_costs_what_its_last_model_costs_alone() -> None:
    cold = [10.0, 14.0, 21.0, 27.0]
    lineage = cold[0]
    for budget in cold[1:]:
        share = 1 - lineage / budget  # what η = 1 leaves to train
        baseline = [Point(fraction=1.0, flops=budget, bits_per_byte=2.0)]
        child = [Point(fraction=share, flops=share * budget, bits_per_byte=2.0)]
        result = transfer([Point(fraction=0.01, flops=0.01 * budget, bits_per_byte=3.0), *child], baseline, lineage)
        assert result.eta == pytest.approx(1.0)
        assert result.crossing.flops is not None
        lineage += result.crossing.flops
    assert lineage == pytest.approx(cold[-1])


@given(at=st.floats(0.2, 0.8))
def test_interpolation_is_exact_on_a_straight_line(at: float) -> None:
    assert bits_per_byte_at(curve(CHILD_FRACTIONS, 1.0, 0.3, 2.0), at) == pytest.approx(2 - 0.3 * math.log(at))


def test_a_line_goes_on_beyond_its_last_point_only_as_far_as_allowed() -> None:
    points = curve(CHILD_FRACTIONS, 1.0, 0.3, 2.0)
    assert bits_per_byte_at(points, 0.82) is None
    assert bits_per_byte_at(points, 0.82, beyond=0.05) == pytest.approx(2 - 0.3 * math.log(0.82))
    assert bits_per_byte_at(points, 0.195, beyond=0.05) == pytest.approx(2 - 0.3 * math.log(0.195))
    assert bits_per_byte_at(points[:1], 0.2) is None
