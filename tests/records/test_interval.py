"""Intervals over a few seeds, against hand computation and against what they promise."""

import itertools
import math
import random

import pytest

from hf_progressive.records.interval import mean_interval, t_quantile


def t_density(x: float, degrees: int) -> float:
    scale = math.gamma((degrees + 1) / 2) / (math.sqrt(degrees * math.pi) * math.gamma(degrees / 2))
    return scale * (1 + x * x / degrees) ** (-(degrees + 1) / 2)


@pytest.mark.parametrize("degrees", [1, 2, 3, 9, 30, 31, 100])
def test_the_quantile_leaves_the_right_share_below_it(degrees: int) -> None:
    end, cells = t_quantile(degrees), 20_000  # Simpson's rule from 0, below which half of the distribution lies
    width = end / cells
    weights = (1, *itertools.islice(itertools.cycle((4, 2)), cells - 1), 1)
    below = sum(weight * t_density(i * width, degrees) for i, weight in enumerate(weights)) * width / 3
    assert 0.5 + below == pytest.approx(0.975, abs=5e-5)


def test_three_values_by_hand() -> None:
    interval = mean_interval([0.9, 1.0, 1.4])
    # Mean 1.1; squared deviations .04, .01, .09; s² = .07; half width 4.3027 · √(.07/3).
    assert interval.mean == pytest.approx(1.1)
    assert interval.low == pytest.approx(1.1 - 4.3027 * math.sqrt(0.07 / 3))
    assert interval.high == pytest.approx(1.1 + 4.3027 * math.sqrt(0.07 / 3))


def test_one_value_has_no_interval_and_none_is_refused() -> None:
    assert mean_interval([2.0]).low is None
    with pytest.raises(ValueError, match="values: none are given"):
        mean_interval([])


def test_of_three_seeds_the_t_interval_covers_the_mean_as_often_as_it_says() -> None:
    draw, trials = random.Random(0), 2000
    intervals = [mean_interval([draw.gauss(0, 1) for _ in range(3)]) for _ in range(trials)]
    covered = sum(i.low < 0 < i.high for i in intervals) / trials
    assert covered == pytest.approx(0.95, abs=0.015)
