"""A law of what growing saves, fitted to studies: last-model cost and η against size, tokens and growth factor.

    log cost = a + b·log N + c·log r + d·log g + noise          η = a + b·log N + c·log r + d·log g + noise

N: parameters of the last model; r: its tokens from scratch per parameter; g: N over the parameters of the smallest
model before it. A power law in tokens is what Liew and Kato (arXiv 2510.06548) find for models that are reused: their
second-stage loss falls as D₂^(−α + β·log D₁), so that at equal loss budgets are powers of each other. In g a power can
hold on a stretch only: "When is Warmstarting Effective for Scaling Language Models?" (arXiv 2605.13405) finds factor 2
most reliable, a bound above which nothing is saved, and gains that shrink with r.

Seeds of one step say how far runs scatter, and nothing new of how steps differ: the law is fitted to the means of
steps, and its degrees of freedom are counted in steps. Where no step is left over for that, as with a single one, the
interval is of its seeds, which `Law.of_seeds` says.

Few studies tell several of these apart. An exponent is fitted where its quantity was measured at enough values, far
enough apart; otherwise it is 0, and the interval of a prediction is as wide as if it had been fitted to what there is.
An exponent that cannot be told from 0 makes the interval as wide as its own doubt, but counts as 0 in the expected
value: three decades away a slope that is chance would make half of the price of it, or twice.

This module imports neither torch nor transformers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from hf_progressive.planning.observations import Observation
from hf_progressive.records.interval import t_quantile

Response = Literal["last_model_cost", "eta"]

VARIABLES: Final = ("parameters", "tokens_per_parameter", "growth")
"""What the law depends on, by the names of `Observation`'s fields: N, r, g."""

