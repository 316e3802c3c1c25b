"""Transfer efficiencies that a plan may count on, and what rungs take to match at one of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from hf_progressive.records.study import StudyRecord


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """A transfer efficiency and where it was measured."""

    eta: float
    """η, the share of the parent's lineage that a child is spared."""

    low: float | None = None
    """Lower end of its interval."""

    high: float | None = None
    """Upper end of its interval."""

    source: str = "as given"
    """Where it is from."""

    def __post_init__(self) -> None:
        if self.low is not None and self.high is not None and not self.low <= self.eta <= self.high:
            raise ValueError(f"recipe-eta: {self.eta} is not between {self.low} and {self.high}; give ETA [LOW HIGH]")


def read_evidence(words: Sequence[str]) -> Evidence:
    """Read a transfer efficiency: η, with or without the two ends of its interval, or the path of a `study.json`.

    Of a study, the mean over its headline's rungs is taken, and of their ends likewise; one that did not match is an
    error.
    """
    if len(words) == 1 and words[0].endswith(".json"):
        return _from_study(Path(words[0]))
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 3):
        raise ValueError(f"recipe-eta: {' '.join(words)!r} is neither ETA, nor ETA LOW HIGH, nor a study.json")
    return Evidence(eta=numbers[0], low=numbers[1] if numbers[1:] else None, high=numbers[2] if numbers[1:] else None)


def _from_study(path: Path) -> Evidence:
    headline = StudyRecord.read(path).headline
    eta = [step.eta for step in headline.rungs if step.eta is not None]
    short = [step.child for step in headline.rungs if step.eta is None]
    if not eta or short:
        missing = f"{', '.join(short)} did not match" if short else "its headline has no finished rung"
        raise ValueError(f"recipe-eta: {path}: {missing}, so it has no mean efficiency; finish the study or give ETA")
    return Evidence(
        eta=fmean(eta),
        low=_mean([step.eta_low for step in headline.rungs]),
        high=_mean([step.eta_high for step in headline.rungs]),
        source=f"{path.name}, recipe {headline.recipe!r}",
    )


def _mean(ends: Sequence[float | None]) -> float | None:
    known = [end for end in ends if end is not None]
    return fmean(known) if len(known) == len(ends) else None


def inherited_flops(cold: Sequence[float], eta: float) -> list[float]:
    """Return what each rung takes to match its baseline at one transfer efficiency on every step.

    C_child = C_scratch − η·L, where L is everything that went into the parent, its ancestors included; at η = 1 the
    sum over the family telescopes to the last rung's cold cost. None is below 0, and the first rung is cold.

    >>> inherited_flops([2.0, 3.0, 5.0], eta=1.0)
    [2.0, 1.0, 2.0]
    """
    own: list[float] = []
    for flops in cold:
        own.append(max(0.0, flops - eta * sum(own)) if own else flops)
    return own
