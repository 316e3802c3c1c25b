"""Peak learning rates that a study tried on its baseline and its recipes, and where the best of each lies."""

from collections.abc import Sequence
from dataclasses import dataclass
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
    """Bits per byte, by rate."""

    failed: tuple[float, ...]
    """Rates at which training failed."""

    pending: int
    """How many are not done yet."""

    @property
    def best(self) -> float | None:
        """The best rate so far; None where nothing is finished."""
        return min(self.finished, key=lambda rate: self.finished[rate], default=None)

    @property
    def end(self) -> End | None:
        """At which end of those tried the best lies, if at one."""
        return None if self.best is None else end_of_range(self.best, [*self.finished, *self.failed])


def end_of_range(best: float, tried: Sequence[float]) -> End | None:
    """Tell at which end of the rates that were tried, failed ones included, the best lies.

    >>> end_of_range(2e-3, [1e-3, 2e-3]), end_of_range(2e-3, [1e-3, 2e-3, 4e-3]), end_of_range(2e-3, [2e-3])
    ('highest', None, None)
    """
    if len(tried) < 2 or best not in (min(tried), max(tried)):
        return None
    return "lowest" if best == min(tried) else "highest"


def tried_sides(study: StudyRecord) -> list[TriedSide]:
    """Return the sides on which a study tried rates in order to choose among them; none where it did not."""
    rows = [row for row in study.learning_rates if study.rates_tried and (row.kind == "cold" or row.recipe)]
    sides = []
    for recipe in dict.fromkeys(row.recipe for row in rows):
        own = [row for row in rows if row.recipe == recipe]
        done = [(row.learning_rate, row.point) for row in own if row.point is not None]
        sides.append(
            TriedSide(
                recipe=recipe,
                rung=own[0].rung,
                finished={rate: point.bits_per_byte for rate, point in done if isinstance(point, FinishedRun)},
                failed=tuple(rate for rate, point in done if not isinstance(point, FinishedRun)),
                pending=len(own) - len(done),
            )
        )
    return sides
