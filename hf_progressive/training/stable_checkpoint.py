"""The weights from before the decay, kept beside the final ones."""

import os
from typing import Any

from transformers import TrainerCallback

from hf_progressive.training.trainer import ProgressiveTrainer


class KeepStableCheckpoint(TrainerCallback):
    """Keep the weights as they are where the decay begins: the model to continue training from.

    Args:
        trainer: The trainer it is added to, with `trainer.add_callback`.
        folder: Where the model and tokenizer go, as `save_pretrained` writes them.
        step: The optimizer step after which to save; for `warmup_stable_decay`, `max_steps - num_decay_steps`.
    """

    def __init__(self, trainer: ProgressiveTrainer, folder: str | os.PathLike[str], step: int) -> None:
        self._trainer, self._folder, self._step = trainer, folder, step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save if this was the step.

        Args:
            args: As for any callback.
            state: As for any callback.
            control: As for any callback.
            **kwargs: As for any callback.
        """
        if state.global_step == self._step:
            self._trainer.save_pretrained_whole(self._folder)
