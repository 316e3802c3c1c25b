"""Errors that are not the user's: memory that does not suffice, and faults of the program."""

from types import TracebackType

_REPORT = "This is a fault of hf-progressive, not of yours: report it with what `hf-progressive doctor` prints."
_EXPECTED = (ValueError, OSError, FloatingPointError)  # are told in one line


def memory_shortage(error: Exception) -> str | None:
    """Say which memory did not suffice, an accelerator's or the machine's; None if that is not what the error is."""
    import torch

    from hf_progressive.distributed.batching import cpu_shortage

    return str(error) if isinstance(error, torch.OutOfMemoryError) else cpu_shortage(error)


class FaultNoted:
    """A block whose unexpected errors leave it with a note, at the end of their traceback, of what to do."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not isinstance(error, Exception) or isinstance(error, _EXPECTED):
            return
        if not (isinstance(error, RuntimeError | MemoryError) and memory_shortage(error)):
            error.add_note(_REPORT)
