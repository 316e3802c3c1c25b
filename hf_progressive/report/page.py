"""The report of a run: a page to look at, the same in Markdown, and the figures as PNG."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_progressive.records.family import count_four_ways
from hf_progressive.records.reading import read_run
from hf_progressive.records.rung import Run, Rung
from hf_progressive.report.figures import style as canvas
from hf_progressive.report.figures.costs import draw_costs
from hf_progressive.report.figures.curves import draw_curves
from hf_progressive.report.figures.overview import draw_overview
from hf_progressive.report.figures.penalty import draw_penalty, penalized
from hf_progressive.report.findings import Findings, find
from hf_progressive.report.formatting import NOTHING, duration
from hf_progressive.report.glossary import DEFINITIONS
from hf_progressive.report.speed import PLAN_NAME, priced_table, read_prices, speed_lines, speed_table
from hf_progressive.report.table import Table, core_table, escape_markdown, rung_table, table_notes, totals_table
from hf_progressive.storage import atomic_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OVERVIEW = "overview"
"""Name of the figure that stands for the whole run, in a README for example."""

_CHARACTER = 0.022  # of the widest bar, an upper bound for the type inside it


@dataclass(frozen=True, kw_only=True)
class ReportPaths:
    """The files of a report."""

    html: Path
    """The page: one file, with nothing in it that is fetched from elsewhere."""

    markdown: Path
    """The same in Markdown, which refers to the figures."""

    plots: tuple[Path, ...]
    """The figures."""


@dataclass(frozen=True, kw_only=True)
class _Plot:
    """A figure and what is written around it."""

    name: str
    title: str
    caption: str
    figure: "Figure"


def write_report(run_dir: str | os.PathLike[str]) -> ReportPaths:
    """Write the report of a run folder, finished or not, from its records.

    Args:
        run_dir: The run folder.

    Returns:
        Where the files are: `report.html`, `report.md` and `plots/*.png` in the run folder. Each is replaced whole.

    Raises:
        FileNotFoundError: The folder has no `ladder.json`.
        ValueError: A record is damaged; the message names file and value.
    """
    folder = Path(run_dir)
    run = read_run(folder)
    findings = find(run)
    plots = list(_plots(run, findings))
    paths = [folder / "plots" / f"{plot.name}.png" for plot in plots]
    for plot, path in zip(plots, paths, strict=True):
        canvas.settle(plot.figure)
        canvas.write_png(plot.figure, path)
    plan = folder / PLAN_NAME
    context = _context(run, findings, plots) | {
        "priced": priced_table(run.rungs, read_prices(plan)) if plan.is_file() else None
    }
    markdown, html = folder / "report.md", folder / "report.html"
    for path in (markdown, html):
        text = render(f"{path.name}.j2", context)
        with atomic_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return ReportPaths(html=html, markdown=markdown, plots=tuple(paths))


def _plots(run: Run, findings: Findings) -> Iterator[_Plot]:
    # Whatever the records allow to draw.
    grown = any(rung.grown for rung in run.rungs)
    if grown:
        caption = f"{run.name}: {run.family}, {len(run.rungs)} rungs on {run.rungs[0].data.source}, one seed"
        figure = draw_overview(run.rungs, findings.headline, caption)
        yield _Plot(name=OVERVIEW, title=findings.headline, caption=caption, figure=figure)
    if run.rungs:
        yield _Plot(
            name="curves",
            title="Where each model matched its baseline" if grown else "How the first model learned",
            caption="Validation bits per byte over FLOPs, Fisher and subspace included. "
            "The dashed line is where the baseline ended; the ring is where the grown model came down to it. "
            "Early cold training lies above the panels.",
            figure=draw_curves(run.rungs),
        )
    if grown:
        yield _Plot(
            name="costs",
            title="What each rung cost, and the family",
            caption="A saving on the family is not a cheaper last model: its price is the last bar on the right.",
            figure=draw_costs(run.rungs),
        )
    if with_penalty := penalized(run.rungs):
        yield _Plot(
            name="penalty",
            title="The inheritance penalty Φ while it trained",
            caption="Above, the two weighted terms that Φ adds to the loss; below, their weights.",
            figure=draw_penalty(with_penalty),
        )


def _context(run: Run, findings: Findings, plots: Sequence[_Plot]) -> dict[str, Any]:
    # The page's first screen says what the overview shows.
    on_page = [plot for plot in plots if plot.name != OVERVIEW]
    return {
        "run": run,
        "findings": findings,
        "overview": next((plot for plot in plots if plot.name == OVERVIEW), None),
        "plots": on_page,
        "svg": {plot.name: canvas.svg(plot.figure, plot.name) for plot in on_page},
        "rungs": rung_table(run.rungs) if run.rungs else None,
        "totals": totals_table(run.rungs) if run.rungs else None,
        "core": core_table(run.rungs),
        "counts": count_four_ways(run.rungs) if run.rungs else (),
        "notes": table_notes(run.rungs) if run.rungs else [],
        "definitions": DEFINITIONS,
        "settings": _settings(run),
        "seconds": _seconds_table(run.rungs),
        "speed": speed_table(run.rungs),
        "speed_lines": speed_lines(run.rungs),
        "character": _CHARACTER,
    }


def _settings(run: Run) -> dict[str, str]:
    """Return what the run was, in a few entries, from its configuration and its machine."""
    settings = {"family": run.family, "seed": str(run.seed)}
    if run.rungs:
        settings["corpus"] = run.rungs[0].data.source
    training = run.config.get("training", {})
    names = (
        ("tokens_per_parameter", "tokens per parameter, cold"),
        ("inherited_fraction", "share of it for grown rungs"),
        ("learning_rate", "peak learning rate"),
        ("inherited_learning_rate", "peak learning rate of grown rungs"),
        ("batch_tokens", "tokens per step"),
        ("decay_fraction", "share of steps in the decay"),
    )
    for key, title in names:
        value = training.get(key)
        if isinstance(value, int | float):
            settings[title] = f"{value:,}" if isinstance(value, int) else f"{value:g}"
    settings["growth"] = str(run.config.get("growth", {}).get("method", NOTHING))
    settings["penalty Φ"] = next((_penalty(rung.phi) for rung in run.rungs if rung.phi is not None), "none")
    return settings | {key.replace("_", " "): str(value) for key, value in run.environment.items()}


def _penalty(phi: Mapping[str, Any]) -> str:
    return (
        f"λ {phi.get('ewc_lambda', 0):g}, γ {phi.get('gamma', 0):g}, {phi.get('schedule', 'constant')}, "
        f"until {phi.get('until', 1):g} of the steps"
    )


def _seconds_table(rungs: Sequence[Rung]) -> Table:
    steps = list(dict.fromkeys(step for rung in rungs for step in rung.seconds))
    return Table(
        groups=(),
        header=("rung", *steps),
        rows=tuple(
            (rung.name, *(duration(rung.seconds[step]) if rung.seconds.get(step) else NOTHING for step in steps))
            for rung in rungs
        ),
    )


def _keep_units(text: str) -> str:
    # A number and its unit stay on one line.
    return re.sub(r"(?<=\d) (?=[kMGTPEZY]?FLOP|%|×)", "\N{NO-BREAK SPACE}", text)


def render(template: str, context: Mapping[str, Any]) -> str:
    """Fill one of the package's templates.

    Args:
        template: Its name; those that end in .html.j2 escape what they are given.
        context: The values.

    Returns:
        The text.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("hf_progressive"),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["markdown"] = escape_markdown
    environment.filters["keep_units"] = _keep_units
    return environment.get_template(template).render(context)
