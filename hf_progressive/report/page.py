"""A report as a page to look at, the same in Markdown, and its figures as PNG: one form for ladders and studies."""

import base64
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_progressive.config.model import RUNG_SECTIONS
from hf_progressive.report.figures import style
from hf_progressive.report.figures.live_curve import Chart
from hf_progressive.report.findings import Findings
from hf_progressive.report.run_state import RunState
from hf_progressive.report.table import Table, escape_markdown
from hf_progressive.storage import atomic_file, visible

if TYPE_CHECKING:
    from jinja2 import Environment
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

    draw: Callable[[], "Figure"]
    """Draws it, which takes a second or so."""


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

    state: RunState | None = None
    """What is under way; None of what is finished, or says nothing of it."""

    charts: tuple[Chart, ...] = ()
    """What of it grows."""


def write_page(page: Page, folder: Path, stem: str) -> tuple[ReportPaths, dict[str, str]]:
    """Write `stem.html`, `stem.md` and `plots/*.png`, each whole; return where, and the figures as SVG by name."""
    figures = _figures([*filter(None, [page.overview]), *_plots(page)])
    paths = {name: folder / "plots" / f"{name}.png" for name in figures}
    for name, path in paths.items():
        style.write_png(figures[name], path)
    svg = {plot.name: style.svg(figures[plot.name], plot.name) for plot in _plots(page)}
    html, markdown = folder / f"{stem}.html", folder / f"{stem}.md"
    write_text(_render("report.md.j2", page), markdown)
    write_text(page_text(page, svg), html)
    return ReportPaths(html=html, markdown=markdown, plots=tuple(paths.values())), svg


def draw_figures(page: Page) -> dict[str, str]:
    """Return a page's figures as SVG by their names."""
    return {name: style.svg(figure, name) for name, figure in _figures(_plots(page)).items()}


def _plots(page: Page) -> list[Plot]:
    return [section.plot for section in page.sections if section.plot is not None]


def _figures(plots: Sequence[Plot]) -> "dict[str, Figure]":
    figures = {plot.name: plot.draw() for plot in plots}
    for figure in figures.values():
        style.settle(figure)
    return figures


def write_text(text: str, path: Path) -> None:
    """Write a file whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def page_text(page: Page, svg: Mapping[str, str], *, refresh: int | None = None) -> str:
    """Return a page as HTML, with those figures that are there, to be looked for anew after `refresh` seconds."""
    script = _script() if refresh is not None else ""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() if script else ""
    return _render("report.html.j2", page, svg=svg, refresh=refresh, script=script, digest=digest)


@cache
def _script() -> str:
    # Its digest stands in the page's policy, which lets a browser run this and nothing else.
    return resources.files("hf_progressive").joinpath("templates", "live.js").read_text(encoding="utf-8")


def otherwise(rungs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Say what rungs set for themselves, which the ladder's keys do not say.

    >>> otherwise([{"name": "a"}, {"name": "b", "n_layer": 2, "training": {"learning_rate": 0.003}}])
    {'b otherwise': 'training.learning_rate 0.003'}
    """
    return {
        f"{rung['name']} otherwise": ", ".join(
            f"{section}.{key} {value}" for section in RUNG_SECTIONS for key, value in rung.get(section, {}).items()
        )
        for rung in rungs
        if any(rung.get(section) for section in RUNG_SECTIONS)
    }


def settings_table(settings: Mapping[str, str]) -> Table:
    """Lay out what a run was configured with."""
    return Table(header=("setting", "value"), rows=tuple(settings.items()), numbers=False)


def _render(template: str, page: Page, **values: Any) -> str:
    return visible(_environment().get_template(template).render(page=page, findings=page.findings, **values))


@cache
def _environment() -> "Environment":
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
    environment.filters["slug"] = _slug
    return environment


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _keep_units(text: str) -> str:
    # A number and its unit stay on one line.
    return re.sub(r"(?<=\d) (?=[kMGTPEZY]?FLOP|%|×)", "\N{NO-BREAK SPACE}", text)
