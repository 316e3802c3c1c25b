"""A study's figures: finished models against FLOPs, the recipes compared, and Φ against none."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

from hf_progressive.records.last_model import LastModelCost
from hf_progressive.records.study import FinishedRun, StudyRecord
from hf_progressive.records.study_outcome import Difference, PenaltyPoint, RecipeStep, StepOutcome
from hf_progressive.report.figures.colours import COLD, GRID, INHERITED, INK, LINES, MARKERS, MUTED, SURFACE
from hf_progressive.report.figures.curves import BITS_PER_BYTE
from hf_progressive.report.figures.style import DASHED, WIDTH, figure_style, new_figure, panel_title, panels
from hf_progressive.report.formatting import FlopUnit, counted, percent
from hf_progressive.report.study_findings import study_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROW_INCHES = 0.26
_RING: dict[str, Any] = {"ms": 8, "mec": INK, "mfc": "none", "mew": 1.2, "zorder": 5}  # around a point


def draw_matches(study: StudyRecord) -> "Figure":
    """Draw the headline recipe's finished models and their baselines, a panel per step; at least one is finished."""
    rungs, unit = study.headline.rungs, study_unit(study)
    with figure_style():
        figure, grid = panels(len(rungs), 3.2, (BITS_PER_BYTE,))
        for (axes,), rung in zip(grid, rungs, strict=True):
            _draw_step(axes, study, rung, unit)
            axes.set_xlabel(f"{unit.name} of {'all that the model took' if study.trunk else 'this model'}")
    return figure


def _draw_step(axes: "Axes", study: StudyRecord, rung: StepOutcome, unit: FlopUnit) -> None:
    child = study.headline_recipe
    step = next(row for row in child.rungs if row.child == rung.child)
    _draw_finished(axes, study, step, unit)
    result = _draw_worth(axes, step.known_cost, unit) if child.trunk else _draw_reached(axes, study, rung, step, unit)
    axes.set_xscale("log")
    _plain_log_ticks(axes)
    axes.grid(axis="y")
    path = [stage.name for stage in child.trunk] or [rung.parent]
    panel_title(axes, " → ".join([*path, rung.child]), result, INHERITED)
    axes.legend(loc="upper right" if child.trunk else "lower left", fontsize=7.5)


def _draw_finished(axes: "Axes", study: StudyRecord, step: RecipeStep, unit: FlopUnit) -> None:
    # The finished models of each side with their mean, and where the baselines end.
    child = study.headline_recipe
    # A trunk's ends are shown at all that went into them, on whose right the baselines have the same bits per byte.
    before = {seed.seed: seed.c_parent if child.trunk else 0.0 for seed in step.by_seed}
    sides = study.cold, child.points
    cold, grown = ([runs for runs in side if runs.rung == step.child and runs.seed in before] for side in sides)
    ends = [[replace(run, flops=run.flops + before[runs.seed]) for run in runs.finished] for runs in grown]
    _draw_side(axes, [runs.finished for runs in cold], unit, COLD, "from scratch" if child.trunk else "cold")
    _draw_side(axes, ends, unit, INHERITED, "grown")
    whole = [run.bits_per_byte for runs in cold for run in runs.finished if run.fraction == 1]
    axes.axhline(fmean(whole), color=COLD, linewidth=0.9, linestyle=DASHED, zorder=1.8)


def _draw_side(axes: "Axes", curves: Sequence[Sequence[FinishedRun]], unit: FlopUnit, colour: str, label: str) -> None:
    for points in curves:
        flops, heights = [p.flops / unit.size for p in points], [p.bits_per_byte for p in points]
        axes.plot(flops, heights, MARKERS[colour], color=colour, markersize=2.5)
    mean = [(x / unit.size, y) for x, y in _mean_curve(curves)]
    style: dict[str, Any] = {"color": colour, "linestyle": LINES[colour], "linewidth": 1.8}
    axes.plot([x for x, _ in mean], [y for _, y in mean], label=label, **style)


