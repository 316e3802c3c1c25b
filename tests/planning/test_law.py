"""The law of what growing saves: exponents that were put in come out, and what cannot be told is not told."""

import math
import random
from pathlib import Path

import pytest

from hf_progressive.planning.law import fit
from hf_progressive.planning.observations import Observation, observed
from hf_progressive.records.study import read_study

STUDIES = Path(__file__).parents[2] / "examples" / "studies"
A, B, C, D = 0.8, -0.07, 0.21, -0.3


def measured(parameters, tokens=12.0, growth=4.0, *, seed=0, noise=0.0, family="llama"):
    cost = A * (parameters / 1e6) ** B * (tokens / 12) ** C * (growth / 4) ** D * math.exp(noise)
    return Observation(
        study="one",
        family=family,
        schedule="trunk",
        seed=seed,
        parameters=parameters,
        tokens_per_parameter=tokens,
        growth=growth,
        last_model_cost=cost,
        eta=2 - cost,
    )


GRID = [
    measured(parameters, tokens, growth)
    for parameters in (500_000, 1_000_000, 2_000_000)
    for tokens in (12.0, 20.0)
    for growth in (2.0, 4.0)
]


def test_exponents_that_were_put_in_come_out():
    law = fit(GRID)
    assert law.exponents == pytest.approx({"parameters": B, "tokens_per_parameter": C, "growth": D})
    assert law.noise == pytest.approx(0, abs=1e-9)
    found = law.predict(parameters=1e9, tokens_per_parameter=15, growth=3)
    assert found.value == pytest.approx(A * 1000**B * (15 / 12) ** C * (3 / 4) ** D)
    assert found.factor == pytest.approx(500)


def test_the_interval_covers_what_is_measured_next_as_often_as_it_says():
    draw, inside, trials = random.Random(3), 0, 400
    for _ in range(trials):
        noisy = [measured(item.parameters, noise=draw.gauss(0, 0.08)) for item in GRID]
        found = fit(noisy).predict(parameters=8_000_000, tokens_per_parameter=12, growth=4)
        truth = A * 8**B * math.exp(draw.gauss(0, 0.08))
        inside += found.low < truth < found.high
    assert inside / trials == pytest.approx(0.95, abs=0.03)


def test_a_straight_line_through_three_sizes_by_hand():
    sizes, noises = (500_000, 1_000_000, 2_000_000), (0.03, -0.06, 0.03)
    law = fit([measured(size, noise=noise) for size, noise in zip(sizes, noises, strict=True)])
    # log N is −l, 0, l around its mean, l = log 2. The noise has no slope, and a mean of 0; its squares add up to
    # .0009 + .0036 + .0009 = .0054 over one degree of freedom, so that s = √.0054; of the slope s / √(2 l²).
    deviation, log2 = math.sqrt(0.0054), math.log(2)
    assert law.exponents["parameters"] == pytest.approx(B)
    assert law.noise == pytest.approx(deviation)
    assert law.standard_errors["parameters"] == pytest.approx(deviation / (math.sqrt(2) * log2))
    # Four times the middle size lies 2 l away: variance s² (1 + 1/3 + (2 l)² / (2 l²)); t of one degree is 12.7062.
    found = law.predict(parameters=4_000_000, tokens_per_parameter=12, growth=4)
    half = 12.7062 * deviation * math.sqrt(1 + 1 / 3 + 2)
    line = math.log(A) + B * math.log(4)
    assert math.log(found.low) == pytest.approx(line - half)
    assert math.log(found.high) == pytest.approx(line + half)
    assert found.value == pytest.approx(A)  # of one degree of freedom the slope cannot be told from 0


def test_one_size_gives_its_mean_and_an_interval_that_widens_with_the_distance():
    law = fit([measured(1_000_000, seed=seed, noise=noise) for seed, noise in enumerate((0.1, 0.0, -0.1))])
    assert law.exponents == {"parameters": None, "tokens_per_parameter": None, "growth": None}
    assert law.left_out["parameters"] == "3 values over a factor of 1.5 are needed; measured: 1e+06"
    at = {"tokens_per_parameter": 12, "growth": 4}
    here, far = (law.predict(parameters=size, **at) for size in (1e6, 1e9))
    assert here.value == far.value == pytest.approx(A)  # the geometric mean of .8 e^±.1 and .8
    half = 4.3027 * 0.1 * math.sqrt(1 + 1 / 3)
    assert math.log(here.high / here.value) == pytest.approx(half)
    # 1000 times as large: log 1000 against a spread that is taken to be log 2.
    wide = 4.3027 * 0.1 * math.sqrt(1 + 1 / 3 + (math.log(1000) / math.log(2)) ** 2)
    assert math.log(far.value / far.low) == pytest.approx(wide)
    assert far.factor == pytest.approx(1000)


