"""The trainer of a ladder's runs, before what it reports, saves and validates: a model that learns from blocks."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel, TrainerCallback, default_data_collator
from transformers.trainer_callback import DefaultFlowCallback, PrinterCallback, ProgressCallback

from hf_progressive.penalty import InheritancePenalty
from hf_progressive.training.arguments import ProgressiveTrainingArguments
from hf_progressive.training.block_attention import attend_without_masks
from hf_progressive.training.trainer import ProgressiveTrainer


def block_trainer(
    args: ProgressiveTrainingArguments,
    model: PreTrainedModel,
    blocks: Any,
    *,
    context: int,
    penalty: InheritancePenalty | None,
    callbacks: Sequence[TrainerCallback],
    **options: Any,
) -> ProgressiveTrainer:
    """Build the trainer of an run: a model that learns from blocks of one length.

    Args:
        args: From `training_arguments`.
        model: The initial model; from now on it must see such blocks alone.
        blocks: What it trains on.
        context: Tokens per block.
        penalty: Φ, in the coordinates of the model; None for none.
        callbacks: What evaluates, saves, logs and stops it: nothing else does.
        **options: As for `Trainer`.

    Returns:
        The trainer.
    """
    attend_without_masks(model, context)
    trainer = ProgressiveTrainer(
        model=model,
        args=args,
        train_dataset=blocks,
        data_collator=default_data_collator,  # blocks are of one length: nothing to pad, and GPT-2 has no pad token
        penalty=penalty,
        callbacks=list(callbacks),
        **options,
    )
    for stock in (DefaultFlowCallback, ProgressCallback, PrinterCallback):
        trainer.remove_callback(stock)
    return trainer
