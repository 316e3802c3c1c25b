"""One measurement of a checkpoint, without training before it, on whatever engine it is launched with."""

import json
from types import SimpleNamespace
from unittest import mock

import engine_run
from accelerate import PartialState

from hf_progressive.config import TrainingConfig
from hf_progressive.data.blocks import as_block
from hf_progressive.training import measurement
from hf_progressive.training.training_run import TrainingRun


def measure(folder, checkpoint):
    """Measure 13 blocks, which two processes share unequally; leave the loss of every process."""
    training = TrainingConfig(batch_tokens=64, micro_batch_size=2)
    run = TrainingRun(
        title="measured", init=checkpoint, folder=folder, training=training, learning_rate=1e-3, steps=4,
        first_block=0, flops_per_token=1.0,
    )  # fmt: skip
    blocks = [as_block(block) for block in engine_run.Blocks(count=13).blocks]
    corpus = SimpleNamespace(context=16, validation=blocks, tokenizer=None, bits_per_nat_token=0.5)
    found = measurement.measure_like_run(run, checkpoint, corpus)
    (folder / f"measured-{PartialState().process_index}.json").write_text(json.dumps(vars(found)))
    return found


def pretend_after_arguments():
    """Arguments choose the processes' backend, which is a CPU's; the trainer then finds an accelerator."""
    build = measurement.training_arguments

    def arguments_then_pretence(*args):
        arguments = build(*args)
        engine_run.pretend_to_be_on_an_accelerator()
        return arguments

    return mock.patch.object(measurement, "training_arguments", arguments_then_pretence)
