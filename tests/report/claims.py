"""Sentences against what they are about: a claim is a sentence with names in the places of its figures.

A document passes when every sentence and every cell with a number in it is a claim whose figures, worked out from the
records by the test, read the same when rounded as the document rounds them. A sentence that no claim covers fails.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Facts = Mapping[str, Any]
"""What is true, by name: numbers, or text for places marked `:s`."""

NUMBER = r"[−+]?\d[\d,]*(?:\.\d+)?(?:e[−+]?\d+)?"
QUANTITY = rf"{NUMBER}(?: (?:[kMBT](?![A-Za-z])|[kMGTPEZY]?FLOP|%|×))?"
PLACE = re.compile(r"\{(\w+)(:s)?(?:@(\w+))?\}")
SCALES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12, "P": 1e15, "E": 1e18, "Z": 1e21, "Y": 1e24}


@dataclass(frozen=True)
class Claim:
    """A sentence: `{name}` stands for a number, `{name@unit}` for one in a unit, `{name:s}` for text."""

    template: str
    when: Callable[[Facts], bool] = lambda facts: True
    """What must hold for the sentence to be true, besides its figures."""

    def match(self, sentence: str) -> re.Match[str] | None:
        literals = PLACE.split(self.template)[:: PLACE.groups + 1]
        groups = [r"(.+?)" if place[2] else rf"({QUANTITY})" for place in PLACE.finditer(self.template)]
        pattern = "".join(re.escape(text) + group for text, group in zip(literals, [*groups, ""], strict=True))
        return re.fullmatch(pattern, sentence)

    def fault(self, match: re.Match[str], facts: Facts) -> str | None:
        """Say what is wrong with the sentence, if anything is."""
        for place, said in zip(PLACE.finditer(self.template), match.groups(), strict=True):
            name, is_text, unit = place.groups()
            true = facts.get(name)
            if true is None:
                return f"{name} is {said} here, and not known"
            if is_text:
                if said != true:
                    return f"{name} is {said} here, and {true} in truth"
            elif not reads_as(said, true, facts[unit] if unit else 1.0):
                return f"{name} is {said} here, and {true:g} in truth"
        return None if self.when(facts) else "what it says besides does not hold"


DEFINITIONS = (
    Claim(
        "Last-model cost: (all FLOPs that went into the parent + FLOPs to match) / FLOPs of the baseline, of the"
        " largest member: below 1 it is cheaper to grow it than to train it."
    ),
    Claim("Saving: 1 − FLOPs to match / FLOPs of the baseline."),
    Claim(
        "At 1 the family up to where a model matches costs what that model costs from scratch; above 1 it costs less."
    ),
)
"""What the pages of ladders and of studies both say their figures are."""


def reads_as(said: str, true: float, scale: float = 1.0) -> bool:
    """Tell whether a number as written is the true one, rounded."""
    number, _, unit = said.replace(",", "").replace("−", "-").partition(" ")
    scale *= 0.01 if unit == "%" else 1.0 if unit == "×" else SCALES[unit.removesuffix("FLOP")]
    mantissa, _, exponent = number.partition("e")
    last_digit = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
    return abs(float(number) * scale - true) <= 0.5 * last_digit * scale * (1 + 1e-6)


def cell_fault(cell: str, true: float | None, scale: float = 1.0, *, bound: bool = False, mark: bool = False) -> str:
    """Say what is wrong with a table's cell, if anything is; a dash stands for what is not known.

    Args:
        cell: The text.
        true: The value.
        scale: What one means.
        bound: Whether the value is a lower bound, which "≥" says.
        mark: Whether an asterisk belongs to it.
    """
    if true is None or cell == "–":
        return "" if true is None and cell == "–" else f"{cell} here, and {true} in truth"
    if cell.startswith("≥ ") != bound or cell.endswith("*") != mark:
        return f"{cell}: bound is {bound} and planned {mark} in truth"
    said = cell.removeprefix("≥ ").removesuffix("*").replace("+", "")
    return "" if reads_as(said, true, scale) else f"{cell} here, and {true:g} in truth"


def has_number(text: str) -> bool:
    """Tell whether a text holds a number; names such as l6w96 and GPT-2 are none."""
    return bool(re.search(r"(?<![\w./-])\d", text))


def faults(sentences: Sequence[str], *subjects: tuple[Sequence[Claim], Sequence[Facts]]) -> Iterator[str]:
    """Yield what is wrong: sentences that no claim covers, or none with the facts there are.

    A sentence must be a claim that holds of one of its subject's facts (of one rung, say).
    """
    for sentence in sentences:
        tried = [
            claim.fault(match, facts)
            for claims, some in subjects
            for claim in claims
            if (match := claim.match(sentence))
            for facts in some
        ]
        if not tried and has_number(sentence):
            yield f"no claim covers {sentence!r}"
        elif tried and None not in tried:
            yield f"{sentence!r}: {'; '.join(dict.fromkeys(map(str, tried)))}"


@dataclass(frozen=True)
class Document:
    """Markdown taken apart."""

    sentences: list[str]
    tables: list[list[list[str]]]
    """Rows of cells, the header first."""


def take_apart(markdown: str) -> Document:
    """Split Markdown into sentences and tables; code, pictures and metadata are left out."""
    text = re.sub(r"\A---\n.*?\n---\n", "", markdown, flags=re.DOTALL)
    text = re.sub(r"```.*?```|!\[.*?\]\([^)]*\)|<img[^>]*>", "", text, flags=re.DOTALL)
    text = re.sub(r"`[^`]*`", "CODE", text)
    text = re.sub(r"\[([^\]\\]*)\]\([^)]*\)", r"\1", text)
    sentences: list[str] = []
    tables: list[list[list[str]]] = [[]]
    paragraph: list[str] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("| "):
            cells = [_plain(cell) for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            if not all(re.fullmatch(r":?-+:?", cell) for cell in cells):
                tables[-1].append(cells)
            continue
        if tables[-1]:
            tables.append([])
        if line and not line.startswith(("- ", "> ", "#")):
            paragraph.append(line)
            continue
        if paragraph:
            sentences += split_sentences(_plain(" ".join(paragraph)))
        paragraph = []
        sentences += split_sentences(_plain(line.lstrip("->#").strip()))
    return Document(sentences=sentences, tables=[table for table in tables if table])


def split_sentences(text: str) -> list[str]:
    """Split a paragraph where one sentence ends and the next begins, be it with a rung's name such as l6w96."""
    return [part for part in re.split(r"(?<=[.!]) (?=[A-ZΦη\d]|l\d)", text) if part]


def _plain(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", re.sub(r"(?<!\\)\*+", "", text)).strip()
