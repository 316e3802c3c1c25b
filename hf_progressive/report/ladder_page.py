"""The report of a run: a page to look at, the same in Markdown, and the figures as PNG."""

import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from hf_progressive.records.from_parent import PenaltyRecord
from hf_progressive.records.ladder import Run, read_run
from hf_progressive.records.run_progress import ProgressRecord, read_progress
from hf_progressive.records.rung import RungRecord
from hf_progressive.report.figures.costs import draw_costs
from hf_progressive.report.figures.curves import draw_curves
from hf_progressive.report.figures.overview import draw_overview
from hf_progressive.report.figures.penalty import draw_penalty, penalized
from hf_progressive.report.formatting import NOTHING, counted, duration
from hf_progressive.report.glossary import OF_LADDERS
from hf_progressive.report.ladder_findings import find_in_run
from hf_progressive.report.ladder_tables import core_table, rung_table, table_notes, totals_table
from hf_progressive.report.page import (
    Page,
    Plot,
    ReportPaths,
    Section,
    otherwise,
    page_text,
    settings_table,
    write_page,
    write_text,
)
from hf_progressive.report.run_state import live_charts, run_state
from hf_progressive.report.speed_tables import PLAN_NAME, priced_table, read_prices, speed_table
from hf_progressive.report.table import Table

_SECONDS_OF_A_FILE = 10
"""After which a page that lies on a disk is loaded again."""

_ON_MATCHES = (
    "The dashed line is where the baseline ended, the ring where the grown model came down to it. FLOPs include "
    "Fisher and subspace.",
)


class LivePage:
    """The page of a run folder, again and again while its ladder trains.

    Figures take a second or so each, so they are drawn when that is asked for, and shown as they were in between.
    """

    def __init__(self, run_dir: str | os.PathLike[str]) -> None:
        self._folder = Path(run_dir)
        self._svg: dict[str, str] = {}

    def write_all(self) -> ReportPaths:
        """Draw the figures, and write the page, the same in Markdown, and the figures as PNG."""
        page = self._page()
        paths, self._svg = write_page(page, self._folder, "report")
        if page.state is not None:
            self.write()
        return paths

    def write(self) -> None:
        """Write the page alone."""
        write_text(page_text(self._page(), self._svg, refresh=_SECONDS_OF_A_FILE), self._folder / "report.html")

    def _page(self) -> Page:
        progress = read_progress(self._folder)
        return ladder_report(read_run(self._folder), progress, self._folder)


def ladder_report(run: Run, progress: ProgressRecord | None, folder: Path, *, served: bool = False) -> Page:
    """Put on a page what of a run is finished, what is under way, and the plan that may lie in its folder.

    A `served` page is made anew whenever it is looked at, so that it knows by itself if the run lives.
    """
    findings, ladder, rungs = find_in_run(run), run.ladder, run.rungs
    answer = overview = None
    if any(rung.grown for rung in rungs):
        answer = Section(title="What the family costs, and its last member", table=totals_table(rungs))
        caption = f"{ladder.name}: {ladder.family}, {len(rungs)} rungs on {rungs[0].data.source}, one seed"
        overview = Plot(name="overview", draw=partial(draw_overview, rungs, findings.headline, caption))
    return Page(
        name=ladder.name,
        facts=(ladder.family, counted(len(ladder.rungs), "rung"), f"seed {ladder.seed}"),
        findings=findings,
        answer=answer,
        sections=(
            *_results(rungs),
            Section(title="How it was measured", terms=OF_LADDERS),
            Section(title="Settings", table=settings_table(_settings(run))),
            *_times(run, folder / PLAN_NAME),
        ),
        overview=overview,
        state=None if progress is None else run_state(run, progress, folder, served=served),
        charts=() if progress is None else live_charts(run, progress),
    )


