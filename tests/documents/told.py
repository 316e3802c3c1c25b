"""How README.md and docs/evidence.md tell figures: shares, costs, and the rows of tables."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
EVIDENCE = ROOT / "docs" / "evidence.md"
NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 9: "nine"}


def short(value: float, digits: int = 2) -> str:
    """Return a share as the pages write it."""
    return f"{value:.{digits}f}".replace("0.", ".", 1).replace("-", "−") if abs(value) < 1 else f"{value:.{digits}f}"


def percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def with_interval(value: float, low: float, high: float, seeds: int) -> str:
    """Return a cost with its interval as the README writes it."""
    return f"{short(value)} ({short(low)} to {short(high)}, {NUMBERS[seeds]} seeds)"


def cells(page: Path, start: str, *, after: str = "# ") -> list[str]:
    """Return all cells of the row that begins so, the first after a text, or else the only one on the page."""
    lines = page.read_text(encoding="utf-8").partition(after)[2].splitlines()
    rows = [line for line in lines if line.startswith(f"| {start}")]
    assert len(rows) == 1 or (rows and after != "# "), f"{len(rows)} rows begin with {start}"
    return [cell.strip() for cell in rows[0].split("|")[1:-1]]