def test_what_changed_together_is_not_told_apart():
    law = fit([measured(size, growth=size / 250_000) for size in (500_000, 1_000_000, 2_000_000, 4_000_000)])
    assert law.exponents["parameters"] == pytest.approx(B + D)
    assert law.exponents["growth"] is None
    assert "changed together with" in law.left_out["growth"]


def test_an_exponent_needs_a_step_more_than_there_are_coefficients():
    shapes = ((500_000, 12.0, 2.0), (1_000_000, 20.0, 4.0), (2_000_000, 12.0, 4.0), (2_000_000, 20.0, 2.0))
    law = fit([measured(*shape) for shape in shapes])
    assert law.exponents["growth"] is None
    assert law.left_out == {"growth": "4 steps are too few for another exponent"}
    assert fit([measured(*shape) for shape in (*shapes, (500_000, 20.0, 4.0))]).left_out == {}


def test_few_observations_have_no_interval():
    law = fit([measured(1_000_000)])
    found = law.predict(parameters=1e6, tokens_per_parameter=12, growth=4)
    assert (found.value, found.low, found.high, law.noise) == (pytest.approx(A), None, None, None)
    with pytest.raises(ValueError, match="there are none to fit a law to"):
        fit([])


def test_the_largest_size_is_held_out():
    draw = random.Random(0)
    noisy = [measured(item.parameters, noise=draw.gauss(0, 0.05)) for item in GRID]
    held_out = fit(noisy).held_out()
    assert held_out is not None
    assert held_out.parameters == 2_000_000
    others = [item for item in noisy if item.parameters < 2_000_000]
    assert held_out.predicted == fit(others).predict(parameters=2_000_000, tokens_per_parameter=12, growth=4)
    logs = [math.log(item.last_model_cost) for item in noisy if item.parameters == 2_000_000]
    assert held_out.measured == pytest.approx(math.exp(sum(logs) / 4))
    assert held_out.inside
    assert fit([measured(1_000_000)]).held_out() is None


def test_seeds_of_a_step_are_one_value_of_how_steps_differ():
    # Three steps of two seeds each, too near one another for exponents, by hand: the means of steps lie .06, −.12 and
    # .06 off theirs, whose squares add up to .0216 over two degrees of freedom; the seeds ±.02 off those.
    steps = [
        [measured(1_000_000 + place, seed=seed, noise=mean + sign * 0.02) for seed, sign in enumerate((1, -1))]
        for place, mean in enumerate((0.06, -0.12, 0.06))
    ]
    law = fit([item for seeds in steps for item in seeds])
    assert (law.steps, law.degrees, law.of_seeds) == (3, 2, False)
    assert law.noise == pytest.approx(math.sqrt(0.0216 / 2), rel=1e-3)
    # A single run scatters more than a mean of two: half of the seeds' variance, 6 · .0004 / 3, comes back.
    half_of_seeds = 0.0008 / 2
    of_steps = 0.0108 * (1 + 1 / 3)
    degrees = (of_steps + half_of_seeds) ** 2 / (of_steps**2 / 2 + half_of_seeds**2 / 3)
    assert round(degrees) == 2
    found = law.predict(parameters=1_000_001, tokens_per_parameter=12, growth=4)
    assert math.log(found.high / found.value) == pytest.approx(4.3027 * math.sqrt(of_steps + half_of_seeds), rel=1e-3)
    # More seeds of the same steps say nothing more of how steps differ.
    again = fit([item for seeds in steps for item in seeds * 3])
    assert (again.noise, again.degrees) == (pytest.approx(law.noise), 2)
    assert law.to_dict()["interval_of"] == "steps"


def test_more_seeds_say_nothing_of_what_is_far_from_all_steps():
    seeds = [measured(size, noise=noise) for size, noise in ((1_000_000, 0.1), (4_000_000, -0.1))]
    few, many = (fit(seeds * times).predict(parameters=1e9, tokens_per_parameter=12, growth=4) for times in (1, 3))
    assert (many.low, many.high) == (pytest.approx(few.low), pytest.approx(few.high))


