"""The progress bar of a training run."""

from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback


class ProgressBar(TrainerCallback):
    """One bar per run: step, time left, training loss, tokens per second, MFU, validation bits per byte.

    Args:
        title: What stands before it.
        bits_per_nat_token: Bits per byte over the validation loss in nats per token.
    """

    def __init__(self, title: str, bits_per_nat_token: float) -> None:
        self.title, self.bits_per_nat_token = title, bits_per_nat_token
        self.bar: Any = None
        self.shown: dict[str, str] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show the bar.

        Args:
            args: As for any callback.
            state: As for any callback.
            control: As for any callback.
            **kwargs: As for any callback.
        """
        if state.is_world_process_zero:
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.title, unit="step")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move it on.

        Args:
            args: As for any callback.
            state: As for any callback.
            control: As for any callback.
            **kwargs: As for any callback.
        """
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Show the figures of a log.

        Args:
            args: As for any callback.
            state: As for any callback.
            control: As for any callback.
            logs: The figures.
            **kwargs: As for any callback.
        """
        if self.bar is None or not logs:
            return
        if "loss" in logs:
            self.shown["loss"] = f"{float(logs['loss']):.3f}"
        if "tokens_per_second" in logs:
            self.shown["tokens/s"] = tqdm.format_sizeof(logs["tokens_per_second"])
        if "mfu" in logs:
            self.shown["MFU"] = f"{logs['mfu']:.1%}"
        if "eval_loss" in logs:
            self.shown["bits/byte"] = f"{logs['eval_loss'] * self.bits_per_nat_token:.4f}"
        self.bar.set_postfix(self.shown)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take it away.

        Args:
            args: As for any callback.
            state: As for any callback.
            control: As for any callback.
            **kwargs: As for any callback.
        """
        if self.bar is not None:
            self.bar.close()
            self.bar = None
