"""What all records share: plain values for JSON, and one strict way back."""

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Self

from hf_progressive.config.ranges import Range
from hf_progressive.config.strict_yaml import build
from hf_progressive.storage import read_json

FORMAT: Final = 1
"""The layout of rung.json, ladder.json and study.json that this version writes and reads."""

Count = Annotated[int, Range(0)]
"""A whole number of 0 or more."""

Amount = Annotated[float, Range(0)]
"""A finite number of 0 or more: FLOPs, seconds, bits per byte."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """A JSON object: fields are named like its keys."""

    others: dict[str, Any] = field(default_factory=dict, repr=False)
    """Keys that this version does not know; they are kept as they are."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build a record of plain values, every one checked; a `ValueError` names the first wrong one by its path."""
        return build(cls, values, exact=True)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file that holds a record.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The record is damaged, of another format, or lacks a value; the message names file and value.
        """
        try:
            content = cls._current(read_json(path))
            if (found := content.get("format", FORMAT)) != FORMAT:
                raise ValueError(f"format: {found!r} is not {FORMAT}, which this version reads; update hf_progressive")
            if "format" not in content:
                raise ValueError("format is missing; this is another file, or it was cut")
            return cls.from_dict(content)
        except RecursionError:
            raise ValueError(f"{path}: is nested too deeply for a record") from None
        except ValueError as error:
            raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from None

    @classmethod
    def _current(cls, content: dict[str, Any]) -> dict[str, Any]:
        # The content with the names that keys have now.
        return content

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        names = (field.name for field in dataclasses.fields(self) if field.name != "others")
        return {**{name: _plain(getattr(self, name)) for name in names}, **_plain(self.others)}


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
