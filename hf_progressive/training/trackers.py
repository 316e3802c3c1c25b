"""Training runs apart from one another in trackers of experiments that Trainer reports to."""

import contextlib
import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from hf_progressive import storage

_IDENTITY_NAME = "wandb.json"
"""File beside a run's checkpoints with the run's identifier in Weights & Biases."""


@contextlib.contextmanager
def tracked_apart(args: TrainingArguments) -> Iterator[None]:
    """Open a run of its own in Weights & Biases for a training, or the one that it goes on with, and close it.

    Trainer's callback opens a run unless there is one and never closes it, so that all training runs of a process
    would go into the first one's, and one that goes on would open a second of its name:
    https://github.com/huggingface/transformers, WandbCallback.setup. A run that was open before stays so, and takes
    them all. Trackio's callback does all of this itself.
    """
    before = _open_run()
    if before is None and "wandb" in args.report_to and args.process_index == 0:
        _open(args)
    try:
        yield
    except BaseException:
        _close(before, failed=True)
        raise
    _close(before, failed=False)


def _open_run() -> Any:
    return getattr(sys.modules.get("wandb"), "run", None)  # nothing is open that was not imported


def _open(args: TrainingArguments) -> None:
    wandb: Any = sys.modules["wandb"]  # which Trainer's callback has imported
    file = Path(args.output_dir) / _IDENTITY_NAME
    if not file.exists():
        storage.write_json(file, {"id": secrets.token_hex(8)})
    wandb.init(
        project=os.environ.get("WANDB_PROJECT", "huggingface"),  # as the callback does
        name=args.run_name,
        id=os.environ.get("WANDB_RUN_ID") or str(storage.read_json(file).get("id") or secrets.token_hex(8)),
        resume=os.environ.get("WANDB_RESUME", "allow"),
    )


def _close(before: Any, *, failed: bool) -> None:
    run = _open_run()
    if run is not None and run is not before:
        run.finish(exit_code=int(failed))
