"""What a page says of a run that is not finished: where it is, how long it will take, how to go on."""

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from hf_progressive.records.ladder import Run
from hf_progressive.records.measurements import CurvePoint
from hf_progressive.records.run_progress import PlannedTraining, ProgressRecord
from hf_progressive.report.figures.live_curve import Chart, Line
from hf_progressive.report.findings import Tile
from hf_progressive.report.formatting import NOTHING, count, decimals, duration, percent
from hf_progressive.report.table import Table


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """A training run on the bar that stands for the whole ladder."""

    name: str
    state: Literal["done", "now", "next"]
    words: str
    share: float
    """Of it, what is done."""

    weight: float
    """Its share of all FLOPs."""


@dataclass(frozen=True, kw_only=True)
class RunState:
    """The head of the page of a run that is under way, or was stopped."""

    kind: Literal["running", "silent", "stopped"]
    headline: str
    sentence: str
    title: str
    """What stands in the browser's tab before the ladder's name."""

    time: float
    """When the record was written, in seconds since 1970."""

    due: float | None
    """Seconds after which a page that is not served says that no record came; None where that is known otherwise."""

    remedy: str
    """The command that goes on."""

    tiles: tuple[Tile, ...]
    stretches: tuple[Stretch, ...]
    curve: Table | None

    @property
    def moment(self) -> datetime:
        """`time`, for people and machines."""
        return datetime.fromtimestamp(self.time, UTC)


def run_state(run: Run, progress: ProgressRecord, folder: Path, *, served: bool = False) -> RunState:
    """Put what a run's progress record says into words."""
    kind = progress.state(time.time())
    place = progress.current
    training = None if place is None else progress.trainings[place]
    return RunState(
        kind=kind,
        headline=_headline(kind, training, place, len(progress.trainings)),
        sentence=_sentence(progress, training),
        title=f"{percent(progress.share)}{'' if kind == 'running' else f', {kind}'}",
        time=progress.time,
        due=None if served or kind != "running" else progress.silence,
        remedy=continuing(folder, progress.processes),
        tiles=_tiles(run, progress, kind),
        stretches=tuple(_stretches(progress)),
        curve=curve_table(progress),
    )


def continuing(folder: Path, processes: int) -> str:
    """Return the command that goes on with a run."""
    command = ["hf-progressive"]
    if processes > 1:
        command = ["accelerate", "launch", "--num_processes", str(processes), "-m", "hf_progressive"]
    return shlex.join([*command, "ladder", str(folder / "ladder.yaml"), "--output-dir", str(folder)])


def _titled(training: PlannedTraining) -> str:
    return f"the baseline of {training.name}" if training.is_baseline else training.name


def _headline(kind: str, training: PlannedTraining | None, place: int | None, number: int) -> str:
    if training is None or place is None:
        return "All models are trained; the rest is being written."
    verb = {"running": "Training", "silent": "No word from", "stopped": "Stopped in"}[kind]
    return f"{verb} {_titled(training)}, {place + 1} of {number}"


def _sentence(progress: ProgressRecord, training: PlannedTraining | None) -> str:
    if training is None:
        return ""
    how = f"Grown from {training.parent}" if training.parent else "From scratch"
    if progress.training is None or progress.activity != "train":
        return f"{how}. Under way: {progress.activity}."
    return f"{how}. Step {progress.training.step:,} of {progress.training.steps:,}."


def _tiles(run: Run, progress: ProgressRecord, kind: str) -> tuple[Tile, ...]:
    left, training, place = progress.seconds_left, progress.training, progress.current
    bits, note = NOTHING, "no validation yet"
    if training is not None and training.curve:
        bits, note = decimals(training.curve[-1].bits_per_byte, 4), f"validation at step {training.curve[-1].step:,}"
        parent = None if place is None else progress.trainings[place].parent
        ended = {rung.name: rung.bits_per_byte for rung in run.rungs}
        if parent in ended:
            note += f"; {parent} ended at {decimals(ended[parent], 4)}"
    speed = training.tokens_per_second if training else None
    mfu = f"MFU {percent(training.mfu)}" if training and training.mfu is not None else "MFU is not known here"
    return (
        Tile(title="of the whole ladder", value=percent(progress.share), note="by training FLOPs"),
        Tile(
            title="time left for the whole",
            value=NOTHING if left is None else duration(left),
            note="once it goes on, at the pace so far" if kind != "running" else "at the pace so far",
        ),
        Tile(title="bits per byte", value=bits, note=note),
        Tile(title="tokens per second", value=NOTHING if speed is None else count(speed), note=mfu),
    )


def _stretches(progress: ProgressRecord) -> list[Stretch]:
    whole = sum(training.flops for training in progress.trainings) or 1.0
    found = []
    for place, training in enumerate(progress.trainings):
        now = place == progress.current
        share = 1.0 if training.done else progress.current_share if now else 0.0
        found.append(
            Stretch(
                name=f"{training.name}, baseline" if training.is_baseline else training.name,
                state="done" if training.done else "now" if now else "next",
                words="done" if training.done else percent(share) if now else "to come",
                share=share,
                weight=training.flops / whole,
            )
        )
    return found


def live_charts(run: Run, progress: ProgressRecord) -> tuple[Chart, ...]:
    """Return what grows while a model trains: its validations, beside what they are compared with, and its loss."""
    now, place = progress.training, progress.current
    if now is None or place is None or not now.steps:
        return ()
    training, right = progress.trainings[place], float(now.steps)
    kind = "grown" if training.parent else "cold"
    lines = [Line(title=_titled(training), points=_validations(now.curve), kind=kind)]
    for rung in run.rungs:
        if training.is_baseline and rung.name == training.name:
            lines.insert(0, Line(title=f"{rung.name}, grown", points=_validations(rung.curve), kind="grown"))
        elif rung.name == training.parent:
            level = ((0.0, rung.bits_per_byte), (right, rung.bits_per_byte))
            lines.insert(0, Line(title=f"where {rung.name} ended", points=level, kind="before"))
    losses = tuple((float(log.step), log.loss) for log in now.losses if log.loss is not None)
    own = Line(title=_titled(training), points=losses, kind=kind)
    charts = (
        Chart(
            name="validation", title="Validation bits per byte", up="bits per byte", right=right, lines=tuple(lines)
        ),
        Chart(name="loss", title="Training loss, nats per token", up="nats per token", right=right, lines=(own,)),
    )
    return tuple(chart for chart in charts if any(line.points for line in chart.lines))


def _validations(curve: Sequence[CurvePoint]) -> tuple[tuple[float, float], ...]:
    return tuple((float(point.step), point.bits_per_byte) for point in curve if point.step is not None)


def curve_table(progress: ProgressRecord) -> Table | None:
    """Lay out the validations of the training run under way; None before the first."""
    if progress.training is None or not progress.training.curve:
        return None
    rows = tuple(
        (f"{point.step or 0:,}", count(point.tokens or 0), decimals(point.loss, 4), decimals(point.bits_per_byte, 4))
        for point in progress.training.curve
    )
    return Table(header=("step", "tokens", "validation loss", "bits per byte"), rows=rows)
