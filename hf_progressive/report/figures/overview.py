"""The one picture that tells what a run found."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hf_progressive.records.rung import RungRecord
from hf_progressive.report.figures.colours import INK, MUTED
from hf_progressive.report.figures.costs import draw_family
from hf_progressive.report.figures.curves import BITS_PER_BYTE, draw_curve_panel
from hf_progressive.report.figures.style import WIDTH, figure_style, new_figure
from hf_progressive.report.ladder_tables import flop_unit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CURVES = 2  # panels beside the totals


def draw_overview(rungs: Sequence[RungRecord], headline: str, caption: str) -> "Figure":
    """Draw the family's totals and the last grown rungs' curves, between a headline and a caption."""
    unit = flop_unit(rungs)
    shown = [rung for rung in rungs if rung.grown][-_CURVES:]
    with figure_style():
        figure = new_figure(WIDTH + 1, 4.2)
        figure.suptitle(headline, x=0.0075, ha="left", fontsize=13, fontweight="bold", color=INK)
        panels = figure.subplots(1, 1 + len(shown), width_ratios=[1.35, *[1] * len(shown)], squeeze=False)[0]
        draw_family(panels[0], rungs, unit, inches=3.5)
        for axes, rung in zip(panels[1:], shown, strict=True):
            draw_curve_panel(axes, rung, unit)
        panels[1].set_ylabel(BITS_PER_BYTE)
        figure.supxlabel(caption, x=0.0075, ha="left", fontsize=8, color=MUTED)
    return figure
