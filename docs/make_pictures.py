"""Draw docs/concepts' three pictures from the record of a study: python docs/make_pictures.py."""

import json
from pathlib import Path
from typing import Any

from hf_progressive.report.figures.colours import COLD, INHERITED, INK, MUTED
from hf_progressive.report.figures.style import figure_style, new_figure

DOCS = Path(__file__).parent
RECORD = DOCS.parent / "examples/studies/books/study.json"
LINEAGE, CHILD, SCRATCH = "#8a6d3b", INHERITED, COLD


def bars(path: Path, rows: list[tuple[str, list[tuple[float, str, str]]]], title: str, note: str = "") -> None:
    """Draw rows of stacked segments, each (TFLOP, colour, text), with what they sum to."""
    with figure_style():
        figure = new_figure(8, 0.75 + 0.55 * len(rows))
        axes = figure.subplots()
        for height, (_, segments) in enumerate(rows):
            left = 0.0
            for length, colour, text in segments:
                axes.barh(height, length, left=left, height=0.62, color=colour, edgecolor="white", linewidth=1.2)
                axes.text(left + length / 2, height, text, ha="center", va="center", color="white", fontweight="bold")
                left += length
            axes.text(left, height, f"  {left:.2f} TFLOP", ha="left", va="center", color=MUTED)
        axes.set_yticks(range(len(rows)), [name for name, _ in rows])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.22 * max(sum(length for length, _, _ in segments) for _, segments in rows))
        axes.set_xlabel(f"training FLOPs{note}")
        axes.set_title(title, loc="left")
        figure.savefig(path, dpi=160)


def main() -> None:
    study: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    steps, rungs = study["headline"]["rungs"], {rung["name"]: rung for rung in study["rungs"]}
    last = steps[-1]
    scratch = rungs[last["child"]]["cold_flops"] / 1e12
    lineage, child = last["c_parent_over_c_cold"] * scratch, (1 - last["saving"]) * scratch
    eta, name = last["eta"], last["child"]
    cost = 1 + (1 - eta) * lineage / scratch
    pictures = DOCS / "concepts"
    bars(
        pictures / "eta.png",
        [
            ("baseline", [(child, SCRATCH, ""), (scratch - child, SCRATCH, f"saved: {scratch - child:.2f}")]),
            ("grown model, to its match", [(child, CHILD, f"{child:.2f}")]),
            ("what it inherits from", [(lineage, LINEAGE, f"lineage: {lineage:.2f}")]),
        ],
        f"η of {name}, what is saved over what it inherits from: {eta:.2f}",
        f" ({study['name']}, means over three seeds)",
    )
    names = [steps[0]["parent"], *(step["child"] for step in steps)]
    cold = [rungs[each]["cold_flops"] / 1e12 for each in names]
    share = study["headline"]["parent_fraction"]
    grown = [cold[0], *(share * each for each in cold[1:-1]), child]
    bars(
        pictures / "family.png",
        [
            ("each from scratch", [(each, SCRATCH, label) for each, label in zip(cold, names, strict=True)]),
            (
                "each grown from the one before",
                [(grown[0], LINEAGE, names[0]), *((each, CHILD, "") for each in grown[1:])],
            ),
            ("the last alone, from scratch", [(scratch, SCRATCH, name)]),
        ],
        f"Four models for {sum(grown) / sum(cold):.0%} of what they cost from scratch",
        ": grown models as trained, the last to its match",
    )
    bars(
        pictures / "last_model.png",
        [
            ("from scratch", [(scratch, SCRATCH, name)]),
            ("grown", [(lineage, LINEAGE, "lineage"), (child, CHILD, "child")]),
        ],
        f"Last-model cost of {name}, grown over from scratch: {cost:.2f}",
    )


if __name__ == "__main__":
    main()
