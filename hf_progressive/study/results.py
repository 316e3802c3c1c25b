"""Results on the disk, read as points by recipe, rung and seed."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hf_progressive.config import RecipeConfig
from hf_progressive.records.interval import mean_interval
from hf_progressive.records.study import FailedRun, FinishedRun
from hf_progressive.study.models import FinishedModel
from hf_progressive.study.plan import StudyPlan
from hf_progressive.study.points import Point


@dataclass(frozen=True, kw_only=True)
class StudyResults:
    """What a study has measured so far."""

    plan: StudyPlan
    """The study."""

    result: Callable[[str], dict[str, Any] | None]
    """Gives a task's result by its name; None where it is not finished."""

    def point(self, model: FinishedModel) -> Point | None:
        """Return a finished model as a point; None where it is not finished, or failed."""
        result = self.result(model.name)
        if result is None or "failed" in result:
            return None
        flops = result["flops"]["train"] + result["flops"]["estimates"]
        return Point(fraction=model.fraction, flops=flops, bits_per_byte=result["bits_per_byte"])

    def points(self, models: Sequence[FinishedModel]) -> list[Point] | None:
        """Return the models of one child or baseline as points; None unless all are finished."""
        found = [self.point(model) for model in models]
        complete = [point for point in found if point is not None]
        return complete if len(complete) == len(found) else None

    def lineage_flops(self, model: FinishedModel) -> float:
        """Return the FLOPs that went into a finished model, training and estimates: its own and its ancestors'."""
        points = self.points([*model.initial.lineage, model])
        assert points is not None, "its lineage is finished"
        return sum(point.flops for point in points)

    def record(self, model: FinishedModel) -> FinishedRun | FailedRun | None:
        """Return a model for study.json: what was measured, without the curve; None where it is not finished."""
        result = self.result(model.name)
        if result is None:
            return None
        if "failed" in result:
            return FailedRun(fraction=model.fraction, task=model.name, failed=result["failed"])
        names = ("tokens", "bits_per_byte", "loss", "learning_rate", "branched_at", "seconds")
        return FinishedRun(
            fraction=model.fraction,
            task=model.name,
            steps=model.steps,
            flops=result["flops"]["train"] + result["flops"]["estimates"],
            estimates_flops=result["flops"]["estimates"],
            epochs=(result["data"]["first_epoch"], result["data"]["last_epoch"]),
            repeats_from_token=result["data"]["repeats_from_token"],
            **{name: result[name] for name in names},
        )


def complete_seeds(
    results: StudyResults, recipe: RecipeConfig, rung: str
) -> Iterator[tuple[int, list[Point], list[Point], FinishedModel]]:
    """Yield seed, children, baselines and the children's parent, where these and their ancestors are finished."""
    for seed in results.plan.config.seeds:
        models = results.plan.children.get((recipe.name, rung, seed))
        child = results.points(models) if models else None
        cold = results.points(results.plan.cold[rung, seed])
        if not models or child is None or cold is None or results.points(models[0].initial.lineage) is None:
            continue
        parent = models[0].initial.parent
        assert parent is not None
        yield seed, child, cold, parent


def named(
    name: str, values: Sequence[float] | None, *, at_least: bool = False, at_most: bool = False
) -> dict[str, Any]:
    """Return a mean with the ends of its interval as a record's fields; of bounds, an interval has one end only."""
    interval = None if values is None else mean_interval(values)
    return {
        name: None if interval is None else interval.mean,
        f"{name}_low": None if interval is None or at_most else interval.low,
        f"{name}_high": None if interval is None or at_least else interval.high,
    }


def with_ends(name: str, values: Sequence[float]) -> dict[str, Any]:
    """Return a mean and the ends of its interval as a record's fields."""
    interval = mean_interval(values)
    return {name: interval.mean, "low": interval.low, "high": interval.high}