def _results(rungs: Sequence[RungRecord]) -> Iterator[Section]:
    # Whatever the records allow to show.
    grown = any(rung.grown for rung in rungs)
    if grown:
        yield Section(
            title="What each rung cost, and the family",
            plot=Plot(name="costs", draw=partial(draw_costs, rungs)),
            notes=(
                "A saving on the family is not a cheaper last model: what that costs is the last bar on the right.",
            ),
        )
    if rungs:
        yield Section(
            title="Where each model matched its baseline" if grown else "How the first model learned",
            plot=Plot(name="curves", draw=partial(draw_curves, rungs)),
            notes=("Early training from scratch lies above the panels.", *(_ON_MATCHES if grown else ())),
        )
        yield Section(title="Every rung", table=rung_table(rungs), notes=tuple(table_notes(rungs)))
    if (core := core_table(rungs)) is not None:
        yield Section(title=f"In-context learning: {core.rows[0][0]}", table=core)
    if with_penalty := penalized(rungs):
        yield Section(
            title="The inheritance penalty Φ while it trained",
            plot=Plot(name="penalty", draw=partial(draw_penalty, with_penalty)),
            notes=("Above, the two weighted terms that Φ adds to the loss; below, their weights.",),
        )


def _settings(run: Run) -> dict[str, str]:
    settings = {"family": run.ladder.family, "seed": str(run.ladder.seed)}
    if run.rungs:
        settings["corpus"] = run.rungs[0].data.source
    training = run.ladder.config.get("training", {})
    names = (
        ("tokens_per_parameter", "tokens per parameter, cold"),
        ("inherited_fraction", "share of it for grown rungs"),
        ("learning_rate", "peak learning rate"),
        ("muon_learning_rate", "Muon's peak learning rate"),
        ("inherited_learning_rate", "peak learning rate of grown rungs"),
        ("batch_tokens", "tokens per step"),
        ("decay_fraction", "share of steps in the decay"),
    )
    for key, title in names:
        value = training.get(key)
        if isinstance(value, int | float):
            settings[title] = f"{value:,}" if isinstance(value, int) else f"{value:g}"
    if training.get("optimizer") == "muon":
        settings["optimizer"] = "Muon for matrices inside layers, AdamW for the rest"
    if run.ladder.config.get("schedule") == "trunk":
        settings.pop("share of it for grown rungs", None)
        shares = [
            f"{rung['name']} until {rung['until']:g}"
            for rung in run.ladder.config.get("rungs", ())
            if rung.get("until")
        ]
        settings["schedule"] = f"trunk: {', '.join(shares)} of the last rung's tokens"
    settings["growth"] = str(run.ladder.config.get("growth", {}).get("method", NOTHING))
    settings["penalty Φ"] = next((_penalty(rung.phi) for rung in run.rungs if rung.phi is not None), "none")
    settings |= otherwise(run.ladder.config.get("rungs", ()))
    return settings | {key.replace("_", " "): str(value) for key, value in run.ladder.environment.items()}


def _penalty(phi: PenaltyRecord) -> str:
    ways = [*(["L2-SP"] if phi.fisher_kind == "ones" else []), *filter(None, (phi.apply, phi.subspace_side))]
    return ", ".join(
        [f"λ {phi.ewc_lambda:g}, γ {phi.gamma:g}", *ways, f"{phi.schedule}, until {phi.until:g} of the steps"]
    )


def _times(run: Run, plan: Path) -> Iterator[Section]:
    rungs = run.rungs
    steps = tuple(dict.fromkeys(step for rung in rungs for step in rung.seconds))
    if rungs:
        rows = tuple(
            (rung.name, *(duration(rung.seconds[step]) if rung.seconds.get(step) else NOTHING for step in steps))
            for rung in rungs
        )
        yield Section(title="How long each step took", table=Table(header=("rung", *steps), rows=rows))
    if (speed := speed_table(rungs)) is not None:
        yield Section(title="How fast each rung trained", table=speed)
    if plan.is_file():
        title = "What training was priced at, and what it took"
        try:
            priced = priced_table(rungs, read_prices(plan, run.ladder.name))
        except (ValueError, FileNotFoundError) as error:  # it is being written, or replaced: no training ends for this
            yield Section(title=title, terms={PLAN_NAME: str(error)})
            return
        if priced is not None:
            note = f"The price is {PLAN_NAME}'s; what training took is at the measured speed."
            yield Section(title=title, table=priced, notes=(note,))
