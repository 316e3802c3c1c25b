"""SIGTERM ends a training after a whole step, on all processes after the same one."""

import os
import signal

import pytest
import torch
from trainer_fixtures import assert_same_weights, resumable_trainer, weights
from transformers import TrainerCallback

from hf_progressive.distributed.stopping import StopVote
from hf_progressive.training.checkpoints import newest_complete_checkpoint
from hf_progressive.training.trainer import TrainingInterrupted


class PairOfProcesses:
    """The other process of two votes as it is told."""

    num_processes, device = 2, torch.device("cpu")

    def __init__(self):
        self.other, self.reductions = 0.0, 0

    def reduce(self, wish, reduction):
        self.reductions += 1
        return wish + self.other


def test_sigterm_saves_a_checkpoint_that_continues_to_the_same_bits(tmp_path):
    whole = resumable_trainer(tmp_path / "whole", save_strategy="no")
    whole.train()

    class Terminate(TrainerCallback):
        def on_substep_end(self, args, state, control, **kwargs):
            if state.global_step == 4:
                signal.raise_signal(signal.SIGTERM)

    handler = signal.getsignal(signal.SIGTERM)
    told = resumable_trainer(tmp_path / "told", save_steps=100)
    told.add_callback(Terminate())
    with pytest.raises(TrainingInterrupted) as caught:
        told.train()
    assert caught.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is handler
    assert newest_complete_checkpoint(tmp_path / "told").name == "checkpoint-5"  # the step under way was finished
    resumed = resumable_trainer(tmp_path / "told", save_steps=100)
    resumed.train(resume_from_checkpoint=True)
    assert_same_weights(weights(resumed.model), weights(whole.model))


def test_sigterm_while_waiting_for_the_others_at_the_end_is_not_lost(tmp_path, monkeypatch):
    """It comes after this process has said that it was not told."""

    def wait(vote, told):
        assert not told
        os.kill(os.getpid(), signal.SIGTERM)
        return False

    monkeypatch.setattr(StopVote, "at_the_end", wait)
    came = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        resumable_trainer(tmp_path, max_steps=2).train()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert came == [signal.SIGTERM]


def test_steps_of_several_micro_batches_are_voted_on_one_by_one(tmp_path):
    trainer = resumable_trainer(tmp_path)
    assert trainer.args.gradient_accumulation_steps > 1
    trainer._vote._accelerator = pair = PairOfProcesses()
    for step in range(3):
        trainer._vote.stops(step, told=False)
    assert pair.reductions == 3


def test_processes_agree_to_stop_at_the_same_step_and_reduce_every_fourth():
    """Two processes, of which only one is told in step 5, both stop in step 9, one after the vote."""
    pairs = PairOfProcesses(), PairOfProcesses()
    votes = [StopVote(pair) for pair in pairs]
    for step in range(10):
        told = step >= 5
        pairs[1].other = float(told)  # process 0 is told, process 1 learns of it
        assert [vote.stops(step, told and index == 0) for index, vote in enumerate(votes)] == [step == 9] * 2
    assert [pair.reductions for pair in pairs] == [3, 3]
