"""What goes to a terminal: no character that it would obey, and no token."""

import logging

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
