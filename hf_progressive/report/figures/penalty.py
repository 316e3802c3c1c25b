"""The inheritance penalty over training: its two parts, and their weights λ and γ."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hf_progressive.records.rung import Rung
from hf_progressive.report.figures import style as canvas
from hf_progressive.report.figures.style import INHERITED, SECOND_TERM

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 3


def penalized(rungs: Sequence[Rung]) -> list[Rung]:
    """Return the rungs whose training log holds parts of the inheritance penalty.

    Args:
        rungs: Rungs.

    Returns:
        Those that `draw_penalty` can draw.
    """
    return [rung for rung in rungs if any(any(_series(rung, key)[1]) for key in ("phi/ewc", "phi/subspace"))]


def draw_penalty(rungs: Sequence[Rung]) -> "Figure":
    """Draw the parts of Φ, and λ and γ, over the steps of each rung that trained with it.

    Args:
        rungs: Rungs that `penalized` returned.

    Returns:
        The figure.
    """
    columns = min(_COLUMNS, len(rungs))
    blocks = math.ceil(len(rungs) / columns)
    with canvas.style():
        figure = canvas.new_figure(canvas.WIDTH * max(columns, 2) / _COLUMNS, 3.9 * blocks)
        grid = figure.subplots(2 * blocks, columns, squeeze=False, height_ratios=[2, 1] * blocks)
        for index, rung in enumerate(rungs):
            block, column = divmod(index, columns)
            parts, weights = grid[2 * block][column], grid[2 * block + 1][column]
            _penalty_parts(parts, rung)
            _penalty_weights(weights, rung)
            if column == 0:
                parts.set_ylabel("part of the loss (nats)")
                weights.set_ylabel("share of\nfull weight")
        for index in range(len(rungs), blocks * columns):
            block, column = divmod(index, columns)
            grid[2 * block][column].set_axis_off()
            grid[2 * block + 1][column].set_axis_off()
    return figure


def _penalty_parts(axes: "Axes", rung: Rung) -> None:
    for key, colour, name in (("phi/ewc", INHERITED, "λ·EWC"), ("phi/subspace", SECOND_TERM, "γ·subspace")):
        steps, values = _series(rung, key)
        if any(values):
            axes.plot(steps, values, color=colour, linewidth=1.6, label=name)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.tick_params(length=3)
    axes.grid(axis="y")
    axes.legend(frameon=False, labelcolor="linecolor", handlelength=1, loc="upper right")
    canvas.panel_title(axes, rung.lineage, "the two parts of Φ")


def _penalty_weights(axes: "Axes", rung: Rung) -> None:
    for key, setting, colour, dashes, name in (
        ("phi/lambda", "ewc_lambda", INHERITED, "-", "λ"),
        ("phi/gamma", "gamma", SECOND_TERM, (0, (3, 2)), "γ"),
    ):
        steps, values = _series(rung, key)
        full = (rung.phi or {}).get(setting) or max(values, default=0.0)
        if full and values:
            shares = [value / full for value in values]
            axes.plot(steps, shares, color=colour, linestyle=dashes, label=f"{name}, of {full:g}")
    axes.set_ylim(0, 1.08)
    axes.set_yticks([0, 1])
    axes.tick_params(length=3)
    axes.set_xlabel("optimizer step")
    if axes.lines:
        axes.legend(frameon=False, labelcolor="linecolor", handlelength=1.4, loc="upper right")


def _series(rung: Rung, key: str) -> tuple[list[float], list[float]]:
    entries = [entry for entry in rung.training_log if key in entry and "step" in entry]
    return [entry["step"] for entry in entries], [entry[key] for entry in entries]
