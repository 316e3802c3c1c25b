"""The inheritance penalty over training: its two parts, and their weights λ and γ."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hf_progressive.records.rung import RungRecord
from hf_progressive.report.figures.colours import INHERITED, LINES, SECOND_TERM
from hf_progressive.report.figures.style import figure_style, panel_title, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def penalized(rungs: Sequence[RungRecord]) -> list[RungRecord]:
    """Return the rungs whose training log holds parts of the inheritance penalty."""
    return [rung for rung in rungs if any(any(_series(rung, key)[1]) for key in ("phi/ewc", "phi/subspace"))]


def draw_penalty(rungs: Sequence[RungRecord]) -> "Figure":
    """Draw the parts of Φ, and λ and γ, over the steps of each of the rungs that `penalized` returned."""
    with figure_style():
        figure, grid = panels(len(rungs), 3.9, ("part of the loss (nats)", "share of\nfull weight"), shares=(2, 1))
        for (parts, weights), rung in zip(grid, rungs, strict=True):
            _penalty_parts(parts, rung)
            _penalty_weights(weights, rung)
    return figure


def _penalty_parts(axes: "Axes", rung: RungRecord) -> None:
    for key, colour, name in (("phi/ewc", INHERITED, "λ·EWC"), ("phi/subspace", SECOND_TERM, "γ·subspace")):
        steps, values = _series(rung, key)
        if any(values):
            axes.plot(steps, values, color=colour, linestyle=LINES[colour], linewidth=1.6, label=name)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(axis="y")
    axes.legend(labelcolor="linecolor", handlelength=1.8, loc="upper right")
    panel_title(axes, rung.lineage, "the two parts of Φ")


def _penalty_weights(axes: "Axes", rung: RungRecord) -> None:
    phi = rung.phi
    for key, weight, colour, name in (
        ("phi/lambda", phi and phi.ewc_lambda, INHERITED, "λ"),
        ("phi/gamma", phi and phi.gamma, SECOND_TERM, "γ"),
    ):
        steps, values = _series(rung, key)
        full = weight or max(values, default=0.0)
        if full and values:
            shares = [value / full for value in values]
            axes.plot(steps, shares, color=colour, linestyle=LINES[colour], label=f"{name}, of {full:g}")
    axes.set_ylim(0, 1.08)
    axes.set_yticks([0, 1])
    axes.set_xlabel("optimizer step")
    if axes.lines:
        axes.legend(labelcolor="linecolor", handlelength=1.8, loc="upper right")


def _series(rung: RungRecord, key: str) -> tuple[list[float], list[float]]:
    pairs = ((entry.get("step"), entry.get(key)) for entry in rung.training_log)
    known = [(step, value) for step, value in pairs if step is not None and value is not None]
    return [step for step, _ in known], [value for _, value in known]
