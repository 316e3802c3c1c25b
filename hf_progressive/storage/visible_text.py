r"""Text that comes from outside, shown and not executed: by a terminal, a browser or whoever reads a card.

A terminal obeys escape sequences, and every reader is misled by characters that turn the direction of text or are
seen by nobody. The names of files, rungs and columns may hold any of them.
"""

import re

_EXECUTED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls, but tabs and the ends of lines
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # the direction of text
    "\u2028\u2029\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"  # further ends of lines, and what nobody sees
    "\ud800-\udfff]"  # bytes of a file's name that are no UTF-8, which nothing can be written with
)


def visible(text: str) -> str:
    r"""Return a text in which every character that would be obeyed and not seen is written out; lines stay.

    >>> visible("a\x1b[31mred\u202e\r")
    'a\\x1b[31mred\\u202e\\x0d'
    """
    return _EXECUTED.sub(lambda found: _written_out(ord(found[0])), text)


def _written_out(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
