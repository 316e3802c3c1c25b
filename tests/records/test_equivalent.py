"""The from-scratch budget that is worth a model, by hand and against a walk along the line."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_progressive.records.equivalent import equivalent_budget
from hf_progressive.records.measurements import CurvePoint

FOUR = ((100.0, 2.6), (200.0, 2.4), (400.0, 2.1), (800.0, 2.0))


def models(*pairs):
    return [CurvePoint(flops=flops, bits_per_byte=bits) for flops, bits in pairs]


@pytest.mark.parametrize(
    ("bits_per_byte", "flops", "extrapolated"),
    [
        pytest.param(2.6, 100.0, False, id="the-smallest"),
        pytest.param(2.5, 100 * math.sqrt(2), False, id="half-way-on-a-log-scale"),
        pytest.param(2.4, 200.0, False, id="one-of-them"),
        pytest.param(2.2, 200 * 2 ** (2 / 3), False, id="two-thirds-of-the-way"),
        pytest.param(2.0, 800.0, False, id="the-largest"),
        pytest.param(1.9, 1600.0, True, id="beyond-on-the-last-line"),
        pytest.param(2.8, 50.0, True, id="before-on-the-first-line"),
    ],
)
def test_budgets_by_hand(bits_per_byte, flops, extrapolated):
    for finished in (models(*FOUR), models(*reversed(FOUR))):
        found = equivalent_budget(finished, bits_per_byte)
        assert found == (pytest.approx(flops, rel=1e-12), extrapolated)


def test_the_first_measured_look_is_read_as_it_was_by_hand():
    """From scratch at .35, .5, .7 and 1 of a budget; a trunk that ends at 1.8871 is worth about .80 of it."""
    finished = models((0.35, 2.0007), (0.5, 1.9418), (0.7, 1.8986), (1.0, 1.8668))
    # Between .7 and 1, at (1.8986 − 1.8871) / (1.8986 − 1.8668) = .3616 of the way: .7 · (1/.7)^.3616 = .796.
    found = equivalent_budget(finished, 1.8871)
    assert found == (pytest.approx(0.7964, abs=1e-4), False)
    assert 0.666 / found.flops == pytest.approx(0.836, abs=1e-3)


def test_a_curve_that_rises_again_counts_from_its_first_arrival():
    assert equivalent_budget(models((1, 3.0), (2, 2.0), (4, 2.5), (8, 1.0)), 2.0) == (2.0, False)


def test_where_the_end_does_not_fall_no_line_leads_anywhere():
    assert equivalent_budget(models((1, 3.0), (2, 2.0), (4, 2.0)), 1.5) is None
    assert equivalent_budget(models((1, 2.0), (2, 2.5), (4, 1.0)), 2.1) is None
    assert equivalent_budget(models((1, 3.0), (2, 3.0 - 1e-9)), 1.0) is None  # beyond any float


@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=5), st.floats(-0.5, 1.5))
def test_the_line_at_the_budget_has_the_bits_per_byte_that_were_asked_for(falls, place):
    """Whatever the curve: reading its line where the answer lies gives the question back."""
    points = [(10.0 * 2**n, 5.0 - sum(falls[:n])) for n in range(len(falls) + 1)]
    bits = points[0][1] + place * (points[-1][1] - points[0][1])
    found = equivalent_budget(models(*points), bits)
    assert found is not None
    (x0, y0), (x1, y1) = next(
        (pair for pair in zip(points, points[1:], strict=False) if found.flops <= pair[1][0]), points[-2:]
    )
    assert y0 + (y1 - y0) * math.log(found.flops / x0) / math.log(x1 / x0) == pytest.approx(bits, abs=1e-9)
    assert found.extrapolated == (not 0 <= place <= 1) or min(abs(place), abs(place - 1)) < 1e-9


@pytest.mark.parametrize(
    ("pairs", "value", "message"),
    [
        ([(1, 2.0)], 2.0, "finished: 1 of the two models that a line needs"),
        ([(1, 2.0), (1, 1.0)], 2.0, "finished: budgets must differ and be above 0"),
        ([(0, 2.0), (1, 1.0)], 2.0, "finished: budgets must differ and be above 0"),
        ([(1, 2.0), (2, 1.0)], math.nan, "target_bits_per_byte: nan is not a finite number"),
    ],
)
def test_what_is_no_curve_is_refused(pairs, value, message):
    with pytest.raises(ValueError, match=message):
        equivalent_budget(models(*pairs), value)
