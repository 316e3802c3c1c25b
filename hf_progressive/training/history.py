"""A training run's curve and log, out of what the trainer has logged."""

from collections.abc import Iterable, Mapping
from typing import Any

from hf_progressive import storage

SPEEDS = ("tokens_per_second", "mfu")
"""Keys of a log that differ between equal runs; what they learned does not."""


def validation_curve(
    history: Iterable[Mapping[str, Any]],
    *,
    batch_tokens: int,
    flops_per_token: float,
    flops_before: float,
    bits_per_nat_token: float,
) -> list[dict[str, Any]]:
    """Return the validations: step, tokens, flops, loss, bits_per_byte."""
    return [
        {
            "step": entry["step"],
            "tokens": entry["step"] * batch_tokens,
            "flops": flops_before + entry["step"] * batch_tokens * flops_per_token,
            "loss": entry["eval_loss"],
            "bits_per_byte": entry["eval_loss"] * bits_per_nat_token,
        }
        for entry in history
        if "eval_loss" in entry
    ]


def training_log(history: Iterable[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return what was logged along the way, None for what was not finite, and apart from it the speeds.

    Keys are in the order of the alphabet, as Trainer's state has them when it was read from a checkpoint: a run that
    was resumed publishes the same file.
    """
    entries = [entry for entry in history if "loss" in entry and "eval_loss" not in entry]
    log = [
        {key: storage.finite_or_none(value) for key, value in sorted(e.items()) if key not in SPEEDS} for e in entries
    ]
    return log, [{key: entry[key] for key in ("step", *SPEEDS) if key in entry} for entry in entries]
