"""Transfer efficiencies that a plan may count on, and what rungs take to match at one of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from hf_progressive.records.study import StudyRecord
from hf_progressive.records.study_outcome import StepOutcome


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
    """Read a transfer efficiency: η, with or without the two ends of its interval, or the paths of `study.json` files.

    Of studies, the mean over their headlines' rungs is taken, and of their ends likewise; one that did not match is an
    error.
    """
    if paths := _study_paths(words):
        return _from_studies(paths)
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 3):
        raise ValueError(f"recipe-eta: {' '.join(words)!r} is neither ETA, nor ETA LOW HIGH, nor a study.json")
    return Evidence(eta=numbers[0], low=numbers[1] if numbers[1:] else None, high=numbers[2] if numbers[1:] else None)


def read_studies(words: Sequence[str]) -> tuple[StudyRecord, ...]:
    """Read the studies that are named; none where a transfer efficiency is given."""
    return tuple(StudyRecord.read(path) for path in _study_paths(words))


def _study_paths(words: Sequence[str]) -> list[Path]:
    return [Path(word) for word in words] if words and all(word.endswith(".json") for word in words) else []


def _from_studies(paths: Sequence[Path]) -> Evidence:
    steps: list[StepOutcome] = []
    sources = []
    for path in paths:
        headline = StudyRecord.read(path).headline
        short = [step.child for step in headline.rungs if step.eta is None]
        if not headline.rungs or short:
            missing = f"{', '.join(short)} did not match" if short else "its headline has no finished rung"
            raise ValueError(
                f"recipe-eta: {path}: {missing}, so it has no mean efficiency; finish the study or give ETA"
            )
        steps += headline.rungs
        name = path.name if len(paths) == 1 else f"{path.parent.name}/{path.name}"
        sources.append(f"{name}, recipe {headline.recipe!r}")
    return Evidence(
        eta=fmean([step.eta for step in steps if step.eta is not None]),
        low=_mean([step.eta_low for step in steps]),
        high=_mean([step.eta_high for step in steps]),
        source="; ".join(sources),
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
