"""What the last model of a planned ladder would cost by way of the others, by what studies measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hf_progressive.planning.ladder_plan import LadderPlan
from hf_progressive.planning.law import Law, Prediction, fit
from hf_progressive.planning.observations import Observation, observed
from hf_progressive.records.study import StudyRecord

_NOTHING_KNOWN = 10.0  # upper over lower end: from here on an interval decides nothing that anyone would buy by
_NAMES = {"parameters": "size", "tokens_per_parameter": "tokens per parameter", "growth": "growth factor"}
_COUNTED_FROM = 1000  # from here on a factor is written as a whole number
_FAR = 2.0  # times the largest size measured: from here on a prediction is called extrapolated


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """A last-model cost, expected and with its interval, for one ladder."""

    cost: Prediction
    """Of the last-model cost."""

    eta: Prediction
    """Of the transfer efficiency."""

    law: Law
    """What the cost is predicted with."""

    eta_law: Law
    """What η is predicted with."""

    parameters: int
    """N of the ladder's last model."""

    tokens_per_parameter: float
    """r."""

    growth: float
    """g: N over the parameters of the ladder's first."""

    notes: tuple[str, ...]
    """Where the ladder differs from what was measured, a sentence each."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        measured = self.law.to_dict()["measured"]
        return {
            "value": self.cost.value,
            "low": self.cost.low,
            "high": self.cost.high,
            "basis": "law",
            "eta": {"value": self.eta.value, "low": self.eta.low, "high": self.eta.high},
            "extrapolation": {
                "parameters": self.parameters,
                "factor": self.cost.factor,
                "tokens_per_parameter": self.tokens_per_parameter,
                "growth": self.growth,
                "measured": measured,
            },
            "notes": list(self.notes),
            "law": self.law.to_dict(),
            "eta_law": self.eta_law.to_dict(),
        }


def forecast(studies: Sequence[StudyRecord], plan: LadderPlan) -> Forecast | None:
    """Predict the last-model cost of a planned ladder.

    Studies of the ladder's schedule and of its family count, if there are any; otherwise all do, and a note says so.

    Returns:
        The forecast; None where no seed of the studies has a last-model cost, or the ladder has one rung.
    """
    found = observed(studies)
    first, last = plan.rungs[0], plan.rungs[-1]
    if not found or last.parent is None:
        return None
    notes: list[str] = []
    config = plan.config
    found = _preferred(found, "schedule", config.schedule, f"in a {config.schedule}, as here", notes)
    found = _preferred(found, "family", config.model.family, f"with {config.model.family} models, as here", notes)
    at = {
        "parameters": last.parameters.total,
        "tokens_per_parameter": last.size.tokens / last.parameters.scaling,
        "growth": last.parameters.total / first.parameters.total,
    }
    law, eta_law = fit(found), fit(found, "eta")
    cost = law.predict(**at)
    return Forecast(
        cost=cost,
        eta=eta_law.predict(**at),
        law=law,
        eta_law=eta_law,
        parameters=last.parameters.total,
        tokens_per_parameter=at["tokens_per_parameter"],
        growth=at["growth"],
        notes=(
            *_width(cost),
            *notes,
            *_distances(law, at),
            *_unfitted(law),
            *_doubtful(law),
            *_seeds_alone(law),
            *_bounds(found),
        ),
    )


def _width(cost: Prediction) -> list[str]:
    if cost.low is None or cost.high is None or cost.high < _NOTHING_KNOWN * cost.low:
        return []
    return [
        f"an interval from {cost.low:.2g} to {cost.high:.2g} says nothing: {cost.value:.2f} is what was measured"
        " elsewhere, not a prediction for this ladder"
    ]


def _preferred(found: list[Observation], name: str, value: str, how: str, notes: list[str]) -> list[Observation]:
    same = [item for item in found if getattr(item, name) == value]
    if not same:
        seen = sorted({str(getattr(item, name)) for item in found})
        notes.append(f"nothing was measured {how}; the figures are of {' and '.join(seen)}")
    return same or found


def _distances(law: Law, at: dict[str, float]) -> list[str]:
    measured, sentences = law.to_dict()["measured"], []
    largest = measured["parameters"][1]
    if (factor := at["parameters"] / largest) > _FAR:
        times = f"{factor:,.0f}" if factor >= _COUNTED_FROM else f"{factor:.3g}"
        sentences.append(
            f"extrapolated in size: {at['parameters'] / 1e6:,.4g} M parameters are {times} times the largest that was"
            f" measured, {largest / 1e6:.3g} M"
        )
    for name, words in (("tokens_per_parameter", "tokens per parameter"), ("growth", "times the first model's size")):
        low, high = measured[name]
        if not 0.95 * low <= at[name] <= 1.05 * high:
            span = f"{low:.3g}" if high < 1.05 * low else f"{low:.3g} to {high:.3g}"
            sentences.append(f"extrapolated: {at[name]:.3g} {words}, measured at {span}")
    return sentences


def _seeds_alone(law: Law) -> list[str]:
    if not law.of_seeds:
        return []
    steps = "one step was measured" if law.steps == 1 else f"{law.steps} steps were measured"
    return [f"{steps}: the interval is of the seeds, and how costs differ from step to step is not in it"]


def _bounds(found: Sequence[Observation]) -> list[str]:
    notes = []
    if count := sum(item.is_bound for item in found):
        notes.append(f"{count} of the {len(found)} costs are upper bounds, which count as they are")
    if count := sum(item.is_extrapolated for item in found):
        notes.append(f"{count} of the {len(found)} costs are extrapolated beyond the finished baselines' budgets")
    return notes


def _doubtful(law: Law) -> list[str]:
    found = [
        f"{_NAMES[name]}, {law.exponents[name]:.2g}"
        + ("" if (error := law.standard_errors[name]) is None else f" with a standard error of {error:.2g}")
        for name in law.doubtful
    ]
    if not found:
        return []
    verb = "it counts" if len(found) == 1 else "they count"
    return [f"not told from 0: the exponent of {' and of '.join(found)}; {verb} in the interval alone"]


def _unfitted(law: Law) -> list[str]:
    missing = [_NAMES[name] for name in law.left_out]
    if not missing:
        return []
    return [
        f"no exponent of {', '.join(missing)}: too few values were measured, so that the expected cost does not change"
        " with it, and the interval widens with the distance"
    ]
