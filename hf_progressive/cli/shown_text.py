"""What goes to a terminal: no character that it would obey, none that it cannot take, and no token."""

import io
import logging
import sys
import traceback
from types import TracebackType

from hf_progressive.config.credentials import without_tokens
from hf_progressive.storage.visible_text import visible


def shown_text(text: str) -> str:
    """Return a text as it may be shown."""
    return visible(without_tokens(text))


def take_every_character() -> None:
    """Let stdout and stderr write out a character that their encoding does not have, where they would raise.

    A terminal of Latin-1 has no Δ: what a command found, once all was done, would end in an error.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


class ShownFormatter(logging.Formatter):
    """Log messages as they may be shown: names of files and columns are anybody's."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a message."""
        return shown_text(super().format(record))


def show_traceback(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    """Write a traceback as it may be shown, in place of `sys.excepthook`: messages quote what files hold."""
    sys.stderr.write(shown_text("".join(traceback.format_exception(kind, error, where))))
