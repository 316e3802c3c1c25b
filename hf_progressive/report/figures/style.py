"""How every figure looks, and how it becomes a PNG or an SVG that follows the page's light or dark colours.

Figures are drawn without pyplot, so that no window system and no global state is touched.
"""

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from hf_progressive.report.figures.colours import CSS_NAMES, GRID, INK, MUTED, SURFACE
from hf_progressive.storage import atomic_file

if TYPE_CHECKING:  # matplotlib is imported where it draws
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

WIDTH = 10.0
"""Inches of a figure over the full width of a page."""

DASHED: Any = (0, (4, 3))
"""How a line that only marks a value is drawn."""

_COLUMNS = 3  # of panels
_LEAST_PIXELS = 680  # of a figure over the full width; a narrower window scrolls
_DPI = 200  # twice a plain screen's
_STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so figures are the same everywhere
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.labelsize": 8.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.axisbelow": True,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "text.color": INK,
    "text.parse_math": False,  # a name may hold a dollar sign
    "figure.facecolor": SURFACE,
    "axes.facecolor": SURFACE,
    "savefig.facecolor": SURFACE,
    "svg.hashsalt": "hf_progressive",  # the same records give the same bytes
}


def figure_style() -> Any:
    """Return the context manager in which figures are drawn and saved."""
    import matplotlib as mpl

    return mpl.rc_context(_STYLE)


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure, in inches, that lays out its axes so that nothing overlaps."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def panels(
    count: int, height: float, labels: tuple[str, ...], shares: tuple[int, ...] = (1,)
) -> tuple["Figure", list[list["Axes"]]]:
    """Return a figure with a grid of panels of a height in inches, and the axes of each.

    A panel has an axes for each of the labels, one above the other, which share its height.
    """
    columns = min(_COLUMNS, count)
    rows, parts = math.ceil(count / columns), len(labels)
    figure = new_figure(WIDTH * columns / _COLUMNS + 0.4 * (columns < _COLUMNS), height * rows)
    grid = figure.subplots(parts * rows, columns, squeeze=False, height_ratios=shares * rows)
    found = [list(grid[parts * row : parts * (row + 1), column]) for row in range(rows) for column in range(columns)]
    for index, panel in enumerate(found):
        for axes, label in zip(panel, labels, strict=True):
            axes.set_ylabel(label if index % columns == 0 else "")
            axes.axison = index < count
    return figure, found[:count]


def settle(figure: "Figure") -> None:
    """Lay a finished figure out, once for all formats that it is saved in."""
    with figure_style():
        figure.draw_without_rendering()
        figure.set_layout_engine(None)  # "none" would leave a placeholder that costs a further drawing for each file


def write_png(figure: "Figure", path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    with figure_style(), atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=_DPI, metadata={"Software": None})


def svg(figure: "Figure", name: str) -> str:
    """Return a figure as an SVG element for a page that defines the colours of `CSS_NAMES`.

    Text is drawn as outlines, so it needs no font; nothing in it refers to anything outside. The name, which no other
    figure of the page has, keeps identifiers apart.
    """
    buffer, share = io.BytesIO(), figure.get_figwidth() / WIDTH
    with figure_style():
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    root = ElementTree.fromstring(buffer.getvalue())  # comments and the document type are left behind
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]  # in a page, SVG needs no namespace
        element.attrib = {key.rpartition("}")[2]: _in_page(key, text, name) for key, text in element.items()}
    for key in ("width", "height", "version"):
        del root.attrib[key]
    root.set("style", f"width:{share:.1%};min-width:{share * _LEAST_PIXELS:.0f}px")  # the page scales it
    return ElementTree.tostring(root, encoding="unicode").strip()


def _in_page(key: str, text: str, name: str) -> str:
    if key == "id":
        return f"{name}-{text}"
    if key.endswith("href"):
        return f"#{name}-{text.removeprefix('#')}"
    text = text.replace("url(#", f"url(#{name}-")
    for colour, css in CSS_NAMES.items():
        text = text.replace(colour, f"var(--{css})")
    return text


def halo(text: "Text") -> None:
    """Keep a text legible where a line passes behind it."""
    from matplotlib.patheffects import withStroke

    text.set_path_effects([withStroke(linewidth=2.5, foreground=SURFACE)])


def beside(axes: "Axes", x: float, y: float, text: str, colour: str = MUTED) -> None:
    """Write to the right of a bar's end."""
    axes.annotate(text, (x, y), xytext=(4, 0), textcoords="offset points", va="center", color=colour, fontsize=8)


def panel_title(axes: "Axes", title: str, subtitle: str = "", colour: str = MUTED) -> None:
    """Put a bold title and, under it, a plain line over a panel, both at its left edge."""
    axes.set_title(title, loc="left", color=INK, fontweight="bold", y=1.0, pad=20)
    axes.annotate(
        subtitle,
        (0, 1),
        xytext=(0, 6),
        xycoords="axes fraction",
        textcoords="offset points",
        color=colour,
        va="bottom",
    )
