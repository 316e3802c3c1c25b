"""Files that come from outside, read by libraries that raise whatever comes to their mind."""

import json
import zlib
from types import TracebackType
from typing import Any

_RAISED = (
    ValueError,
    TypeError,
    ArithmeticError,
    LookupError,
    AttributeError,
    RecursionError,
    EOFError,
    AssertionError,
    zlib.error,
)
"""What readers in Python raise where a value is not what they expect."""


class ReadingFromOutside:
    """A block that reads something: whatever is raised within it becomes a ValueError of one line.

    An OSError, which names its file and says what is wrong with it, passes; and so does what is no error of a value.

    Args:
        what: The file, and what it is for.
        remedy: What to do.
        also: Further exceptions that the library has of its own.
        passing: Kinds of those that are none of a value, and pass.

    >>> with ReadingFromOutside("config.json", "fetch it again"):
    ...     {}["model_type"]
    Traceback (most recent call last):
        ...
    ValueError: config.json: not valid (KeyError: 'model_type'); fetch it again
    """

    def __init__(
        self,
        what: str,
        remedy: str,
        *,
        also: tuple[type[Exception], ...] = (),
        passing: tuple[type[Exception], ...] = (),
    ):
        self._what, self._remedy, self._also, self._passing = what, remedy, also, passing

    def __enter__(self) -> None:
        """Begin to read."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Raise the ValueError in place of what was raised."""
        if kind is None or error is None or issubclass(kind, self._passing):
            return
        # Libraries in Rust (tokenizers) raise the bare class.
        if kind is Exception or issubclass(kind, (*_RAISED, *self._also)):
            reason = " ".join(str(error).split())[:_LONGEST_REASON] or kind.__name__
            told = reason if issubclass(kind, ValueError) or kind is Exception else f"{kind.__name__}: {reason}"
            raise ValueError(f"{self._what}: not valid ({told}); {self._remedy}") from error


_LONGEST_REASON = 300


def parse_json(text: str | bytes, where: str, **options: Any) -> Any:
    """Read JSON, with the options of `json.loads`; what is wrong is a ValueError of one line that says where."""
    try:
        return json.loads(text.decode("utf-8") if isinstance(text, bytes) else text, **options)
    except RecursionError:
        raise ValueError(f"{where}: is nested too deeply; it is damaged, or no file of this kind") from None
    except ValueError as error:  # not JSON, not UTF-8, or a number of thousands of digits
        raise ValueError(f"{where}: not valid JSON ({error}); it may be truncated") from error
