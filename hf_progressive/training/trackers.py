"""Training runs apart from one another in trackers of experiments that Trainer reports to."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def tracked_apart() -> Iterator[None]:
    """Close the run that a training opened in Weights & Biases, so that the next one opens its own.

    Trainer's callback opens a run unless there is one and never closes it, so that all training runs of a process
    would go into the first one's: https://github.com/huggingface/transformers, WandbCallback.setup. A run that was
    open before stays so, and takes them all. Trackio's callback closes its runs itself.
    """
    before = _open_run()
    try:
        yield
    except BaseException:
        _close(before, failed=True)
        raise
    _close(before, failed=False)


def _open_run() -> Any:
    return getattr(sys.modules.get("wandb"), "run", None)  # nothing is open that was not imported


def _close(before: Any, *, failed: bool) -> None:
    run = _open_run()
    if run is not None and run is not before:
        run.finish(exit_code=int(failed))
