"""What goes to a terminal: no character that it would obey, and no token."""

import logging
import sys
import traceback
from types import TracebackType

from hf_progressive.config.credentials import without_tokens
from hf_progressive.storage.visible_text import visible


def shown_text(text: str) -> str:
    """Return a text as it may be shown."""
    return visible(without_tokens(text))


class ShownFormatter(logging.Formatter):
    """Log messages as they may be shown: names of files and columns are anybody's."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a message."""
        return shown_text(super().format(record))


def show_traceback(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    """Write a traceback as it may be shown, in place of `sys.excepthook`: messages quote what files hold."""
    sys.stderr.write(shown_text("".join(traceback.format_exception(kind, error, where))))
