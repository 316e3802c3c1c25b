"""What a ladder or a study has found, as a reader meets it first: the answer, its numbers, and how sure they are."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One number to be seen first."""

    title: str
    """What it is."""

    value: str
    """The number."""

    note: str
    """What it is made of."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """The answer to "what does it save, and how sure are you?"."""

    headline: str
    """The answer in one sentence."""

    explanation: str
    """What was compared, and the numbers behind the answer."""

    tiles: tuple[Tile, ...] = ()
    """The numbers to be seen first; none before a model has been grown."""

    certainty: tuple[str, ...] = ()
    """How sure: each thing that bears on it, in a sentence."""

    unfinished: str | None = None
    """What has yet to be trained; None if nothing."""