_ENOUGH: Final = {"parameters": 3, "tokens_per_parameter": 2, "growth": 2}  # distinct values for an exponent
_FAR_ENOUGH: Final = 1.5  # the largest over the smallest of them
_SAME: Final = 1.05  # values that are closer than this factor are one
_LEAST_SPREAD: Final = math.log(2) ** 2
"""What a quantity's squared deviations are taken to be at least, in the interval of a prediction: a factor of two says
about as little of an exponent as the noise does."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a law says of one model, with a 95 % interval for a single run."""

    value: float
    """The expected value."""

    low: float | None
    """Lower end of its interval; None where the observations say nothing of their spread."""

    high: float | None
    """Upper end."""

    factor: float
    """The model's parameters over those of the largest that was measured; above 1 the law is extrapolated."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """The largest size, predicted from the others."""

    parameters: int
    """Parameters of the largest size."""

    predicted: Prediction
    """What a law of the others says."""

    measured: float
    """The mean of what was measured there."""

    @property
    def inside(self) -> bool | None:
        """Whether the measured mean lies in the interval; None where there is none."""
        if self.predicted.low is None or self.predicted.high is None:
            return None
        return self.predicted.low <= self.measured <= self.predicted.high


@dataclass(frozen=True, kw_only=True)
class Law:
    """A fitted law."""

    response: Response
    """What it is about."""

    observations: tuple[Observation, ...]
    """What it was fitted to."""

    centre: dict[str, float]
    """Means of log N, log r and log g."""

    intercept: float
    """The response at the centre: of log cost, or of η."""

    exponents: dict[str, float | None]
    """Of N, r and g; None for one that was not fitted, and counts as 0."""

    standard_errors: dict[str, float | None]
    """Theirs; None where no degrees of freedom are left."""

    expected: dict[str, float]
    """The exponents that count in an expected value: fitted without those that cannot be told from 0."""

    left_out: dict[str, str]
    """Why an exponent was not fitted."""

    steps: int
    """Steps that the observations are of; the seeds of one are an observation each, and one mean."""

    noise: float | None
    """Standard deviation of the means of steps about the law; None where no degrees of freedom are left."""

    degrees: int
    """Degrees of freedom of `noise`: steps less fitted coefficients; of seeds, where it is of them."""

    of_seeds: bool
    """Whether `noise` is of a mean over seeds, because there are no steps to spare: how steps differ is not in it."""

    seed_noise: float
    """Standard deviation of the seeds about their step's mean; 0 where no step has two."""

    seed_degrees: int
    """Its degrees of freedom: observations less steps."""

    seeds_per_step: float
    """Seeds that a step's mean is of, in the harmonic mean."""

    covariance: Any
    """Of intercept and fitted exponents, in units of the noise's variance; an array."""

    def predict(self, *, parameters: float, tokens_per_parameter: float, growth: float) -> Prediction:
        """Say what is to be expected of a model, and how far that is extrapolated.

        Args:
            parameters: N.
            tokens_per_parameter: r.
            growth: g.
        """
        at = {"parameters": parameters, "tokens_per_parameter": tokens_per_parameter, "growth": growth}
        shift = {name: math.log(at[name]) - self.centre[name] for name in VARIABLES}
        fitted = [name for name in VARIABLES if self.exponents[name] is not None]
        mean = self.intercept + sum(exponent * shift[name] for name, exponent in self.expected.items())
        middle = self.intercept + sum((self.exponents[name] or 0.0) * shift[name] for name in VARIABLES)
        low = high = None
        if self.noise is not None:
            row = np.array([1.0, *(shift[name] for name in fitted)])
            unfitted = sum(shift[name] ** 2 / self._spread(name) for name in VARIABLES if name not in fitted)
            half = self._half_width(float(row @ self.covariance @ row), unfitted)
            low, high = self._response(min(middle - half, mean)), self._response(max(middle + half, mean))
        largest = max(observation.parameters for observation in self.observations)
        return Prediction(value=self._response(mean), low=low, high=high, factor=parameters / largest)

    def _half_width(self, of_mean: float, unfitted: float) -> float:
        # For a single run: its own noise, more of it at other values of what is not fitted, and the doubt of the fit.
        # A step's mean is of several seeds, one run of one: the rest of the seeds' noise comes back. Satterthwaite's
        # degrees of freedom of the sum.
        assert self.noise is not None
        mean, seed = self.noise**2, self.seed_noise**2
        own = 1.0 if not self.of_seeds else 0.0
        of_steps = mean * (own * (1 + unfitted) + of_mean)
        of_seeds = seed * (1 + unfitted) * (1 - own / self.seeds_per_step)
        total = of_steps + of_seeds
        if total == 0:
            return 0.0
        lost = of_steps**2 / self.degrees + (of_seeds**2 / self.seed_degrees if self.seed_degrees else 0.0)
        degrees = self.degrees if self.of_seeds else max(1, round(total**2 / lost))
        return t_quantile(degrees) * math.sqrt(total)

    def _spread(self, name: str) -> float:
        logs = [math.log(getattr(seeds[0], name)) for seeds in _by_step(self.observations)]
        return max(_LEAST_SPREAD, sum((log - self.centre[name]) ** 2 for log in logs))

    def _response(self, value: float) -> float:
        return math.exp(min(value, 700.0)) if self.response == "last_model_cost" else value

    @property
    def doubtful(self) -> list[str]:
        """Exponents that were fitted and cannot be told from 0."""
        return [
            name for name, exponent in self.exponents.items() if exponent is not None and name not in self.expected
        ]

    def held_out(self) -> HeldOut | None:
        """Predict the largest size from the others; None where there is one size only."""
        largest = max(observation.parameters for observation in self.observations)
        at = [observation for observation in self.observations if observation.parameters == largest]
        others = [observation for observation in self.observations if observation.parameters < largest]
        if not others:
            return None
        place = {name: float(np.mean([getattr(item, name) for item in at])) for name in VARIABLES}
        measured = float(np.mean([_value(item, self.response) for item in at]))
        predicted = fit(others, self.response).predict(**place)
        return HeldOut(parameters=largest, predicted=predicted, measured=self._response(measured))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        held_out = self.held_out()
        sizes = [observation.parameters for observation in self.observations]
        tokens = [observation.tokens_per_parameter for observation in self.observations]
        growths = [observation.growth for observation in self.observations]
        left = "log cost" if self.response == "last_model_cost" else "eta"
        return {
            "form": f"{left} = a + b·log N + c·log r + d·log g, N, r and g over their means {self._means()}",
            "a": self.intercept,
            "exponents": dict(self.exponents),
            "standard_errors": dict(self.standard_errors),
            "counted": dict(self.expected),
            "left_out": dict(self.left_out),
            "noise": self.noise,
            "degrees_of_freedom": self.degrees,
            "interval_of": "seeds" if self.of_seeds else "steps",
            "seed_noise": self.seed_noise,
            "observations": len(self.observations),
            "steps": self.steps,
            "studies": sorted({observation.study for observation in self.observations}),
            "families": sorted({observation.family for observation in self.observations}),
            "schedules": sorted({observation.schedule for observation in self.observations}),
            "measured": {
                "parameters": [min(sizes), max(sizes)],
                "tokens_per_parameter": [min(tokens), max(tokens)],
                "growth": [min(growths), max(growths)],
            },
            "held_out": None
            if held_out is None
            else {
                "parameters": held_out.parameters,
                "predicted": held_out.predicted.value,
                "low": held_out.predicted.low,
                "high": held_out.predicted.high,
                "measured": held_out.measured,
                "inside": held_out.inside,
            },
        }

    def _means(self) -> str:
        means = (f"{letter} {math.exp(self.centre[name]):.3g}" for letter, name in zip("Nrg", VARIABLES, strict=True))
        return ", ".join(means)


