"""What a ladder's steps work on: the run, which they share, and the work on one rung."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import PartialState

from hf_progressive import storage
from hf_progressive.config import GrowthConfig, LadderConfig, PhiConfig, TrainingConfig
from hf_progressive.data import Corpus
from hf_progressive.distributed.processes import main_process_first
from hf_progressive.ladder.live_record import LiveRecord
from hf_progressive.ladder.run_folder import write_ladder_record
from hf_progressive.penalty import InheritancePenalty
from hf_progressive.planning.ladder_plan import LadderPlan, RungPlan
from hf_progressive.records.family import FamilyCost
from hf_progressive.records.from_parent import Estimates, GrowthRecord
from hf_progressive.records.ladder import LadderRecord
from hf_progressive.records.measurements import CoreScore
from hf_progressive.records.origin import Origin
from hf_progressive.records.rung import RungRecord
from hf_progressive.training.training_run import TrainingResult

AVERAGED_NAME = "averaged"
"""Folder of the trunk's weights that a member by average is made of, until it is finished."""


@dataclass(frozen=True, kw_only=True)
class LadderRun:
    """A run under way."""

    config: LadderConfig
    plan: LadderPlan
    folder: Path
    corpus: Corpus
    state: PartialState

    on_record: Callable[[Path], object] | None
    """Called on the first process with the run folder whenever a record was written."""

    def final(self, name: str) -> Path:
        return self.folder / name / "final"

    def record(self, name: str) -> RungRecord:
        return RungRecord.read(self.final(name) / "rung.json")

    def on_first_process(self, do: Callable[[], object]) -> None:
        """Let the first process do something for which the others wait."""
        with main_process_first(self.state):
            if self.state.is_main_process:
                do()

    def finish(self, name: str, *, source: Path, record: Callable[[], RungRecord]) -> None:
        """Make a rung's final folder of a folder's files, linked and not copied, and a record, and tell of it."""
        self.on_first_process(lambda: self._finish(name, source, record()))

    def _finish(self, name: str, source: Path, record: RungRecord) -> None:
        files = storage.read_json(source / storage.MANIFEST_NAME)["files"]
        hashes = {file: entry["sha256"] for file, entry in files.items() if file != "rung.json"}
        with storage.atomic_folder(self.final(name), overwrite=True, sha256=hashes) as temporary:
            shutil.copytree(source, temporary, copy_function=storage.link_or_copy, dirs_exist_ok=True)
            (temporary / storage.MANIFEST_NAME).unlink()
            storage.write_json(temporary / "rung.json", record.to_dict())
        self.drop_trained(name)
        self.tell()

    def tell(self) -> None:
        """Write which rungs are finished and what they cost, and let a report be written of them."""
        write_ladder_record(self.folder, self.config, self._finished, self.state)
        if self.on_record is not None:
            self.on_record(self.folder)

    def catch_up(self) -> None:
        """Tell of a finished ladder if a kill came between the last record of a rung and the ladder's."""
        told, totals = LadderRecord.read(self.folder / "ladder.json"), FamilyCost(rungs=tuple(self._finished)).totals()
        if not told.complete or told.totals != totals:
            self.tell()

    @property
    def _finished(self) -> list[RungRecord]:
        names = [rung.name for rung in self.plan.rungs if storage.is_complete(self.final(rung.name))]
        return [self.record(name) for name in names]

    def drop_trained(self, name: str) -> None:
        """Remove what the final folder holds too, or was made of; a kill may have come between the two."""
        for folder in ("trained", AVERAGED_NAME):
            if (self.folder / name / folder).is_dir():
                storage.remove_folder(self.folder / name / folder)


@dataclass(kw_only=True)
class RungWork:
    """The work on one rung, or on its baseline: what it is, and what its steps have made so far."""

    run: LadderRun
    rung: RungPlan
    is_baseline: bool = False

    live: LiveRecord | None
    """What tells others how far the ladder has come; None on all processes but the first."""

    origin: Origin | None = None
    """The model trained elsewhere that the rung is, with its weights."""

    growth: GrowthRecord | None = None
    """The record of the rung's growth."""

    penalty: InheritancePenalty | None = None
    """Φ, until it has been trained with."""

    result: TrainingResult | None = None
    """What training measured."""

    measured: Mapping[str, float] = field(default_factory=dict)
    """Loss and bits per byte of a model trained elsewhere, or of an average."""

    estimates: Estimates = field(default_factory=Estimates)
    """What was estimated for the next rung's Φ: how, and the FLOPs spent."""

    core: CoreScore | None = None
    """The result on CORE."""

    seconds: dict[str, float] = field(default_factory=dict)
    """Wall-clock seconds by the key in the rung's record."""

    @property
    def folder(self) -> Path:
        folder = self.run.folder / self.rung.name
        return folder / "cold" if self.is_baseline else folder

    @property
    def init(self) -> Path:
        """The initial checkpoint."""
        return self.folder / "init"

    @property
    def trained(self) -> Path:
        """The trained checkpoint; a rung's moves into its final folder when it is recorded."""
        return self.folder / ("final" if self.is_baseline else "trained")

    @property
    def stable(self) -> Path:
        """The weights from before the decay, of a trunk those that it goes on from."""
        return self.folder / "stable"

    @property
    def averaged(self) -> dict[int, Path]:
        """Folders of the weights that a member by average is made of, by the steps after which they are taken."""
        trunk = self.rung.trunk
        if trunk is None or self.is_baseline:
            return {}
        folders = {step: self.folder / AVERAGED_NAME / f"step-{step}" for step in trunk.averaged_steps}
        return {step: self.stable if step == trunk.steps else folder for step, folder in folders.items()}

    @property
    def training(self) -> TrainingConfig:
        return self.run.config.training_of(self.rung.name)

    @property
    def growth_config(self) -> GrowthConfig:
        return self.run.config.growth_of(self.rung.name)

    @property
    def phi(self) -> PhiConfig:
        return self.run.config.phi_of(self.rung.name)

    @property
    def parent(self) -> Path | None:
        """The checkpoint that the model grows from; None for one from scratch."""
        if self.rung.parent is None or self.is_baseline:
            return None
        return self.run.folder / self.rung.parent / self.run.plan.rungs[self.rung.index - 1].hands_on

    @property
    def parent_record(self) -> RungRecord | None:
        return None if self.rung.parent is None else self.run.record(self.rung.parent)
