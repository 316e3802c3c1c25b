"""Results on the disk, read as points by recipe, rung and seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hf_progressive.study.folder import StudyFolder
from hf_progressive.study.points import Point
from hf_progressive.study.tasks import Run


@dataclass(frozen=True, kw_only=True)
class StudyResults:
    """What a study has measured so far."""

    folder: StudyFolder
    """The study's files."""

    def point(self, run: Run) -> Point | None:
        """Return a run as a point.

        Args:
            run: The run.

        Returns:
            The point; None where the run is not finished, or failed.
        """
        result = self.folder.result(run)
        if result is None or "failed" in result:
            return None
        flops = result["flops"]["train"] + result["flops"]["estimates"]
        return Point(fraction=run.fraction, flops=flops, bits_per_byte=result["bits_per_byte"])

    def points(self, runs: Sequence[Run]) -> list[Point] | None:
        """Return runs as points.

        Args:
            runs: The runs of one child or baseline.

        Returns:
            The points; None unless all are finished.
        """
        found = [self.point(run) for run in runs]
        complete = [point for point in found if point is not None]
        return complete if len(complete) == len(found) else None

    def lineage_flops(self, run: Run) -> float:
        """Return everything that went into a finished model: its own FLOPs and its ancestors'.

        Args:
            run: A finished run.

        Returns:
            FLOPs of training and estimates.
        """
        lineage = [*run.start.lineage, run]
        points = [self.point(member) for member in lineage]
        return sum(point.flops for point in points if point is not None)

    def record(self, run: Run) -> dict[str, Any] | None:
        """Return a run for study.json: what was measured, without the curve.

        Args:
            run: The run.

        Returns:
            Plain values; None where the run is not finished.
        """
        result = self.folder.result(run)
        if result is None:
            return None
        if "failed" in result:
            return {"fraction": run.fraction, "task": run.name, "failed": result["failed"]}
        data = result["data"]
        return {
            "fraction": run.fraction,
            "task": run.name,
            "steps": run.steps,
            "tokens": result["tokens"],
            "flops": result["flops"]["train"] + result["flops"]["estimates"],
            "estimates_flops": result["flops"]["estimates"],
            "bits_per_byte": result["bits_per_byte"],
            "loss": result["loss"],
            "learning_rate": result["learning_rate"],
            "branched_at": result["branched_at"],
            "epochs": [data["first_epoch"], data["last_epoch"]],
            "repeats_from_token": data["repeats_from_token"],
            "seconds": result["seconds"],
        }
