"""Numbers on the command line: of their type and in range, or argparse says which option is wrong."""

import argparse
from collections.abc import Callable
from typing import Any

from hf_progressive.config import ranges, strict_yaml


def number(hint: Any) -> Callable[[str], Any]:
    """Return what reads an option's value, a number of a type with its range."""

    def read(text: str) -> Any:
        try:
            return strict_yaml.convert(hint, int(text) if text.lstrip("-").isdecimal() else text, "")
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error).removeprefix(": ")) from None

    return read


whole, seed = number(ranges.Whole), number(ranges.Seed)
positive = number(ranges.Positive)