def fit(observations: Sequence[Observation], response: Response = "last_model_cost") -> Law:
    """Fit the law by least squares to the means of steps over their seeds.

    Args:
        observations: What studies measured.
        response: What to fit: the last-model cost, whose logarithm is taken, or η.

    Returns:
        The law, with the exponents that the observations can tell apart.

    Raises:
        ValueError: There are no observations.
    """
    if not observations:
        raise ValueError("observations: there are none to fit a law to; name a study whose steps have matched")
    steps = _by_step(observations)
    firsts = [seeds[0] for seeds in steps]
    logs = {name: np.log([float(getattr(item, name)) for item in firsts]) for name in VARIABLES}
    centre = {name: float(column.mean()) for name, column in logs.items()}
    columns, left_out = _fitted_columns(firsts, {name: logs[name] - centre[name] for name in VARIABLES})
    scattered = [np.array([_value(seed, response) for seed in seeds]) for seeds in steps]
    values = np.array([float(seeds.mean()) for seeds in scattered])
    coefficients, covariance, squares = _least_squares([np.ones(len(steps)), *columns.values()], values)
    degrees, seed_degrees = len(values) - len(coefficients), len(observations) - len(steps)
    within = sum(float(((seeds - seeds.mean()) ** 2).sum()) for seeds in scattered)
    seed_noise = math.sqrt(within / seed_degrees) if seed_degrees else 0.0
    per_step = len(steps) / sum(1 / len(seeds) for seeds in steps)
    of_seeds = degrees == 0 and seed_degrees > 0
    noise = math.sqrt(squares / degrees) if degrees else None
    if of_seeds:
        degrees, noise = seed_degrees, seed_noise / math.sqrt(per_step)
    found = dict(zip(columns, coefficients[1:].tolist(), strict=True))
    errors = dict(zip(columns, np.sqrt(np.diag(covariance))[1:].tolist(), strict=True))
    return Law(
        response=response,
        observations=tuple(observations),
        centre=centre,
        intercept=float(coefficients[0]),
        exponents={name: found.get(name) for name in VARIABLES},
        standard_errors={
            name: None if noise is None or name not in errors else noise * errors[name] for name in VARIABLES
        },
        expected=_told_from_zero(columns, values),
        left_out=left_out,
        steps=len(steps),
        noise=noise,
        degrees=degrees,
        of_seeds=of_seeds,
        seed_noise=seed_noise,
        seed_degrees=seed_degrees,
        seeds_per_step=per_step,
        covariance=covariance,
    )


def _fitted_columns(steps: Sequence[Observation], columns: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    # The variables whose exponents these steps can tell apart, and why the others are left out.
    fitted: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for name, column in columns.items():
        design = [np.ones(len(steps)), *fitted.values(), column]
        if reason := _too_few(name, [getattr(item, name) for item in steps]):
            left_out[name] = reason
        elif len(steps) <= len(design):
            left_out[name] = f"{len(steps)} steps are too few for another exponent"
        elif not _independent(design):
            left_out[name] = "it changed together with what stands before it, and cannot be told from that"
        else:
            fitted[name] = column
    return fitted, left_out


def _least_squares(columns: Sequence[Any], values: Any) -> tuple[Any, Any, float]:
    # Coefficients, their covariance in units of the noise's variance, and the sum of squared residuals.
    design = np.stack(columns, axis=1)
    covariance = np.linalg.inv(design.T @ design)
    coefficients = covariance @ design.T @ values
    residuals = values - design @ coefficients
    return coefficients, covariance, float(residuals @ residuals)


def _told_from_zero(columns: dict[str, Any], values: Any) -> dict[str, float]:
    # Fits exponents, and again without the least certain one as long as its 95 % interval holds 0. Columns and values
    # are of the same steps; columns have a mean of 0.
    while columns:
        coefficients, covariance, squares = _least_squares([np.ones(len(values)), *columns.values()], values)
        degrees = len(values) - len(coefficients)
        if degrees == 0:
            return {}
        noise = math.sqrt(squares / degrees)
        found = dict(zip(columns, coefficients[1:].tolist(), strict=True))
        doubts = dict(zip(columns, (noise * np.sqrt(np.diagonal(covariance)[1:])).tolist(), strict=True))
        least = min(columns, key=lambda name: abs(found[name]) - t_quantile(degrees) * doubts[name])
        if abs(found[least]) > t_quantile(degrees) * doubts[least]:
            return found
        columns = {name: column for name, column in columns.items() if name != least}
    return {}


def _by_step(observations: Sequence[Observation]) -> list[list[Observation]]:
    steps: dict[tuple[object, ...], list[Observation]] = {}
    for item in observations:
        step = (item.family, item.schedule, item.parameters, item.tokens_per_parameter, item.growth)
        steps.setdefault(step, []).append(item)
    return list(steps.values())


def _value(observation: Observation, response: Response) -> float:
    return math.log(observation.last_model_cost) if response == "last_model_cost" else observation.eta


def _too_few(name: str, values: Sequence[float]) -> str | None:
    distinct: list[float] = []
    for value in sorted(values):
        if not distinct or value > _SAME * distinct[-1]:
            distinct.append(value)
    needed = _ENOUGH[name]
    if len(distinct) >= needed and distinct[-1] >= _FAR_ENOUGH * distinct[0]:
        return None
    measured = ", ".join(f"{value:.3g}" for value in distinct)
    return f"{needed} values over a factor of {_FAR_ENOUGH:g} are needed; measured: {measured}"


def _independent(columns: Sequence[Any]) -> bool:
    # Whether no column is nearly a combination of the others.
    unit = np.stack([column / np.linalg.norm(column) for column in columns], axis=1)
    return bool(np.linalg.svd(unit, compute_uv=False)[-1] > 0.1)
