"""Token ids on the disk in parts: one process writes them in order, any number map them into memory.

A part is whole or absent: its tokens stand on the disk before its record does. The record holds the position of the
source behind it, so that a process that was killed loses what it had not written yet, and nothing else.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hf_progressive import storage
from hf_progressive.storage.locks import remove_unless_in_use

PART_TOKENS = 1 << 23
"""Tokens of a part: what a killed process loses at the most, some seconds of work."""

_END_NAME = "end.json"
_MAPPED_PARTS = 16

Tokens = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Some documents, tokenized."""

    train: Tokens
    """Token ids of those to train on, one behind the other, (tokens,)."""

    held_out: Tokens
    """Token ids of those held out, likewise."""

    counts: Mapping[str, int]
    """Documents and bytes."""

    position: Mapping[str, Any]
    """The position of the source behind them, as plain values."""


@dataclass
class _Unwritten:
    """What will be the next part."""

    train: list[Tokens] = field(default_factory=list)
    held_out: list[Tokens] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    position: Mapping[str, Any] | None = None

    def add(self, encoded: Encoded) -> None:
        self.train.append(encoded.train)
        self.held_out.append(encoded.held_out)
        self.counts.update(encoded.counts)
        self.tokens += len(encoded.train) + len(encoded.held_out)
        self.position = encoded.position


class TokenParts:
    """The parts in a folder, which the first one creates: ids of `dtype`, about `PART_TOKENS` of them in each."""

    def __init__(self, folder: Path, *, dtype: str):
        self.folder = folder
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self._records: list[dict[str, Any]] = []
        self._ends: list[int] = []  # tokens up to and including each part
        self._maps: dict[int, Tokens] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Another process maps the files itself.
        return {**self.__dict__, "_maps": {}}

    def refresh(self) -> None:
        """Look for parts that were written since."""
        while (record := self.folder / f"part-{len(self._records):06d}.json").exists():
            found = storage.read_json(record)
            with storage.ReadingFromOutside(str(record), "remove the corpus's folder to prepare it again"):
                tokens = int(found["tokens"])
            self._records.append(found)
            self._ends.append(self.tokens + tokens)

    @property
    def tokens(self) -> int:
        """Tokens to train on in the parts that have been seen."""
        return self._ends[-1] if self._ends else 0

    @property
    def is_whole(self) -> bool:
        """Whether the source was read to its end, so that nothing will be added."""
        return (self.folder / _END_NAME).exists()

    @property
    def position(self) -> Mapping[str, Any] | None:
        """The position of the source behind the last part; None before the first."""
        return self._records[-1]["position"] if self._records else None

    @property
    def counts(self) -> Counter[str]:
        """Documents and bytes of all parts."""
        return sum((Counter(record["counts"]) for record in self._records), Counter())

    def paths(self, kind: str = "part") -> list[Path]:
        """Return the files of token ids in order: kind `part` for those to train on, `held-out` for the others."""
        return [self.folder / f"{kind}-{number:06d}.bin" for number in range(len(self._records))]

    def read(self, start: int, stop: int) -> Tokens:
        """Return a stretch of tokens, (stop − start,), counted over all parts; `stop` is no more than `tokens`."""
        pieces = []
        while start < stop:
            number = bisect_right(self._ends, start)  # passes over parts without tokens
            before = self._ends[number - 1] if number else 0
            end = min(stop, self._ends[number])
            pieces.append(self._mapped(number)[start - before : end - before])
            start = end
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _mapped(self, number: int) -> Tokens:
        if number not in self._maps:
            if len(self._maps) == _MAPPED_PARTS:
                del self._maps[next(iter(self._maps))]
            self._maps[number] = np.memmap(self.folder / f"part-{number:06d}.bin", self.dtype, mode="r")
        return self._maps[number]

    def write(self, encoded: Iterable[Encoded], *, until: int | None = None) -> None:
        """Write parts until the documents end or there are tokens enough; no other process may write meanwhile.

        `encoded` goes on from `position`; `until` counts tokens to train on, None reads to the end.
        """
        for leftover in self.folder.glob(".*.tmp"):
            remove_unless_in_use(leftover)
        unwritten = _Unwritten()
        for documents in encoded:
            unwritten.add(documents)
            enough = until is not None and self.tokens + sum(map(len, unwritten.train)) >= until
            if enough or unwritten.tokens >= PART_TOKENS:
                self._append(unwritten)
                unwritten = _Unwritten()
            if enough:
                return
        if unwritten.position is not None:
            self._append(unwritten)
        storage.write_json(self.folder / _END_NAME, {"tokens": self.tokens})

    def _append(self, part: _Unwritten) -> None:
        number = len(self._records)
        for kind, arrays in (("part", part.train), ("held-out", part.held_out)):
            path = self.folder / f"{kind}-{number:06d}.bin"
            with storage.atomic_file(path) as temporary, temporary.open("wb") as file:
                for array in arrays:
                    array.astype(self.dtype).tofile(file)
        tokens = sum(map(len, part.train))
        record = {"tokens": tokens, "counts": dict(part.counts), "position": part.position}
        storage.write_json(self.folder / f"part-{number:06d}.json", record)
        self._records.append(record)
        self._ends.append(self.tokens + tokens)
