"""Tokens that are added to a tokenizer in the call that grows the vocabulary to hold them."""

import contextlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from hf_progressive.config.ranges import shown
from hf_progressive.growth.family_table import Family
from hf_progressive.storage import ReadingFromOutside, read_json

logger = logging.getLogger(__name__)

_ANY_OF = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")


def add_tokens(folder: Path, tokens: Sequence[str], *, rows: int) -> Any:
    """Return a checkpoint's tokenizer with further tokens; those that it has already stay as they are.

    Where the checkpoint has more `rows` than its tokenizer tokens, the first new ones get the parent's, which is said.

    Raises:
        ValueError: A token is empty or no text, a text stands in the place of a list, or the checkpoint has no
            tokenizer.
    """
    if isinstance(tokens, str):
        raise ValueError(f"add_tokens is the text {shown(tokens)}; give a list of tokens")
    tokens = list(tokens)
    if others := [token for token in tokens if not isinstance(token, str)]:
        raise ValueError(f"add_tokens holds {shown(others[0])}; give texts, one a token")
    if not all(token.strip() for token in tokens):
        raise ValueError("add_tokens: a token is empty; give one a line")
    tokenizer = tokenizer_of(folder, "that tokens can be added to")
    before = set(tokenizer.get_vocab())
    tokenizer.add_tokens(list(tokens))
    new = sorted(number for token, number in tokenizer.get_vocab().items() if token not in before)
    if not new:
        logger.warning("%s: its tokenizer has all of the tokens already; none is added", folder)
    elif new[0] < rows:
        spare = [number for number in new if number < rows]
        logger.warning(
            "%s: has %d rows, more than its tokenizer has tokens: %d of %d new tokens get rows of the parent as they"
            " are, %d to %d", folder, rows, len(spare), len(new), spare[0], spare[-1]
        )  # fmt: skip
    return tokenizer


def tokenizer_of(folder: Path, purpose: str) -> Any:
    """Return a checkpoint's tokenizer.

    Raises:
        ValueError: It has none.
    """
    if not any((folder / name).is_file() for name in _ANY_OF):  # some classes come up empty without their files
        raise ValueError(f"{folder}: has no tokenizer {purpose}; put its files there")
    with ReadingFromOutside(f"{folder}: its tokenizer", "save it again, or fetch its files again"):
        return AutoTokenizer.from_pretrained(folder)


def holding(tokenizer: Any, family: Family, source: Any, target: Any) -> Any:
    """Return the target with rows for all of a tokenizer's tokens, unless it names some, which must be enough.

    Raises:
        ValueError: The target names fewer.
    """
    field, needed = family.size_fields["vocab"], max(tokenizer.get_vocab().values()) + 1
    named = target.get(field) if isinstance(target, Mapping) else getattr(target, field)
    rows = getattr(source, field)
    if isinstance(target, Mapping) and named is None:
        return {**target, field: max(rows, needed)} if needed > rows else target
    if isinstance(named, int) and named < needed:
        raise ValueError(
            f"{field}={named}: the tokenizer has {needed} entries with the added tokens; take that or more"
        )
    return target


def warn_of_missing_rows(folder: Path, rows: int) -> None:
    """Warn if the tokenizer.json of a checkpoint has entries beyond a vocabulary of so many rows."""
    path = folder / "tokenizer.json"
    highest = -1
    with contextlib.suppress(ValueError, OSError), ReadingFromOutside(str(path), "save the tokenizer again"):
        held = read_json(path)
        entries = held["model"]["vocab"]
        ids = entries.values() if isinstance(entries, Mapping) else range(len(entries))
        highest = max(int(number) for number in (*ids, *(added["id"] for added in held.get("added_tokens") or ())))
    if highest >= rows:
        logger.warning(
            "%s: its tokenizer has %d entries and the grown model %d rows for them; grow the vocabulary to that many",
            folder, highest + 1, rows
        )  # fmt: skip
