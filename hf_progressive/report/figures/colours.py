"""The colours of all figures, and their names in the style sheet of a page, where they follow light and dark.

They stand out from the background, and stay apart where red and green look alike.
"""

from typing import Any

INK = "#1c2530"
"""Text that is read first."""

MUTED = "#5d6875"
"""Text that is read second, and axes."""

GRID = "#e2e6ea"
"""Grid lines."""

SURFACE = "#ffffff"
"""The background."""

COLD = "#587794"
"""What was trained from scratch."""

INHERITED = "#c4470a"
"""What was grown."""

OVERHEAD = "#6e2a12"
"""What inheritance costs before training: Fisher information and subspace."""

SECOND_TERM = "#5b2a86"
"""The second of two parts of one thing."""

LINES: dict[str, Any] = {COLD: (0, (7, 1.5)), INHERITED: "-", SECOND_TERM: (0, (3, 2))}
"""Dashes of the lines in these colours, for whoever cannot tell the colours apart."""

MARKERS = {COLD: "s", INHERITED: "o"}
"""Markers of the points in these colours."""

CSS_NAMES = {
    INK: "ink",
    MUTED: "muted",
    GRID: "grid",
    SURFACE: "surface",
    COLD: "cold",
    INHERITED: "inherited",
    OVERHEAD: "overhead",
    SECOND_TERM: "second",
}
"""Custom properties of the page that stand for these colours."""
