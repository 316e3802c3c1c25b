"""A loss scaler, as fp16 needs one: exact where nothing overflows, a step skipped where something does, not for ever.

Accelerate gives a processor none, so it is put in; products stay in float32, where a power of two scales exactly.
"""

import pytest
import torch
from accelerate.utils import AutocastKwargs
from torch.utils.data import Subset
from trainer_fixtures import Blocks, arguments, assert_same_weights, build_model, build_penalty, weights

from hf_progressive.training.trainer import NonFiniteLossError, ProgressiveTrainer

BATCH = 8
SKIPPED = 2
"""The batch, from 0, whose gradient overflows."""


class Overflowing(ProgressiveTrainer):
    """The gradient of some batches is infinite, before it is unscaled."""

    overflows: tuple[int, ...] = ()

    def training_step(self, model, *args, **kwargs):
        loss = super().training_step(model, *args, **kwargs)
        if self.state.global_step in self.overflows:
            model.lm_head.weight.grad[0, 0] = float("inf")
        return loss


@pytest.fixture
def build(tmp_path, monkeypatch):
    def build(*, scale=None, overflows=(), blocks=None, apply="gradient", **changes):
        model = build_model()
        settings = {"train_sampling_strategy": "sequential", "lr_scheduler_type": "constant"} | changes
        trainer = Overflowing(
            model,
            arguments(tmp_path, **settings),
            train_dataset=Blocks() if blocks is None else blocks,
            penalty=build_penalty(model, apply=apply),
        )
        trainer.overflows = overflows
        if scale is not None:
            accelerator = trainer.accelerator
            monkeypatch.setattr(accelerator.state, "_mixed_precision", "fp16")
            accelerator.native_amp, accelerator.autocast_handler = True, AutocastKwargs(enabled=False)
            accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        return trainer

    return build


@pytest.mark.parametrize("apply", ["gradient", pytest.param("proximal", marks=pytest.mark.slow)])
def test_a_step_that_overflows_is_left_out_and_all_others_are_exact(build, tmp_path, apply):
    kept = [row for row in range(len(Blocks())) if row // BATCH != SKIPPED]
    plain = build(blocks=Subset(Blocks(), kept), apply=apply, max_steps=5)
    plain.train()
    saving = {"save_strategy": "steps", "save_steps": SKIPPED + 1, "max_steps": 6, "apply": apply}
    scaled = build(scale=2.0**16, overflows=(SKIPPED,), **saving)
    scaled.train()
    assert_same_weights(weights(scaled.model), weights(plain.model))
    assert scaled.accelerator.scaler.get_scale() == 2.0**15

    resumed = build(scale=2.0**16, **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{SKIPPED + 1}"))
    assert_same_weights(weights(resumed.model), weights(plain.model))
    assert resumed.accelerator.scaler.get_scale() == 2.0**15


def test_a_scale_without_end_ends_the_training(build, tmp_path):
    trainer = build(scale=2.0**-13, overflows=(1, 2, 3), save_strategy="steps", save_steps=1, max_steps=6)
    with pytest.raises(NonFiniteLossError) as caught:
        trainer.train()
    what, last = "the gradient, however small fp16 scales the loss,", tmp_path / "checkpoint-2"
    assert str(caught.value) == f"step 3: {what} is not finite; the last good checkpoint is {last}"
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]


def test_a_processor_without_scaler_meets_the_overflow_itself(build):
    trainer = build(overflows=(3,), fp16=True)
    assert trainer.accelerator.scaler is None
    with pytest.raises(NonFiniteLossError, match=r"^step 4: the gradient is not finite; no checkpoint was written"):
        trainer.train()
