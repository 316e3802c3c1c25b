"""The colours of all figures, and their names in the style sheet of a page, where they follow light and dark."""

INK = "#1c2530"
"""Text that is read first."""

MUTED = "#5d6875"
"""Text that is read second, and axes."""

GRID = "#e2e6ea"
"""Grid lines."""

SURFACE = "#ffffff"
"""The background."""

COLD = "#6f8aa5"
"""What was trained from scratch."""

INHERITED = "#d4500f"
"""What was grown."""

OVERHEAD = "#f0b08a"
"""What inheritance costs before training: Fisher information and subspace."""

SECOND_TERM = "#0f766e"
"""The second of two parts of one thing."""

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
