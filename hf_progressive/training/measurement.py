"""Measuring a checkpoint just as a training run measures itself: an average's figure goes into the run's own curve."""

import dataclasses
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from hf_progressive.data import Corpus
from hf_progressive.distributed.float32_products import own_float32_products
from hf_progressive.training.precision import blocks_of_one_size
from hf_progressive.training.trainer import ProgressiveTrainer
from hf_progressive.training.training_run import TrainingRun, block_trainer, training_arguments

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """What one validation of a checkpoint gave."""

    loss: float
    """Nats per token."""

    bits_per_byte: float
    """Bits per byte."""

    tokens: int
    """Tokens read."""


@own_float32_products()
def measure_like_run(run: TrainingRun, checkpoint: Path, corpus: Corpus) -> Measurement:
    """Measure a checkpoint of a run's model, with the batches, the precision and the processes of the run."""
    trainer = block_trainer(
        training_arguments(run, corpus.context),
        AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32),
        corpus.validation,
        context=corpus.context,
        penalty=None,
        callbacks=[],
        eval_dataset=corpus.validation,
        processing_class=corpus.tokenizer,
    )
    _let_evaluate_alone(trainer)
    with blocks_of_one_size(trainer):
        loss = float(trainer.evaluate()["eval_loss"])
    tokens = len(corpus.validation) * corpus.context
    return Measurement(loss=loss, bits_per_byte=loss * corpus.bits_per_nat_token, tokens=tokens)


def _let_evaluate_alone(trainer: ProgressiveTrainer) -> None:
    # Without training before it, Accelerate divides no model by FSDP2, and Trainer takes no DeepSpeed below ZeRO-3.
    accelerator, model = trainer.accelerator, trainer.model
    if accelerator.is_fsdp2:
        trainer.model, _ = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.0))
        trainer.model_wrapped = trainer.model
    elif trainer.is_deepspeed_enabled and not accelerator.state.deepspeed_plugin.hf_ds_config.is_zero3():
        trainer.is_deepspeed_enabled = False  # every process has the whole model, as in training
        model.to(_HALF.get(accelerator.mixed_precision, torch.float32))
