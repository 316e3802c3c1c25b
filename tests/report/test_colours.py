"""Colours are seen against the background, also by who see red and green alike; none is a thing's only mark."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest

import hf_progressive
from hf_progressive.report.figures.colours import (
    COLD,
    CSS_NAMES,
    GRID,
    INHERITED,
    LINES,
    MARKERS,
    MUTED,
    OVERHEAD,
    SECOND_TERM,
)
from hf_progressive.report.figures.live_curve import Chart, Line

CSS = (Path(hf_progressive.__file__).parent / "templates" / "report.css").read_text(encoding="utf-8")
LIGHT, DARK = (
    dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6});", part)) for part in CSS.split("prefers-color-scheme")[:2]
)
MEANINGS = ("cold", "inherited", "overhead", "second")

SEEN_BY = {
    # Machado, Oliveira and Fernandes (2009), "A Physiologically-based Model for Simulation of Color Vision
    # Deficiency", severity 1, on linear RGB.
    "everyone": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}
APART = 0.08  # of OKLab's distance, in which black and white are 1 apart, and 0.02 is just noticeable


def linear(colour: str) -> np.ndarray:
    """Linear RGB of sRGB (IEC 61966-2-1)."""
    value = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def contrast(first: str, second: str) -> float:
    """Contrast ratio by WCAG 2.2."""
    dim, bright = sorted(float(linear(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (first, second))
    return (bright + 0.05) / (dim + 0.05)


def oklab(rgb: np.ndarray) -> np.ndarray:
    """OKLab of linear RGB (Ottosson, 2020)."""
    cones = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    out = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return out @ np.cbrt(cones @ rgb)


def test_the_instruments_are_right() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)  # as WCAG's own examples say
    assert oklab(linear("#ff0000")) == pytest.approx([0.62796, 0.22486, 0.12585], abs=1e-4)
    red, green = (SEEN_BY["deuteranopia"] @ linear(colour) for colour in ("#c00000", "#6b6b00"))
    assert np.linalg.norm(oklab(red) - oklab(green)) < 0.1  # alike to a deuteranope
    assert np.linalg.norm(oklab(linear("#c00000")) - oklab(linear("#6b6b00"))) > 0.15


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_stand_out_and_stay_apart(theme: dict[str, str]) -> None:
    for name in MEANINGS:
        assert contrast(theme[name], theme["surface"]) >= (4.5 if name in ("cold", "inherited") else 3.0)
    for name in ("ink", "muted"):
        assert min(contrast(theme[name], theme[under]) for under in ("surface", "page")) >= 4.5
    assert contrast(theme["ink"], theme["warn"]) >= 4.5
    for eyes, matrix in SEEN_BY.items():
        seen = {name: oklab(np.clip(matrix @ linear(theme[name]), 0, 1)) for name in MEANINGS}
        for first, second in itertools.combinations(MEANINGS, 2):
            assert np.linalg.norm(seen[first] - seen[second]) > APART, (eyes, first, second)


def test_figures_and_the_page_have_the_same_colours() -> None:
    assert {LIGHT[name] for name in CSS_NAMES.values()} == CSS_NAMES.keys()
    assert LIGHT.keys() == DARK.keys()
    assert {COLD, INHERITED, OVERHEAD, SECOND_TERM, MUTED, GRID} <= CSS_NAMES.keys()


def test_no_two_lines_differ_in_colour_alone() -> None:
    assert len(set(map(str, LINES.values()))) == len(LINES)
    assert len(set(MARKERS.values())) == len(MARKERS)
    dashes = {
        kind: re.search(rf"\.line\.{kind} \{{[^}}]*?(dasharray: [^;]+)?; \}}", CSS)
        for kind in ("grown", "cold", "before")
    }
    assert len({found and found[1] for found in dashes.values()}) == len(dashes)
    ends = []
    for kind in ("grown", "cold"):
        line = Line(title=kind, points=((0.0, 2.0), (1.0, 1.0)), kind=kind)
        svg = Chart(name="c", title="t", up="u", right=2.0, lines=(line,)).svg()
        ends.append(re.findall(rf'<(\w+) class="end {kind}"', svg))
    assert ends == [["circle"], ["rect"]]


def test_a_line_without_points_draws_nothing() -> None:
    lines = tuple(
        Line(title=kind, points=points, kind=kind) for kind, points in (("cold", ()), ("grown", ((1.0, 2.0),)))
    )
    assert Chart(name="c", title="t", up="u", right=2.0, lines=lines).svg().count('<path class="line') == 1
