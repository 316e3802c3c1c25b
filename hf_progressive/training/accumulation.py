"""Whether a step's loss is the mean over its micro-batches, against which λ and γ are weighed."""

import logging
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from hf_progressive.distributed.evaluation_mode import evaluation_mode

logger = logging.getLogger(__name__)


def warn_of_undivided_loss(trainer: Trainer, model: nn.Module, inputs: dict[str, Any], items: Any) -> None:
    """Warn if Trainer adds up the mean losses of micro-batches where it should average them.

    It leaves the division to a model that takes `num_items_in_batch` (`Trainer.training_step`); many classifiers take
    it and do not use it. That is found out by one example's loss under two numbers. Causal language models do use it.

    Args:
        trainer: The trainer, with the stock loss.
        model: The model without wrappers.
        inputs: A micro-batch, on the model's device.
        items: `num_items_in_batch` of the step.
    """
    parts = trainer.args.gradient_accumulation_steps
    by_model = trainer.model_accepts_loss_kwargs and items is not None and not trainer.compute_loss_func
    otherwise = trainer.label_smoother or getattr(trainer, "loss_is_scaled_for_ga", None) is not None
    if parts == 1 or not by_model or otherwise or getattr(trainer, "_loss_shifts_labels", False):
        return
    one = {name: value[:1] if isinstance(value, Tensor) and value.ndim else value for name, value in inputs.items()}
    with evaluation_mode(model), trainer.compute_loss_context_manager():
        losses = []
        for count in (1, 2):
            output = model(**one, num_items_in_batch=torch.tensor(count, device=trainer.args.device))
            losses.append(output["loss"] if isinstance(output, dict) else output[0])
    if bool(losses[0] == losses[1]):
        name = type(model).__name__
        logger.warning(
            "%s does not divide its loss by num_items_in_batch, and Trainer adds up that of %d micro-batches: λ and γ "
            "weigh 1/%d of what they do without accumulation; multiply them by %d", name, parts, parts, parts
        )  # fmt: skip
