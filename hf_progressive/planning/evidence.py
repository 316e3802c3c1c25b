"""Transfer efficiencies that a plan may count on, and what rungs take to match at one of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, variance

from hf_progressive.records.interval import t_quantile
from hf_progressive.records.study import StudyRecord

AS_GIVEN = "as given"
"""The source of an efficiency that was given as a number."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """A transfer efficiency and where it was measured."""

    eta: float
    """η, the share of the parent's lineage that a child is spared."""

    low: float | None = None
    """Lower end of its interval."""

    high: float | None = None
    """Upper end of its interval."""

    source: str = AS_GIVEN
    """Where it is from."""

    def __post_init__(self) -> None:
        if self.low is not None and self.high is not None and not self.low <= self.eta <= self.high:
            raise ValueError(f"recipe-eta: {self.eta} is not between {self.low} and {self.high}; give ETA [LOW HIGH]")


def read_evidence(words: Sequence[str]) -> Evidence | None:
    """Read a transfer efficiency: η, with or without the two ends of its interval, or the paths of `study.json` files.

    Only studies of chains count. A trunk's η is of one step from an unfinished, cheap model to the last; for a chain
    of finished models it would promise children that cost nothing. None where all the studies are of trunks.

    Of studies, the mean over their headlines' steps is taken; one that did not match is an error. Steps of one seed
    share its ancestors, so that a seed's mean over its steps is one value: a study's interval is Student's t over
    these. Studies are independent: their variances add, each weighted by the square of its share of the steps, with
    Satterthwaite's degrees of freedom. The interval is of this mean; single steps differ from it besides.
    """
    if paths := _study_paths(words):
        return _from_studies(paths)
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 3) or not all(map(math.isfinite, numbers)):
        raise ValueError(
            f"recipe-eta: {' '.join(words)!r} is neither ETA, nor ETA LOW HIGH, nor the path of a study.json"
        )
    return Evidence(eta=numbers[0], low=numbers[1] if numbers[1:] else None, high=numbers[2] if numbers[1:] else None)


def read_studies(words: Sequence[str]) -> tuple[StudyRecord, ...]:
    """Read the studies that are named; none where a transfer efficiency is given."""
    return tuple(StudyRecord.read(path) for path in _study_paths(words))


def _study_paths(words: Sequence[str]) -> list[Path]:
    paths = [Path(word) / "study.json" if Path(word).is_dir() else Path(word) for word in words]
    return paths if paths and all(path.suffix == ".json" for path in paths) else []


def _from_studies(paths: Sequence[Path]) -> Evidence | None:
    parts: list[_Part] = []
    sources = []
    for path in paths:
        study = StudyRecord.read(path)
        headline = study.headline
        short = [] if study.trunk else [step.child for step in headline.rungs if step.eta is None]
        if not headline.rungs or short or study.chooses_rates:
            missing = f"{', '.join(short)} did not match" if short else "its headline has no finished rung"
            raise ValueError(
                f"recipe-eta: {path}: {missing}, so it has no mean efficiency; finish the study or give ETA"
            )
        if study.trunk:
            continue
        parts.append(_part(study))
        sources.append(f"the study {study.name}, recipe {headline.recipe!r}")
    if not parts:
        return None
    whole = sum(part.steps for part in parts)
    eta = sum(part.eta * part.steps for part in parts) / whole
    half = _half_width([(part.steps / whole, part) for part in parts])
    return Evidence(
        eta=eta,
        low=None if half is None else eta - half,
        high=None if half is None or any(part.at_least for part in parts) else eta + half,
        source="; ".join(sources),
    )


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One study's mean over its steps."""

    eta: float
    steps: int
    at_least: bool
    seeds: tuple[float, ...]


def _part(study: StudyRecord) -> _Part:
    children = [step.child for step in study.headline.rungs]
    steps = [step for step in study.headline_recipe.rungs if step.child in children]
    by_seed: dict[int, list[float]] = {}
    for step in steps:
        for seed in step.by_seed:
            by_seed.setdefault(seed.seed, []).extend([] if seed.eta is None else [seed.eta])
    return _Part(
        eta=fmean(step.eta for step in study.headline.rungs if step.eta is not None),
        steps=len(children),
        at_least=any(step.at_least for step in study.headline.rungs),
        seeds=tuple(fmean(etas) for etas in by_seed.values() if len(etas) == len(steps)),
    )


def _half_width(parts: Sequence[tuple[float, _Part]]) -> float | None:
    # Of the weighted mean of independent studies, each of which has its seeds.
    if any(len(part.seeds) < 2 for _, part in parts):
        return None
    variances = [(weight**2 * variance(part.seeds) / len(part.seeds), len(part.seeds) - 1) for weight, part in parts]
    total = sum(own for own, _ in variances)
    if total == 0:
        return 0.0
    degrees = total**2 / sum(own**2 / seeds for own, seeds in variances)
    return t_quantile(max(1, int(degrees))) * math.sqrt(total)


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
