"""What a planned ladder costs, as bars: every rung cold and inherited, and the family's three prices."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_progressive.report.figures.colours import COLD, INHERITED, INK, MUTED
from hf_progressive.report.figures.style import WIDTH, beside, figure_style, new_figure, panel_title, settle, write_png
from hf_progressive.report.formatting import FlopUnit, significant

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BAR = 0.34  # height of a bar where rungs are 1 apart


def draw_prices(record: Mapping[str, Any]) -> "Figure":
    """Draw a priced plan, as `LadderPrice.to_dict` returns it.

    Bars are dollars if there is a price, and FLOPs if there is none; inherited ones are what the named transfer
    efficiency says, with its interval, or what the configuration trains for where none was named.
    """
    rungs, family, scale = record["rungs"], record["family"], _Scale.of(record)
    with figure_style():
        figure = new_figure(WIDTH, max(2.6, 1.2 + 0.42 * len(rungs)))
        left, right = figure.subplots(1, 2, width_ratios=[3, 2])
        for row, rung in enumerate(rungs):
            _bar(left, row - _BAR / 2, scale, COLD, rung["cold"])
            if rung["parent"] is not None:
                _bar(left, row + _BAR / 2, scale, INHERITED, *_inherited(rung))
        _finish(left, [rung["name"] for rung in rungs], scale)
        handles, evidence = [left.containers[0], left.containers[-1]], record["evidence"]
        rest = "as configured" if evidence is None else f"to match at η = {evidence['eta']:.3g}"
        left.legend(handles=handles, labels=["cold", f"inherited, {rest}"], loc="upper right")
        panel_title(left, "Each rung", _machine(record["cluster"]))
        _bar(right, 0, scale, COLD, family["cold"])
        _bar(right, 1, scale, INHERITED, *_inherited(family))
        _bar(right, 2, scale, COLD, family["last_alone"])
        _finish(right, ["every rung cold", "every rung inherited", f"{rungs[-1]['name']} alone, cold"], scale)
        panel_title(right, "The family", "three prices, never to be confused")
    return figure


def _machine(cluster: Mapping[str, Any]) -> str:
    speed = "measured" if cluster["mfu"] is None else f"{cluster['mfu']:.0%} MFU"
    price = "" if cluster["price"] is None else f", ${cluster['price']:g} per GPU-hour"
    return f"{cluster['count']} × {cluster['gpu']['name']}, {speed}{price}"


def write_prices(record: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a priced plan, as `LadderPrice.to_dict` returns it, as a PNG."""
    figure = draw_prices(record)
    settle(figure)
    write_png(figure, Path(path))


class _Scale(NamedTuple):
    # Dollars, or a unit of FLOPs.
    key: str
    size: float
    label: str

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "_Scale":
        if record["cluster"]["price"] is not None:
            return cls("dollars", 1.0, "dollars")
        unit = FlopUnit.for_values([record["family"]["cold"]["flops"]])
        return cls("flops", unit.size, unit.name)

    def value(self, cost: Mapping[str, Any]) -> float:
        return float(cost[self.key]) / self.size


def _inherited(entry: Mapping[str, Any]) -> tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]:
    # The cost, and the ends of its interval where it has one.
    costs = entry["to_match"]
    if costs is None:
        return entry["as_configured"], []
    return costs["expected"], [costs[key] for key in ("at_best", "at_worst") if key in costs]


def _bar(
    axes: "Axes",
    row: float,
    scale: _Scale,
    colour: str,
    cost: Mapping[str, Any],
    ends: Sequence[Mapping[str, Any]] = (),
) -> None:
    value = scale.value(cost)
    axes.barh(row, value, _BAR, color=colour)
    edges = [scale.value(end) for end in ends]
    if edges:
        axes.plot(edges, [row, row], color=INK, linewidth=1, marker="|", markersize=5)
    beside(axes, max([value, *edges]), row, significant(value), INK)


def _finish(axes: "Axes", labels: Sequence[str], scale: _Scale) -> None:
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.16 * axes.get_xlim()[1])
    axes.set_xlabel(scale.label, color=MUTED)
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
