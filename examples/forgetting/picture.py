"""The fronts: loss on the old domain against loss on the new, a line for each way."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from hf_progressive.report.figures.colours import INK, MUTED
from hf_progressive.report.figures.style import figure_style, new_figure, panel_title, settle, write_png

_COLOURS = mpl.colormaps["tab10"].colors
_FREE = ("lower rate", "interpolation", "replay")
"""Ways that need no penalty: drawn dashed."""


def draw(summary: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the picture of a summary's points as PNG."""
    transfers = list(dict.fromkeys(point["transfer"] for point in summary))
    forms = [form for form in dict.fromkeys(p["form"] for p in summary) if form not in ("parent", "free")]
    with figure_style():
        figure: Figure = new_figure(5.0 * len(transfers) + 0.5, 5.2)
        for axes, transfer in zip(figure.subplots(1, len(transfers), squeeze=False)[0], transfers, strict=True):
            points = [point for point in summary if point["transfer"] == transfer]
            (free,) = (point for point in points if point["form"] == "free")
            for index, form in enumerate(forms):
                own = [free, *(point for point in points if point["form"] == form)]
                axes.plot(
                    [point["old"] for point in own],
                    [point["new"] for point in own],
                    color=_COLOURS[index % len(_COLOURS)],
                    linestyle="--" if form in _FREE else "-",
                    marker="o",
                    markersize=3.5,
                    linewidth=1.4,
                    label=form,
                )
            axes.plot(free["old"], free["new"], marker="s", color=INK, linestyle="none", label="free training")
            (parent,) = (point for point in points if point["form"] == "parent")
            axes.axvline(parent["old"], color=MUTED, linewidth=0.8, linestyle=":")
            axes.set_xlabel("loss on English (nats per token); dotted: before")
            axes.set_ylabel("loss on the new domain")
            axes.set_ylim(free["new"] - 0.05, free["new"] + 1.0)
            axes.grid()
            panel_title(axes, transfer, "lower left is better; weak to strong along each line")
        axes.legend(fontsize=7.5, loc="upper right")
    settle(figure)
    write_png(figure, path)
