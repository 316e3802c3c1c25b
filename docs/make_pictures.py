"""Draw the documentation's pictures of the study of English books from its record: python docs/make_pictures.py.

`trunk_small.png` is a picture of the run that `make ladder` leaves, `forgetting.png` that of
`examples/forgetting/pareto.py`.
"""

from pathlib import Path
from statistics import fmean

from hf_progressive.records.study import StudyRecord, read_study
from hf_progressive.report.figures.colours import COLD, INHERITED, INK, MUTED
from hf_progressive.report.figures.study import draw_matches, draw_penalties
from hf_progressive.report.figures.style import figure_style, new_figure, write_png

DOCS = Path(__file__).parent
RECORD = DOCS.parent / "examples/studies/books"
TERA = 1e12
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


def draw_figures(study: StudyRecord, folder: Path) -> None:
    """Draw the three figures of docs/concepts/figures.md, on the last step of a study of a chain."""
    steps, rungs = study.headline.rungs, {rung.name: rung for rung in study.rungs}
    name = steps[-1].child
    seeds = next(row for row in study.headline_recipe.rungs if row.child == name).by_seed
    scratch = rungs[name].cold_flops / TERA
    lineage = fmean(seed.c_parent for seed in seeds) / TERA
    child = fmean(seed.c_child for seed in seeds if seed.c_child is not None) / TERA
    bars(
        folder / "eta.png",
        [
            ("baseline", [(child, SCRATCH, ""), (scratch - child, SCRATCH, f"saved: {scratch - child:.2f}")]),
            ("grown model, to its match", [(child, CHILD, f"{child:.2f}")]),
            ("what it inherits from", [(lineage, LINEAGE, f"lineage: {lineage:.2f}")]),
        ],
        f"η of {name}, what is saved over what it inherits from: {(scratch - child) / lineage:.2f}",
        f" ({study.name}, means over three seeds)",
    )
    names = [steps[0].parent, *(step.child for step in steps)]
    cold = [rungs[each].cold_flops / TERA for each in names]
    share = study.headline.parent_fraction
    grown = [cold[0], *(share * each for each in cold[1:-1]), child]
    bars(
        folder / "family.png",
        [
            ("each from scratch", [(each, SCRATCH, label) for each, label in zip(cold, names, strict=True)]),
            (
                "each grown from the one before",
                [(grown[0], SCRATCH, names[0]), *((each, CHILD, "") for each in grown[1:])],
            ),
            ("the last alone, from scratch", [(scratch, SCRATCH, name)]),
        ],
        f"Four models for {sum(grown) / sum(cold):.0%} of what they cost from scratch",
        ": grown models as trained, the last to its match",
    )
    bars(
        folder / "last_model.png",
        [
            ("from scratch", [(scratch, SCRATCH, name)]),
            ("grown", [(lineage, LINEAGE, "lineage"), (child, CHILD, "child")]),
        ],
        f"Last-model cost of {name}, grown over from scratch: {(lineage + child) / scratch:.2f}",
    )


def main() -> None:
    study = read_study(RECORD)
    draw_figures(study, DOCS / "concepts")
    write_png(draw_matches(study), DOCS / "books_matches.png")
    write_png(draw_penalties(study), DOCS / "books_penalties.png")


if __name__ == "__main__":
    main()