def _draw_reached(axes: "Axes", study: StudyRecord, rung: StepOutcome, step: RecipeStep, unit: FlopUnit) -> str:
    # Where each seed's child has its baseline's bits per byte; returns what that says of the step.
    for seed in step.by_seed:
        if seed.c_child is not None:
            marker = "<" if seed.reached == "at_most" else "o"
            axes.plot(seed.c_child / unit.size, _target(study, rung.child, seed.seed), marker, **_RING)
    saving = "not matched by every seed" if rung.saving is None else f"saves {percent(rung.saving)}"
    return f"at least: {saving}" if rung.at_least else saving


def _draw_worth(axes: "Axes", cost: LastModelCost | None, unit: FlopUnit) -> str:
    # A line from what a seed's trunk took to the budget from scratch that is worth it; returns the cost in words.
    label = "worth from scratch"
    for seed in () if cost is None else cost.by_seed:
        took, worth = (seed.c_lineage + seed.c_child) / unit.size, seed.c_scratch / unit.size
        axes.plot([took, worth], [seed.bits_per_byte] * 2, color=INHERITED, linewidth=0.9, linestyle=":", zorder=1.9)
        marker = ">" if seed.extrapolated else "o"
        axes.plot(worth, seed.bits_per_byte, marker, linestyle="none", label=label, **_RING)
        label = "_"
    return "not compared" if cost is None else f"last-model cost {cost.value:.2f}"


def _mean_curve(curves: Sequence[Sequence[FinishedRun]]) -> list[tuple[float, float]]:
    by_fraction: dict[float, list[FinishedRun]] = {}
    for points in curves:
        for point in points:
            by_fraction.setdefault(point.fraction, []).append(point)
    return [
        (fmean(point.flops for point in points), fmean(point.bits_per_byte for point in points))
        for _, points in sorted(by_fraction.items())
    ]


def _target(study: StudyRecord, rung: str, seed: int) -> float:
    entry = next(e for e in study.cold if e.rung == rung and e.seed == seed)
    return next(point.bits_per_byte for point in entry.finished if point.fraction == 1)


def _plain_log_ticks(axes: "Axes") -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def draw_recipes(study: StudyRecord) -> "Figure":
    """Draw η of every recipe on every finished step, of trunks the last-model cost, with intervals where they exist.

    Recipes that neither matched nor were trained as long as others of the step are left out: they say nothing here.
    """
    found = {rung.name: rows for rung in study.rungs if (rows := _of_step(study, rung.name))}
    label = "transfer efficiency η (1: the whole family at the price of its largest)"
    if study.trunk:
        label = "last-model cost (below 1: cheaper to grow than to train from scratch)"
    with figure_style():
        figure, grid = _lines(found, 1, label)
        for axes, rows in zip(grid, found.values(), strict=True):
            if len({row.seeds for _, row in rows}) > 1:
                axes.set_yticks(range(len(rows)), [f"{name}, {counted(row.seeds, 'seed')}" for name, row in rows])
            for place, (name, row) in enumerate(rows):
                colour = INHERITED if name == study.headline.recipe else COLD
                _draw_bar(axes, place, _cost_bar(row) if study.trunk else _eta_bar(row), colour)
    return figure


