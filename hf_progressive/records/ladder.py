"""`ladder.json`, and a run folder as a whole: the ladder with its finished rungs."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hf_progressive.config.renamed import with_current_names
from hf_progressive.records.family import FamilyCost, FamilyTotals
from hf_progressive.records.run_settings import RunSettings
from hf_progressive.records.rung import RungRecord
from hf_progressive.records.typed import FORMAT, Record
from hf_progressive.storage import require_plain_name


@dataclass(frozen=True, kw_only=True)
class LadderRecord(Record):
    """A ladder and how far it has come."""

    format: Literal[1] = FORMAT
    """The layout's version."""

    name: str
    """The ladder's name."""

    family: str
    """The `model_type` of its models."""

    seed: int
    """The one seed of all its rungs."""

    rungs: tuple[str, ...]
    """Names of all rungs, in order."""

    finished: tuple[str, ...] = ()
    """Names of the rungs that are trained."""

    complete: bool = False
    """Whether all are."""

    totals: FamilyTotals | None = None
    """What the finished rungs cost; None before there is one, and in older records."""

    config: dict[str, Any]
    """The ladder's configuration."""

    environment: dict[str, Any] = field(default_factory=dict)
    """Versions and machine."""

    @classmethod
    def _current(cls, content: dict[str, Any]) -> dict[str, Any]:
        current: dict[str, Any] = with_current_names(content)
        return current

    def __post_init__(self) -> None:
        try:
            RunSettings.from_dict(self.config)
        except ValueError as error:
            raise ValueError(f"config.{error}") from None


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run folder's records."""

    ladder: LadderRecord
    """The ladder."""

    rungs: tuple[RungRecord, ...]
    """The finished rungs, in order."""

    @property
    def totals(self) -> FamilyTotals | None:
        """What the finished rungs cost, worked out of their records; None before there is one."""
        return FamilyCost(rungs=self.rungs).totals() if self.rungs else None

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of the planned rungs that are not finished."""
        finished = {rung.name for rung in self.rungs}
        return tuple(name for name in self.ladder.rungs if name not in finished)

    @property
    def pending_baselines(self) -> tuple[str, ...]:
        """Names of finished, grown rungs whose baseline the configuration asks for and no record holds yet."""
        asked = self.ladder.config.get("cold", "none")
        return tuple(
            rung.name
            for rung in self.rungs
            if rung.grown and rung.cold_is_planned and (asked == "all" or rung.name in asked)
        )


def read_run(run_dir: str | os.PathLike[str]) -> Run:
    """Read the records of a run, finished or not.

    Raises:
        FileNotFoundError: The folder has no `ladder.json`.
        ValueError: A record is damaged, of another format, or lacks a value; the message names file and value.
    """
    folder = Path(run_dir)
    path = folder / "ladder.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: holds no ladder.json; give a folder that `hf-progressive ladder` wrote")
    ladder = LadderRecord.read(path)
    for name in ladder.rungs:
        require_plain_name(name, f"{path}: rungs")
    rungs = (_read_rung(file) for file in sorted(folder.glob("*/final/rung.json")))
    return Run(ladder=ladder, rungs=tuple(sorted(rungs, key=lambda rung: rung.index)))


def _read_rung(file: Path) -> RungRecord:
    rung = RungRecord.read(file)
    require_plain_name(rung.name, f"{file}: name")
    return rung
