"""Errors that are not the user's: memory that does not suffice, and faults of the program."""

from types import TracebackType

_REPORT = "This is a fault of hf-progressive, not of yours: report it with what `hf-progressive doctor` prints."
_EXPECTED = (ValueError, OSError, FloatingPointError)  # are told in one line


def is_out_of_memory(error: RuntimeError) -> bool:
    """Tell whether a device's memory did not suffice."""
    import torch

    return isinstance(error, torch.OutOfMemoryError)


class FaultNoted:
    """A block whose unexpected errors leave it with a note, at the end of their traceback, of what to do."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not isinstance(error, Exception) or isinstance(error, _EXPECTED):
            return
        if not (isinstance(error, RuntimeError) and is_out_of_memory(error)):
            error.add_note(_REPORT)
