"""The last-model cost by hand: read on the baselines' curve, at a match, and over the seeds."""

import math

import pytest

from hf_progressive.records.last_model import LastModelCost, SeedCost, cost_at_match, cost_on_baselines, over_seeds
from hf_progressive.records.measurements import CurvePoint

BASELINES = [CurvePoint(flops=flops, bits_per_byte=bits) for flops, bits in ((50.0, 2.2), (100.0, 2.0))]


def test_a_finished_child_is_read_on_the_baselines_own_curve() -> None:
    child = CurvePoint(flops=30.0, bits_per_byte=2.1)
    cost = cost_on_baselines(seed=7, lineage_flops=25.0, child=child, baselines=BASELINES)
    equal = 50 * math.sqrt(2)  # half-way from 2.2 to 2.0, on a log scale
    assert cost == SeedCost(
        seed=7,
        value=pytest.approx(55 / equal),
        c_lineage=25.0,
        c_child=30.0,
        c_scratch=pytest.approx(equal),
        bits_per_byte=2.1,
    )
    assert cost.eta == pytest.approx((equal - 30) / 25)
    assert cost.eta_ceiling == pytest.approx(equal / 25)
    assert cost.value == pytest.approx(1 + (1 - cost.eta) / cost.eta_ceiling)


def test_a_child_that_is_better_than_every_baseline_is_extrapolated_and_says_so() -> None:
    child = CurvePoint(flops=30.0, bits_per_byte=1.8)
    cost = cost_on_baselines(seed=0, lineage_flops=50.0, child=child, baselines=BASELINES)
    assert cost is not None
    assert (cost.value, cost.extrapolated) == (pytest.approx(80 / 200), True)
    flat = [CurvePoint(flops=flops, bits_per_byte=2.0) for flops in (50.0, 100.0)]
    assert cost_on_baselines(seed=0, lineage_flops=50.0, child=child, baselines=flat) is None


def test_against_one_baseline_the_child_counts_up_to_its_match() -> None:
    cost = cost_at_match(seed=1, lineage_flops=60.0, match_flops=20.0, baseline=BASELINES[1])
    assert (cost.value, cost.c_scratch, cost.bits_per_byte, cost.at_most) == (pytest.approx(0.8), 100.0, 2.0, False)


def test_the_seeds_give_a_mean_and_students_interval() -> None:
    match = {"lineage_flops": 60.0, "baseline": BASELINES[1]}
    costs = [cost_at_match(seed=seed, match_flops=flops, **match) for seed, flops in enumerate((10.0, 20.0, 60.0))]
    cost = over_seeds(costs)  # .7, .8, 1.2: mean .9, s² = (.04 + .01 + .09) / 2
    half = 4.3027 * math.sqrt(0.07 / 3)
    assert (cost.value, cost.low, cost.high) == pytest.approx((0.9, 0.9 - half, 0.9 + half))
    assert (cost.seeds, cost.at_most, cost.extrapolated) == (3, False, 0)
    assert [seed.seed for seed in cost.by_seed] == [0, 1, 2]
    assert LastModelCost.from_dict(cost.to_dict()) == cost
    assert {"value", "low", "high", "seeds"} <= cost.to_dict().keys()


def test_one_seed_has_no_interval_and_a_bound_no_lower_end() -> None:
    one = cost_at_match(seed=0, lineage_flops=60.0, match_flops=10.0, baseline=BASELINES[1], at_most=True)
    assert (over_seeds([one]).low, over_seeds([one]).high) == (None, None)
    other = cost_at_match(seed=1, lineage_flops=60.0, match_flops=12.0, baseline=BASELINES[1])
    both = over_seeds([one, other])
    assert both.at_most
    assert both.low is None
    assert both.high == pytest.approx(0.71 + 12.7062 * 0.01)
    with pytest.raises(ValueError, match="values: none are given"):
        over_seeds([])
