"""Validation bits per byte against FLOPs: where each grown rung meets its baseline."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hf_progressive.records.measurements import CurvePoint
from hf_progressive.records.rung import RungRecord
from hf_progressive.report.figures.colours import COLD, INHERITED, LINES, MARKERS, MUTED, SURFACE
from hf_progressive.report.figures.style import DASHED, figure_style, halo, panel_title, panels
from hf_progressive.report.formatting import FlopUnit, decimals, percent
from hf_progressive.report.ladder_tables import flop_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BITS_PER_BYTE = "validation bits per byte"
"""What the vertical axis shows."""

_LABEL_DISTANCE = 0.15  # between the labels of two line ends, as a share of the panel's height


def draw_curves(rungs: Sequence[RungRecord]) -> "Figure":
    """Draw validation bits per byte against FLOPs, a panel per rung."""
    unit = flop_unit(rungs)
    with figure_style():
        figure, grid = panels(len(rungs), 3.0, (BITS_PER_BYTE,))
        for (axes,), rung in zip(grid, rungs, strict=True):
            draw_curve_panel(axes, rung, unit)
    return figure


def draw_curve_panel(axes: "Axes", rung: RungRecord, unit: FlopUnit) -> None:
    """Draw one rung's curve, and its baseline's, with the place where they match."""
    cold = rung.cold.curve if rung.cold else () if rung.grown else rung.curve
    inherited = rung.curve if rung.grown else ()
    right = max(point.flops for point in (*cold, *inherited)) / unit.size or 1.0
    ends = []
    for curve, colour, name in ((cold, COLD, "cold"), (inherited, INHERITED, "inherited")):
        if not curve:
            continue
        flops = [point.flops / unit.size for point in curve]
        heights = [point.bits_per_byte for point in curve]
        axes.plot(flops, heights, color=colour, linestyle=LINES[colour], linewidth=1.8, solid_capstyle="round")
        end = curve[-1].bits_per_byte
        axes.plot(flops[-1], end, MARKERS[colour], color=colour, markersize=3.5)
        axes.plot([flops[-1], right], [end, end], color=colour, linewidth=0.8, linestyle=":")
        ends.append((end, colour, name))
    if rung.cold is not None:
        axes.axhline(rung.cold.bits_per_byte, color=COLD, linewidth=0.9, linestyle=DASHED, zorder=1.8)
        _mark_crossing(axes, rung, rung.cold.bits_per_byte, unit)
    axes.set_xlim(0, right * 1.02)
    axes.set_ylim(*_visible_range(cold, inherited))
    _label_ends(axes, ends)
    axes.grid(axis="y")
    panel_title(axes, rung.lineage, _verdict(rung), INHERITED if rung.saving is not None else MUTED)
    axes.set_xlabel(f"FLOPs spent on this rung ({unit.name})")


def _visible_range(cold: Sequence[CurvePoint], inherited: Sequence[CurvePoint]) -> tuple[float, float]:
    # All of the grown curve, and the later part of the cold one.
    bottom = min(point.bits_per_byte for point in (*cold, *inherited))
    late = [point.bits_per_byte for point in cold[len(cold) // 4 :]]
    top = max((point.bits_per_byte for point in inherited), default=max(late, default=bottom))
    if inherited and late:
        top = max(top, min(max(late), bottom + 2 * (top - bottom)))
    height = (top - bottom) or 0.01 * bottom
    return bottom - 0.12 * height, top + 0.05 * height


def _mark_crossing(axes: "Axes", rung: RungRecord, target: float, unit: FlopUnit) -> None:
    if rung.flops_to_match is None:
        return
    place = rung.flops_to_match / unit.size
    axes.vlines(place, 0, target, color=INHERITED, linewidth=0.9, linestyle=":")
    axes.plot(
        place, target, "o", color=SURFACE, markeredgecolor=INHERITED, markeredgewidth=1.6, markersize=6, zorder=4
    )
    label = axes.annotate(
        unit.number(rung.flops_to_match),
        (place, 0),
        xycoords=("data", "axes fraction"),
        xytext=(3, 4),
        textcoords="offset points",
        color=INHERITED,
    )
    halo(label)


def _label_ends(axes: "Axes", ends: Sequence[tuple[float, str, str]]) -> None:
    # Each line's name and final value stand beside the panel, apart from one another.
    bottom, top = axes.get_ylim()
    ordered = sorted(ends)
    places = [(value - bottom) / (top - bottom) for value, _, _ in ordered]
    if len(places) == 2 and (lacking := _LABEL_DISTANCE - (places[1] - places[0])) > 0:
        places = [places[0] - lacking / 2, places[1] + lacking / 2]
    for place, (value, colour, name) in zip(places, ordered, strict=True):
        axes.annotate(
            f"{name}\n{value:.4f}",
            (1, place),
            xycoords="axes fraction",
            xytext=(4, 0),
            textcoords="offset points",
            color=colour,
            va="center",
            fontsize=7.5,
        )


def _verdict(rung: RungRecord) -> str:
    if rung.origin is not None:
        return f"taken from {rung.origin.name}"
    if not rung.grown:
        return "the first rung, trained from scratch"
    if rung.cold is None:
        return "no baseline trained"
    if rung.saving is None:
        return f"not matched, {rung.gap_bits_per_byte or 0:.4f} bits per byte short"
    saved = f"saves {percent(rung.saving)}" if rung.saving >= 0 else f"costs {percent(-rung.saving)} more"
    return saved if rung.eta is None else f"{saved}, η {decimals(rung.eta)}"