def test_eta_is_fitted_as_it_is():
    law = fit([measured(1_000_000, seed=seed, noise=noise) for seed, noise in enumerate((0.1, -0.1))], "eta")
    etas = [2 - A * math.exp(noise) for noise in (0.1, -0.1)]
    found = law.predict(parameters=1e6, tokens_per_parameter=12, growth=4)
    assert found.value == pytest.approx(sum(etas) / 2)
    deviation = (etas[1] - etas[0]) / math.sqrt(2)
    assert found.high == pytest.approx(found.value + 12.7062 * deviation * math.sqrt(1.5))


def test_the_committed_studies_are_read_and_none_counts_twice():
    studies = [read_study(STUDIES / name) for name in ("books", "books_llama", "books_screen")]
    seen = observed(studies)
    assert len(seen) == 3 * 3 + 2 * 3  # the screening's one seed is the study's first
    assert {item.schedule for item in seen} == {"chain"}
    last = [item for item in seen if item.family == "gpt2" and item.parameters == 525_096]
    family = studies[0].headline.family
    assert sum(item.last_model_cost for item in last) / 3 == pytest.approx(family.over_last_alone)
    steps = {step.child: step.eta for step in studies[0].headline.rungs}
    assert sum(item.eta for item in last) / 3 == pytest.approx(steps["l7w72"])
    assert last[0].growth == pytest.approx(525_096 / 323_776)
    law = fit([item for item in seen if item.family == "gpt2"])
    assert law.to_dict()["measured"]["parameters"] == [373_760, 525_096]
    assert law.exponents["parameters"] is None  # sizes a factor 1.4 apart
    assert law.held_out().inside


def test_an_exponent_that_may_be_0_widens_the_interval_and_leaves_the_expected_value():
    # Four sizes whose noise is larger than what size does: of the slope's doubt, by hand, 2·√(Σ r² / 2 / Σ x²).
    sizes, noises = (500_000, 1_000_000, 2_000_000, 4_000_000), (0.2, -0.25, 0.1, -0.05)
    noisy = [measured(size, noise=noise) for size, noise in zip(sizes, noises, strict=True)]
    law = fit(noisy)
    logs = [math.log(item.last_model_cost) for item in noisy]
    places, mean = [(2 * place - 3) * math.log(2) / 2 for place in range(4)], sum(logs) / 4
    slope = sum(x * y for x, y in zip(places, logs, strict=True)) / sum(x * x for x in places)
    left = sum((y - mean - slope * x) ** 2 for x, y in zip(places, logs, strict=True))
    doubt = math.sqrt(left / 2 / sum(x * x for x in places))
    assert abs(slope) < 4.3027 * doubt
    assert (law.expected, law.doubtful) == ({}, ["parameters"])
    assert law.exponents["parameters"] == pytest.approx(slope)
    assert law.standard_errors["parameters"] == pytest.approx(doubt)
    # Far away: the mean of what was measured, in an interval of the line and of its doubt.
    found = law.predict(parameters=1e9, tokens_per_parameter=12, growth=4)
    far = math.log(1000) - sum(math.log(size / 1e6) for size in sizes) / 4
    half = 4.3027 * math.sqrt(left / 2 * (1 + 1 / 4) + (doubt * far) ** 2)
    assert math.log(found.value) == pytest.approx(mean)
    assert math.log(found.low) == pytest.approx(mean + slope * far - half)
    assert math.log(found.high) == pytest.approx(mean + slope * far + half)


def test_of_two_exponents_the_one_that_is_told_from_0_counts_alone():
    noises = (0.01, -0.02, 0.015, -0.01, 0.02, -0.015, 0.005, -0.01, 0.015, 0.0, -0.02, 0.01)
    law = fit(
        [
            measured(item.parameters, item.tokens_per_parameter, noise=noise + 0.07 * math.log(item.parameters / 1e6))
            for item, noise in zip(GRID, noises, strict=True)
        ]
    )  # the noise takes away what size does
    assert law.expected.keys() == {"tokens_per_parameter"}
    assert law.doubtful == ["parameters"]
    assert law.expected["tokens_per_parameter"] == pytest.approx(C, abs=0.05)
    assert law.to_dict()["counted"] == law.expected
