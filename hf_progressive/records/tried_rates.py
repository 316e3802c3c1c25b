"""Peak learning rates that a study tried on its baseline and its recipes, and where the best of each lies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from hf_progressive.records.study import FinishedRun, StudyRecord

End = Literal["lowest", "highest"]


@dataclass(frozen=True, kw_only=True)
class TriedSide:
    """The rates of one side, each with what came of it."""

    recipe: str | None
    """The recipe; None for the baseline."""

    rung: str
    """The rung on which they were tried."""

    finished: dict[float, float]
    """Bits per byte, by rate, the mean over the seeds."""

    failed: tuple[float, ...]
    """Rates at which training failed, on one seed or more."""

    beside: dict[float, float]
    """Rates that the study does not choose from, tried on the first seed: bits per byte above `best` on that seed."""

    beside_failed: tuple[float, ...]
    """Rates of that kind at which training failed."""

    done: int
    """How many training runs are done, failed ones among them."""

    pending: int
    """How many are not done yet; their rates are in neither list."""

    @property
    def best(self) -> float | None:
        """The best rate so far; None where nothing is finished."""
        return min(self.finished, key=lambda rate: self.finished[rate], default=None)

    @property
    def end(self) -> End | None:
        """At which end of those tried the best lies, if at one."""
        tried = [*self.finished, *self.failed, *self.beside, *self.beside_failed]
        return None if self.best is None else end_of_range(self.best, tried)


def end_of_range(best: float, tried: Sequence[float]) -> End | None:
    """Tell at which end of the rates that were tried, failed ones included, the best lies.

    >>> end_of_range(2e-3, [1e-3, 2e-3]), end_of_range(2e-3, [1e-3, 2e-3, 4e-3]), end_of_range(2e-3, [2e-3])
    ('highest', None, None)
    """
    if len(tried) < 2 or best not in (min(tried), max(tried)):
        return None
    return "lowest" if best == min(tried) else "highest"


def means_and_failed(by_rate: Mapping[float, Sequence[float | None]]) -> tuple[dict[float, float], list[float]]:
    """Return each rate's mean over its seeds, and the rates at which training failed on one seed or more, there None.

    >>> means_and_failed({1e-3: [2.0, 2.5], 2e-3: [1.9, None]})
    ({0.001: 2.25}, [0.002])
    """
    found = {rate: [bits for bits in seeds if bits is not None] for rate, seeds in by_rate.items()}
    whole = {rate: fmean(bits) for rate, bits in found.items() if len(bits) == len(by_rate[rate])}
    return whole, [rate for rate in by_rate if rate not in whole]


def tried_sides(study: StudyRecord) -> list[TriedSide]:
    """Return the sides on which a study tried rates in order to choose among them; none where it did not."""
    rows = [row for row in study.learning_rates if study.rates_tried and (row.kind == "cold" or row.recipe)]
    sides = []
    for recipe in dict.fromkeys(row.recipe for row in rows):
        own = [row for row in rows if row.recipe == recipe]
        done = [row for row in own if row.point is not None]
        pending = {row.learning_rate for row in own if row.point is None}
        by_rate: dict[float, dict[int, float | None]] = {}
        for row in (row for row in done if row.learning_rate not in pending):
            bits = row.point.bits_per_byte if isinstance(row.point, FinishedRun) else None
            seed = study.config.seeds[0] if row.seed is None else row.seed
            by_rate.setdefault(row.learning_rate, {})[seed] = bits
        chosen_from = {rate: by_rate.pop(rate) for rate in study.rates_tried if rate in by_rate}
        finished, failed = means_and_failed({rate: [*bits.values()] for rate, bits in chosen_from.items()})
        best = min(finished, key=lambda rate: finished[rate], default=None)
        beside, beside_failed = _beside(by_rate, {} if best is None else chosen_from[best])
        sides.append(
            TriedSide(
                recipe=recipe,
                rung=own[0].rung,
                finished=finished,
                failed=tuple(failed),
                beside=beside,
                beside_failed=tuple(beside_failed),
                done=len(done),
                pending=len(own) - len(done),
            )
        )
    return sides


# Each of these has the first seed alone: it stands against that seed's best, and not against means over several.
def _beside(
    others: Mapping[float, Mapping[int, float | None]], best: Mapping[int, float | None]
) -> tuple[dict[float, float], list[float]]:
    above, failed = {}, []
    for rate, by_seed in others.items():
        for seed, bits in by_seed.items():
            reference = best.get(seed)
            if bits is None:
                failed.append(rate)
            elif reference is not None:
                above[rate] = bits - reference
    return above, failed
