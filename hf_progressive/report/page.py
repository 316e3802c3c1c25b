"""A report as a page to look at, the same in Markdown, and its figures as PNG: one form for ladders and studies."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hf_progressive.report.figures import style
from hf_progressive.report.findings import Findings
from hf_progressive.report.table import Table, escape_markdown
from hf_progressive.storage import atomic_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
class Plot:
    """A figure."""

    name: str
    """A word that no other figure of the page uses; its file is named by it."""

    figure: "Figure"
    """What was drawn."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a page under a title: a plot, a table, words and their meanings, notes; whatever of them it has."""

    title: str
    plot: Plot | None = None
    table: Table | None = None
    terms: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Page:
    """A report, to be written."""

    name: str
    """What was run."""

    facts: tuple[str, ...]
    """What it was, in a few words each."""

    findings: Findings
    """The answer, which comes first."""

    answer: Section | None
    """What stands beside how sure the answer is."""

    sections: tuple[Section, ...]
    """All else, in order."""

    overview: Plot | None = None
    """A figure for the head of the Markdown; the page's first screen says the same without it."""


def write_page(page: Page, folder: Path, stem: str) -> ReportPaths:
    """Write a report as `stem.html`, `stem.md` and `plots/*.png` in a folder; each is replaced whole."""
    on_page = [section.plot for section in page.sections if section.plot is not None]
    plots = {folder / "plots" / f"{plot.name}.png": plot for plot in (page.overview, *on_page) if plot is not None}
    for path, plot in plots.items():
        style.settle(plot.figure)
        style.write_png(plot.figure, path)
    svg = {plot.name: style.svg(plot.figure, plot.name) for plot in on_page}
    paths = ReportPaths(html=folder / f"{stem}.html", markdown=folder / f"{stem}.md", plots=tuple(plots))
    for template, path in (("report.md.j2", paths.markdown), ("report.html.j2", paths.html)):
        text = _render(template, page, svg)
        with atomic_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return paths


def settings_table(settings: Mapping[str, str]) -> Table:
    """Lay out what a run was configured with."""
    return Table(header=("setting", "value"), rows=tuple(settings.items()), numbers=False)


def _render(template: str, page: Page, svg: Mapping[str, str]) -> str:
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
    return environment.get_template(template).render(page=page, findings=page.findings, svg=svg)


def _keep_units(text: str) -> str:
    # A number and its unit stay on one line.
    return re.sub(r"(?<=\d) (?=[kMGTPEZY]?FLOP|%|×)", "\N{NO-BREAK SPACE}", text)
