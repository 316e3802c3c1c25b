"""How deeply a JSON file is nested: beyond some limit the parser, which is C++, ends the process without a word."""

import re
from pathlib import Path

import numpy as np

DEEPEST_JSON = 2000
"""Levels of nesting that a corpus may have: the parser overflows its stack at about ten times that."""

_CHUNK_BYTES = 1 << 24
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')


def require_shallow(path: str) -> None:
    """Raise a ValueError if a local JSON file is nested more deeply than `DEEPEST_JSON`."""
    if Path(path).is_file() and _is_deeper(path, within_strings=True) and _is_deeper(path, within_strings=False):
        raise ValueError(f"is nested more than {DEEPEST_JSON} levels deep; leave that line out")


def _is_deeper(path: str, *, within_strings: bool) -> bool:
    # Brackets in texts count too at first, which is fast and can only find too much.
    depth = lowest = 0
    with open(path, "rb") as file:
        while lines := file.readlines(_CHUNK_BYTES):
            content = b"".join(lines)
            if not within_strings:
                content = _STRING.sub(b"", content)
            codes = np.frombuffer(content, np.uint8)
            opened = (codes == ord("[")) | (codes == ord("{"))
            closed = (codes == ord("]")) | (codes == ord("}"))
            steps = opened[opened | closed] * 2 - 1  # +1 and −1, in their order
            if len(steps) == 0:
                continue
            depths = depth + np.cumsum(steps)
            lows = np.minimum(np.minimum.accumulate(depths), lowest)  # what closes more than was opened is text
            if int((depths - lows).max()) > DEEPEST_JSON:
                return True
            depth, lowest = int(depths[-1]), int(lows[-1])
    return False
