"""The report of a study: a page to look at, the same in Markdown, and the figures as PNG, from study.json alone."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_progressive.report.figures import style as canvas
from hf_progressive.report.figures.study import draw_matches, draw_penalties, draw_recipes
from hf_progressive.report.glossary import TRANSFER_EFFICIENCY
from hf_progressive.report.page import ReportPaths, render
from hf_progressive.report.study_findings import Record, find_in_study, study_unit
from hf_progressive.report.study_tables import models_table, phi_table, rates_table, recipes_table, steps_table
from hf_progressive.report.table import Table
from hf_progressive.storage import atomic_file, read_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STUDY_NAME = "study.json"
"""The record that the report is made of."""

_KEYS = ("headline", "rungs", "cold", "recipes", "learning_rates", "failed", "costs", "config", "complete")
_DEFINITIONS = {
    "Baseline": "The same model trained from nothing: same architecture, tokenizer, batch and order of the data.",
    "FLOPs to match": (
        "Each budget is a finished model, at the end of its own decay. Between two of them bits per byte are "
        "taken to be linear in log FLOPs; the crossing with what the baseline had after its whole budget is what "
        "counts. Nothing is extrapolated below the smallest budget. Estimates of Fisher information and subspace are "
        "included."
    ),
    "Saving": "1 − FLOPs to match / FLOPs of the baseline.",
    "Transfer efficiency η": (
        f"{TRANSFER_EFFICIENCY}. At η = 1 on the last step the whole family costs what its largest member costs alone."
    ),
    "Branches": (
        "Shorter budgets branch off the longest run where their decay begins and end with the same weights as "
        "runs by themselves; each is charged all of its steps. What the study itself spent counts shared steps once."
    ),
}


def write_study_report(study_dir: str | os.PathLike[str]) -> ReportPaths:
    """Write the report of a study, finished or not.

    Args:
        study_dir: The study's folder.

    Returns:
        Where the files are: `study.html`, `study.md` and `plots/*.png` in the folder. Each is replaced whole.

    Raises:
        FileNotFoundError: The folder has no `study.json`.
        ValueError: The record is damaged, or no study's.
    """
    folder = Path(study_dir)
    study = read_study(folder)
    figures = _figures(study)
    paths = {name: folder / "plots" / f"{name}.png" for name in figures}
    for name, (_, _, figure) in figures.items():
        canvas.settle(figure)
        canvas.write_png(figure, paths[name])
    context = _context(study, figures)
    markdown, html = folder / "study.md", folder / "study.html"
    for path in (markdown, html):
        text = render(f"{path.name}.j2", context)
        with atomic_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return ReportPaths(html=html, markdown=markdown, plots=tuple(paths.values()))


def read_study(folder: Path) -> Record:
    """Read a study's record.

    Args:
        folder: The study's folder.

    Returns:
        The record.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is damaged, or no study's.
    """
    path = folder / STUDY_NAME
    study = read_json(path)
    missing = [key for key in _KEYS if key not in study]
    if missing:
        raise ValueError(f"{path}: has no {', '.join(missing)}; it is no study's record, or was cut")
    return study


def _figures(study: Record) -> dict[str, tuple[str, str, "Figure"]]:
    # Name, title, caption and figure of whatever the record allows to draw.
    figures = {}
    if study["headline"]["rungs"]:
        figures["matches"] = (
            "Where grown models match their baselines",
            "Every point is a finished model of one seed, the line their mean. The dashed line is what the baseline "
            "has after its whole budget; a ring is where one seed's grown models come down to their own baseline's, "
            "a triangle the smallest budget tried where they were below it already.",
            draw_matches(study),
        )
    if any(recipe["rungs"] for recipe in study["recipes"]):
        figures["recipes"] = (
            "How much of what was spent before carries over",
            "Bars are 95 % intervals by Student's t, ticks single seeds. A triangle is a lower bound: matched at the "
            "smallest budget tried. A single seed has no interval.",
            draw_recipes(study),
        )
    if any(recipe["rungs"] for recipe in study["headline"]["phi_effect"]["recipes"]):
        figures["penalties"] = (
            "What Φ changes",
            "Against the same recipe without Φ, at the same share of the cold budget. At equal FLOPs the estimates of "
            "Fisher information and subspace are paid for, at equal tokens they are free. Bars are 95 % intervals by "
            "Student's t over the seeds.",
            draw_penalties(study),
        )
    return figures


def _context(study: Record, figures: Mapping[str, tuple[str, str, "Figure"]]) -> dict[str, Any]:
    return {
        "study": study,
        "findings": find_in_study(study),
        "steps": steps_table(study),
        "plots": [{"name": name, "title": title, "caption": text} for name, (title, text, _) in figures.items()],
        "svg": {name: canvas.svg(figure, name) for name, (_, _, figure) in figures.items()},
        "tables": _tables(study),
        "definitions": _DEFINITIONS | {study_unit(study).name: study_unit(study).definition + "."},
        "settings": _settings(study),
    }


def _tables(study: Record) -> list[tuple[str, str, Table]]:
    found: list[tuple[str, str, Table | None]] = [
        (
            "Every recipe on every step",
            "The last column compares the child of the largest budget with the baseline of the whole one, in bits per "
            "byte; below 0 the child is better. A recipe that trained too briefly to match has no η.",
            recipes_table(study),
        ),
        (
            "Φ against none, at equal FLOPs and at equal tokens",
            "Difference in bits per byte to the same recipe without Φ, at each share of the cold budget: at the "
            "child's own total FLOPs, and at its tokens, where the estimates are free. Below 0 Φ helps.",
            phi_table(study),
        ),
        ("Learning rates", "One seed and one rung.", rates_table(study)),
        ("The models", "Tokens and FLOPs of the whole cold budget.", models_table(study)),
    ]
    return [(title, note, table) for title, note, table in found if table is not None and table.rows]


def _settings(study: Record) -> dict[str, str]:
    config = study["config"]
    training = config["ladder"]["training"]
    settings = {
        "seeds": ", ".join(map(str, config["seeds"])),
        "budgets of baselines": ", ".join(f"{value:g}" for value in config["cold_fractions"]),
        "budgets of children": ", ".join(f"{value:g}" for value in config["child_fractions"]),
        "corpus": str(config["ladder"]["data"]["source"]),
        "context": str(config["ladder"]["model"]["context"]),
        "vocabulary": f"{study['data']['vocab_size']:,}",
    }
    names = ("tokens_per_parameter", "batch_tokens", "learning_rate", "warmup_fraction", "decay_fraction")
    settings |= {name.replace("_", " "): f"{training[name]:g}" for name in names}
    return settings | {key.replace("_", " "): str(value) for key, value in study["environment"].items()}
