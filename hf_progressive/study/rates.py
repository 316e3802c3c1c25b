"""Peak learning rates tried on baselines and trunks, and the best of each side."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hf_progressive.config import LadderConfig, RecipeConfig, StudyConfig
from hf_progressive.records.tried_rates import end_of_range, means_and_failed
from hf_progressive.study.models import FinishedModel
from hf_progressive.training.muon import muon_peak

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TriedRate:
    """One rate on one side and one seed."""

    recipe: str | None
    """The recipe; None for the baseline."""

    learning_rate: float
    """The peak."""

    seed: int
    """The seed."""

    models: list[FinishedModel]
    """Every length, the longest last: that one tells which rate is best, and the others follow at the best alone."""

    @property
    def deciding(self) -> FinishedModel:
        """What tells how good the rate is."""
        return self.models[-1]


def at_rate(ladder: LadderConfig, learning_rate: float | None) -> LadderConfig:
    """Return a ladder with another peak learning rate, Muon's in proportion; None leaves it as it is."""
    if learning_rate is None:
        return ladder
    training = ladder.training
    of_muon = None if training.muon_learning_rate is None else muon_peak(training, learning_rate)
    changed = dataclasses.replace(training, learning_rate=learning_rate, muon_learning_rate=of_muon)
    return dataclasses.replace(ladder, training=changed)


def _at_rate(config: StudyConfig, recipe: RecipeConfig, learning_rate: float) -> RecipeConfig:
    changes = {"training.learning_rate": learning_rate}
    of_muon = at_rate(config.ladder_of(recipe), learning_rate).training.muon_learning_rate
    if of_muon is not None:
        changes["training.muon_learning_rate"] = of_muon
    return dataclasses.replace(recipe, set={**recipe.set, **changes})


def with_best_rates(
    config: StudyConfig, tried: Sequence[TriedRate], result: Callable[[str], dict[str, Any] | None]
) -> StudyConfig:
    """Return a study in which baselines and every recipe have the best of the rates that were tried.

    The best of a side has the lowest mean over the seeds on which it was tried. A recipe that none was tried on takes
    the first tried one's best. `result` gives a task's result by its name.

    Raises:
        ValueError: On some side training failed at every rate, on one seed or more.
    """
    best: dict[str | None, float] = {}
    for side in dict.fromkeys(rate.recipe for rate in tried):
        by_rate: dict[float, list[float | None]] = {}
        for rate in (rate for rate in tried if rate.recipe == side):
            given = result(rate.deciding.name) or {}
            by_rate.setdefault(rate.learning_rate, []).append(given.get("bits_per_byte"))
        found, failed = means_and_failed(by_rate)
        name = "the baseline" if side is None else f"recipe {side!r}"
        if not found:
            raise ValueError(f"learning_rates.rates: training failed at every rate of {name}; try lower ones")
        best[side] = min(found, key=lambda rate: found[rate])
        at_end = end_of_range(best[side], [*found, *failed]) is not None
        note = ", which is the end of what was tried: widen learning_rates.rates" * at_end
        note += f"; training failed at {_listed(failed)}" if failed else ""
        count = len(next(iter(by_rate.values())))
        over = f" in the mean over {count} seeds" if count > 1 else ""
        logger.info("%s: of the rates %s the best is %g%s%s", name, _listed(found), best[side], over, note)
    first = next((side for side in best if side is not None), None)
    recipes = tuple(_at_rate(config, recipe, best.get(recipe.name, best[first])) for recipe in config.recipes)
    return dataclasses.replace(config, ladder=at_rate(config.ladder, best[None]), recipes=recipes)


def _listed(rates: Sequence[float] | dict[float, float]) -> str:
    return ", ".join(f"{rate:g}" for rate in rates)
