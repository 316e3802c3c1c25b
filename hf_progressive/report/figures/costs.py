"""What was spent, as bars: each rung cold and inherited, the family, and its last member."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hf_progressive.records.family import FamilyCost
from hf_progressive.records.rung import RungRecord
from hf_progressive.report.figures.colours import COLD, INHERITED, INK, MUTED, OVERHEAD, SURFACE
from hf_progressive.report.figures.style import WIDTH, beside, figure_style, new_figure, panel_title
from hf_progressive.report.formatting import FlopUnit
from hf_progressive.report.ladder_tables import AT_LEAST, flop_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BAR = 0.27  # height of a bar where rungs are 1 apart
_FAMILY_HEIGHT = 3.9  # inches
_CHARACTER = 0.075  # inches, an upper bound for the small type inside bars
_BAR_STYLES: dict[str, dict[str, Any]] = {
    "cold": {"facecolor": COLD, "edgecolor": SURFACE, "linewidth": 1},
    "planned": {"facecolor": SURFACE, "edgecolor": COLD, "linestyle": (0, (3, 2)), "linewidth": 1},
    "inherited": {"facecolor": INHERITED, "edgecolor": SURFACE, "linewidth": 1},
}


def draw_costs(rungs: Sequence[RungRecord]) -> "Figure":
    """Draw FLOPs as bars: each rung cold and inherited, the family, and its last member."""
    unit = flop_unit(rungs)
    height = max(_FAMILY_HEIGHT, 1.1 + 0.62 * len(rungs))
    with figure_style():
        figure = new_figure(WIDTH, height)
        if height > _FAMILY_HEIGHT:
            grid = figure.add_gridspec(2, 2, height_ratios=[_FAMILY_HEIGHT, height - _FAMILY_HEIGHT])
            left, right = figure.add_subplot(grid[:, 0]), figure.add_subplot(grid[0, 1])
        else:
            left, right = figure.subplots(1, 2)
        _rung_bars(left, rungs, unit)
        draw_family(right, rungs, unit, inches=WIDTH / 2 - 0.5)
    return figure


def _rung_bars(axes: "Axes", rungs: Sequence[RungRecord], unit: FlopUnit) -> None:
    for row, rung in enumerate(rungs):
        axes.annotate(rung.name, (0, row - 0.36), xytext=(0, 1), textcoords="offset points", va="bottom", color=INK)
        kind = "planned" if rung.cold_is_planned else "cold"
        axes.barh(row - 0.21, rung.cold_cost / unit.size, _BAR, **_BAR_STYLES[kind])
        cold = unit.number(rung.cold_cost) + " planned" * rung.cold_is_planned if rung.cold_is_known else "not known"
        beside(axes, rung.cold_cost / unit.size, row - 0.21, cold)
        if rung.grown:
            _inherited_bar(axes, row + 0.09, rung, unit)
    axes.set_ylim(len(rungs) - 0.6, -0.85)
    axes.set_xlim(0, 1.28 * max(max(rung.cold_cost, rung.flops.spent) for rung in rungs) / unit.size)
    _only_x_axis(axes, unit)
    panel_title(axes, "Each rung")
    _bar_legend(axes, rungs)


def _bar_legend(axes: "Axes", rungs: Sequence[RungRecord]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Patch | Line2D] = [Patch(color=COLD, label="cold")]
    if any(rung.grown for rung in rungs):
        handles.append(Patch(color=INHERITED, label="inherited"))
    if any(rung.flops.fisher + rung.flops.subspace > 0 for rung in rungs):
        handles.append(Patch(color=OVERHEAD, label="Fisher, subspace"))
    if any(rung.flops_to_match is not None for rung in rungs):
        tick = Line2D([], [], color=INK, marker="|", linestyle="", markersize=8, markeredgewidth=1.6)
        tick.set_label("matches cold")
        handles.append(tick)
    axes.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=len(handles),
        borderpad=0,
        borderaxespad=0.4,
        handlelength=1,
        handletextpad=0.5,
        columnspacing=1.2,
        labelcolor=MUTED,
    )


def _inherited_bar(axes: "Axes", y: float, rung: RungRecord, unit: FlopUnit) -> None:
    before = (rung.flops.fisher + rung.flops.subspace) / unit.size
    axes.barh(y, before, _BAR, color=OVERHEAD)
    axes.barh(y, rung.flops.train / unit.size, _BAR, left=before, color=INHERITED)
    text = unit.number(rung.flops.spent)
    if rung.flops_to_match is not None:
        place = rung.flops_to_match / unit.size
        axes.vlines(place, y - _BAR / 2 - 0.05, y + _BAR / 2 + 0.05, color=INK, linewidth=1.8)
        text += f", matches at {unit.number(rung.flops_to_match)}"
    elif rung.cold is not None:
        text += ", not matched"
    beside(axes, rung.flops.spent / unit.size, y, text)


def draw_family(axes: "Axes", rungs: Sequence[RungRecord], unit: FlopUnit, inches: float) -> None:
    """Draw what the family and its last member cost, as bars stacked by rung, on a panel of a width in inches."""
    counts = FamilyCost(rungs=tuple(rungs)).counts
    limit = 1.22 * max(count.flops or 0 for count in counts) / unit.size
    for row, count in enumerate(counts):
        planned = len([part for part in count.parts if part.kind == "planned"])
        mark = "" if not planned else " (planned)" if planned == len(count.parts) else " (partly planned)"
        axes.annotate(
            count.title + mark, (0, row - 0.24), xytext=(0, 1), textcoords="offset points", va="bottom", color=INK
        )
        if count.flops is None:
            axes.annotate("not known", (0, row), va="center", color=MUTED)
            continue
        left = 0.0
        for part in count.parts:
            width = part.flops / unit.size
            axes.barh(row, width, 0.46, left=left, **_BAR_STYLES[part.kind])
            if len(part.name) * _CHARACTER < width / limit * inches:
                colour = COLD if part.kind == "planned" else SURFACE
                axes.annotate(part.name, (left + width / 2, row), ha="center", va="center", color=colour, fontsize=7.5)
            left += width
        beside(axes, left, row, (AT_LEAST if count.at_least else "") + unit.text(count.flops))
    axes.set_ylim(len(counts) - 0.6, -0.75)
    axes.set_xlim(0, limit)
    _only_x_axis(axes, unit)
    panel_title(axes, "The family", "and its last member")


def _only_x_axis(axes: "Axes", unit: FlopUnit) -> None:
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    axes.set_xlabel(f"training FLOPs ({unit.name})")
