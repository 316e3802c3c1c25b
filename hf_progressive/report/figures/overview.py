"""The one picture that tells what a run found."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hf_progressive.records.rung import Rung
from hf_progressive.report.figures import style as canvas
from hf_progressive.report.figures.costs import draw_family
from hf_progressive.report.figures.curves import draw_curve_panel
from hf_progressive.report.figures.style import INK, MUTED
from hf_progressive.report.table import flop_unit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CURVES = 2  # panels beside the totals


def draw_overview(rungs: Sequence[Rung], headline: str, caption: str) -> "Figure":
    """Draw the one picture that tells what a run found: the family's totals and the last grown rungs' curves.

    Args:
        rungs: The finished rungs, from the smallest; at least one is grown.
        headline: The finding, in one sentence.
        caption: What it was measured on.

    Returns:
        The figure.
    """
    unit = flop_unit(rungs)
    shown = [rung for rung in rungs if rung.grown][-_CURVES:]
    with canvas.style():
        figure = canvas.new_figure(canvas.WIDTH + 1, 4.2)
        figure.suptitle(headline, x=0.0075, ha="left", fontsize=13, fontweight="bold", color=INK)
        panels = figure.subplots(1, 1 + len(shown), width_ratios=[1.35, *[1] * len(shown)], squeeze=False)[0]
        draw_family(panels[0], rungs, unit, inches=3.5)
        for index, rung in enumerate(shown):
            draw_curve_panel(panels[1 + index], rung, unit, left=index == 0, bottom=True)
        figure.supxlabel(caption, x=0.0075, ha="left", fontsize=8, color=MUTED)
    return figure
