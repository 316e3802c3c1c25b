"""The report of a run: a page to look at, the same in Markdown, and the figures as PNG."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_progressive.report import canvas
from hf_progressive.report.findings import Findings, find
from hf_progressive.report.glossary import DEFINITIONS
from hf_progressive.report.plot_costs import draw_costs
from hf_progressive.report.plot_curves import draw_curves
from hf_progressive.report.plot_overview import draw_overview
from hf_progressive.report.plot_penalty import draw_penalty, penalized
from hf_progressive.report.quantities import NOTHING, duration
from hf_progressive.report.reading import read_run
from hf_progressive.report.records import Run, Rung
from hf_progressive.report.table import Table, escape_markdown, flop_unit, rung_table, table_notes, totals_table
from hf_progressive.report.totals import FamilyTotals, family_totals
from hf_progressive.storage import atomic_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OVERVIEW = "overview"
"""Name of the figure that stands for the whole run, in a README for example."""

_SHOWN_SEGMENT = 0.09  # a name fits into so large a share of the widest bar


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
class _Segment:
    """A rung's part of a bar."""

    name: str
    share: float  # of the widest bar
    kind: str  # what the page's style sheet calls it
    fits: bool


@dataclass(frozen=True, kw_only=True)
class _Plot:
    """A figure and what is written around it."""

    name: str
    title: str
    caption: str
    svg: str | None  # None for the overview, which the page's first screen replaces


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
    plots, paths = [], []
    for name, title, caption, figure in _figures(run, findings):
        path = folder / "plots" / f"{name}.png"
        canvas.settle(figure)
        canvas.write_png(figure, path)
        paths.append(path)
        svg = None if name == OVERVIEW else canvas.svg(figure, name)
        plots.append(_Plot(name=name, title=title, caption=caption, svg=svg))
    context = _context(run, findings, plots)
    markdown, html = folder / "report.md", folder / "report.html"
    for path in (markdown, html):
        text = _render(f"{path.name}.j2", context)
        with atomic_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return ReportPaths(html=html, markdown=markdown, plots=tuple(paths))


def _figures(run: Run, findings: Findings) -> list[tuple[str, str, str, "Figure"]]:
    # Draw what the records allow; each figure with its name, title and caption.
    figures = []
    if any(rung.grown for rung in run.rungs):
        caption = f"{run.name}: {run.family}, {len(run.rungs)} rungs on {run.rungs[0].data.source}, one seed"
        figures.append((OVERVIEW, findings.headline, caption, draw_overview(run.rungs, findings.headline, caption)))
    if run.rungs:
        figures.append(
            (
                "curves",
                "Where each model matched its cold twin",
                "Validation bits per byte over FLOPs, Fisher and subspace included. The dashed line is where the cold "
                "twin ended; the ring is where the grown model came down to it. Early cold training lies above the "
                "panels.",
                draw_curves(run.rungs),
            )
        )
        figures.append(
            (
                "costs",
                "What each rung cost, and the family",
                "A saving on the family is not a cheaper last model: compare the last two bars on the right.",
                draw_costs(run.rungs),
            )
        )
    if with_penalty := penalized(run.rungs):
        figures.append(
            (
                "penalty",
                "The inheritance penalty Φ while it trained",
                "Above, the two weighted terms that Φ adds to the loss; below, their weights.",
                draw_penalty(with_penalty),
            )
        )
    return figures


def _context(run: Run, findings: Findings, plots: Sequence[_Plot]) -> dict[str, Any]:
    totals = family_totals(run.rungs) if run.rungs else None
    unit = flop_unit(run.rungs)
    return {
        "run": run,
        "findings": findings,
        "plots": plots,
        "rungs": rung_table(run.rungs) if run.rungs else None,
        "notes": table_notes(run.rungs) if run.rungs else [],
        "totals": totals_table(totals, unit) if totals else None,
        "bars": _bars(run.rungs, totals) if totals else [],
        "planned": bool(totals and totals.planned_cold),
        "definitions": DEFINITIONS,
        "settings": _settings(run),
        "seconds": _seconds_table(run.rungs),
    }


def _bars(rungs: Sequence[Rung], totals: FamilyTotals) -> list[list[_Segment]]:
    """Return a bar for each row of the totals' table; an empty one where the total is not known."""
    cold = [(rung, rung.cold_flops, "planned" if rung.cold_is_planned else "cold") for rung in rungs]
    own = ["inherited" if rung.grown else "cold" for rung in rungs]
    trained = [(rung, rung.flops, kind) for rung, kind in zip(rungs, own, strict=True)]
    to_match = [
        (rung, (rung.flops_to_match or 0) if rung.grown else rung.flops, kind)
        for rung, kind in zip(rungs, own, strict=True)
    ]
    widest = max(totals.all_cold, totals.inherited_as_trained)
    return [
        [
            _Segment(name=rung.name, share=flops / widest, kind=kind, fits=flops / widest >= _SHOWN_SEGMENT)
            for rung, flops, kind in parts
        ]
        for parts in (cold, trained, to_match if totals.inherited_to_match is not None else [], cold[-1:])
    ]


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
        ("warmdown_fraction", "share of steps in the warm-down"),
    )
    settings |= {title: f"{training[key]:g}" for key, title in names if isinstance(training.get(key), int | float)}
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


def _render(template: str, context: Mapping[str, Any]) -> str:
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