def _lines(
    steps: Mapping[str, Sequence[tuple[str, object]]], reference: float, label: str
) -> tuple["Figure", list["Axes"]]:
    # A column of panels, one for each step, with a line for each named entry, and one that marks a value.
    heights = [len(rows) + 1.6 for rows in steps.values()]
    figure = new_figure(WIDTH, sum(heights) * _ROW_INCHES + 0.5)
    grid = list(figure.subplots(len(steps), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0])
    for axes, (step, rows) in zip(grid, steps.items(), strict=True):
        axes.axvline(reference, color=MUTED, linewidth=0.9, linestyle=DASHED, zorder=1)
        axes.set_yticks(range(len(rows)), [name for name, _ in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(axis="x", color=GRID)
        axes.set_title(step, loc="left", color=INK, fontweight="bold")
    grid[-1].set_xlabel(label)
    return figure, grid


def _of_step(study: StudyRecord, step: str) -> list[tuple[str, RecipeStep]]:
    rows, longest = [], {}
    for recipe in study.recipes:
        fractions = [point.fraction for e in recipe.points if e.rung == step for point in e.finished]
        longest[recipe.name] = max(fractions, default=0.0)
        rows += [(recipe.name, rung) for rung in recipe.rungs if rung.child == step]
    most = max((longest[name] for name, _ in rows), default=0.0)
    rows = [(name, rung) for name, rung in rows if rung.eta is not None or longest[name] == most]
    if study.trunk:
        costs = {name: rung.known_cost for name, rung in rows}
        return sorted(rows, key=lambda row: math.inf if (cost := costs[row[0]]) is None else cost.value)
    return sorted(rows, key=lambda row: -math.inf if row[1].eta is None else row[1].eta, reverse=True)


@dataclass(frozen=True, kw_only=True)
class _Bar:
    """A mean with its interval and its seeds, to be drawn on a line."""

    value: float | None
    low: float | None
    high: float | None
    seeds: Sequence[float]
    marker: str


def _eta_bar(row: RecipeStep) -> _Bar:
    seeds = [seed.eta for seed in row.by_seed if seed.eta is not None]
    return _Bar(value=row.eta, low=row.eta_low, high=row.eta_high, seeds=seeds, marker=">" if row.at_least else "o")


def _cost_bar(row: RecipeStep) -> _Bar:
    cost = row.known_cost
    if cost is None:
        return _Bar(value=None, low=None, high=None, seeds=(), marker="o")
    seeds = [seed.value for seed in cost.by_seed]
    return _Bar(value=cost.value, low=cost.low, high=cost.high, seeds=seeds, marker="<" if cost.at_most else "o")


def _draw_bar(axes: "Axes", place: int, bar: _Bar, colour: str) -> None:
    for seed in bar.seeds:
        axes.plot(seed, place, "|", color=colour, markersize=7)
    if bar.value is None:
        axes.annotate(
            "not matched by every seed",
            (0, place),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color=MUTED,
            fontsize=7.5,
        )
        return
    if bar.low is not None or bar.high is not None:  # an interval with one end reaches from that to the value
        ends = [bar.value if end is None else end for end in (bar.low, bar.high)]
        axes.plot(ends, [place, place], color=colour, linewidth=1.6)
    axes.plot(bar.value, place, bar.marker, color=colour, markersize=6, markeredgecolor=SURFACE, zorder=4)


def draw_penalties(study: StudyRecord) -> "Figure":
    """Draw what Φ changed on every step where something was compared, at equal FLOPs and at equal tokens."""
    found = {rung.name: rows for rung in study.rungs if (rows := _compared(study, rung.name))}
    with figure_style():
        figure, grid = _lines(found, 0, "bits per byte with Φ less bits per byte without (below 0 Φ helps)")
        for axes, rows in zip(grid, found.values(), strict=True):
            for place, (_, point) in enumerate(rows):
                _draw_difference(axes, place - 0.15, point, INHERITED, "equal FLOPs")
                if point.at_equal_tokens:
                    _draw_difference(axes, place + 0.15, point.at_equal_tokens, COLD, "equal tokens")
        handles, labels = grid[0].get_legend_handles_labels()
        first = {label: handle for handle, label in reversed(list(zip(handles, labels, strict=True)))}
        grid[0].legend(reversed(first.values()), reversed(first), loc="best", frameon=True)
    return figure


def _compared(study: StudyRecord, step: str) -> list[tuple[str, PenaltyPoint]]:
    found = []
    for recipe in study.headline.phi_effect.recipes:
        points = [point for rung in recipe.rungs if rung.rung == step for point in rung.points]
        found += [
            (recipe.recipe if len(points) == 1 else f"{recipe.recipe}, {percent(p.fraction)}", p) for p in points
        ]
    return found


def _draw_difference(axes: "Axes", place: float, point: Difference, colour: str, label: str) -> None:
    if point.ends is not None:
        axes.plot(point.ends, [place, place], color=colour, linestyle=LINES[colour], linewidth=1.6)
    style: dict[str, Any] = {"color": colour, "markersize": 5, "markeredgecolor": SURFACE}
    axes.plot(point.difference, place, MARKERS[colour], label=label, **style)
