"""Measuring a checkpoint that no trainer holds: a model trained elsewhere, an average of a trunk's weights."""

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_progressive.data import token_byte_lengths
from hf_progressive.evaluation.bits_per_byte import bits_per_byte
from hf_progressive.ladder.rung_work import RungWork
from hf_progressive.training.precision import evaluation_precision


def measure(work: RungWork) -> None:
    """Measure a checkpoint on the ladder's validation documents, in the precision in which the rungs train."""
    state, corpus, training = work.run.state, work.run.corpus, work.training
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(work.trained, dtype=torch.float32)
    with evaluation_precision(training, state.device):
        work.measured = bits_per_byte(
            model.to(state.device),
            corpus.validation,
            token_byte_lengths(corpus.tokenizer),
            # On a CPU, the size of a batch is not chosen by memory.
            batch_size=training.micro_batch_size if state.device.type == "cpu" else None,
            progress=state.is_main_process,
        )
