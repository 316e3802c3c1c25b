"""A loss, a gradient or a weight that is not finite ends a training before anything is kept."""

import pytest
import torch
from accelerate import Accelerator
from torch.utils._python_dispatch import TorchDispatchMode
from trainer_fixtures import Blocks, arguments, build_model, build_penalty
from transformers import TrainerCallback

from hf_progressive.training.checkpoints import newest_complete_checkpoint
from hf_progressive.training.finiteness import LOSS, FiniteWatch
from hf_progressive.training.trainer import NonFiniteLossError, ProgressiveTrainer


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "settings",
    [
        {"logging_steps": 1},
        {"logging_steps": 100},  # before the checkpoint
        {"logging_steps": 100, "save_steps": 100, "eval_strategy": "steps", "eval_steps": 5},
        {"logging_steps": 100, "save_strategy": "no"},  # at the end
    ],
)
def test_a_loss_that_is_not_finite_ends_the_training_before_anything_is_kept(tmp_path, settings, bad):
    class Spoil(TrainerCallback):
        def on_step_begin(self, args, state, control, model, **kwargs):
            if state.global_step == 3:
                with torch.no_grad():
                    model.transformer.wpe.weight[0, 0] = bad

    args = arguments(tmp_path, **{"save_strategy": "steps", "save_steps": 2} | settings)
    trainer = ProgressiveTrainer(
        build_model(), args, train_dataset=Blocks(), eval_dataset=Blocks(8), callbacks=[Spoil()]
    )
    with pytest.raises(NonFiniteLossError) as caught:
        trainer.train()
    saves = args.save_strategy != "no" and args.save_steps == 2
    last_good = (
        f"the last good checkpoint is {tmp_path / 'checkpoint-2'}" if saves else "no checkpoint was written yet"
    )
    assert str(caught.value) == f"step 4: the loss is not finite; {last_good}"
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == (["checkpoint-2"] if saves else [])
    assert not any("eval_loss" in entry for entry in trainer.state.log_history)


def test_a_checkpoint_whose_validation_was_not_finite_is_not_kept(tmp_path):
    """The weights and the training loss are finite, the validation's documents overflow."""

    class Overflowing(ProgressiveTrainer):
        def prediction_step(self, *args, **kwargs):
            loss, logits, labels = super().prediction_step(*args, **kwargs)
            return (loss * float("nan") if self.state.global_step == 4 else loss), logits, labels

    args = arguments(tmp_path, save_strategy="steps", save_steps=2, eval_strategy="steps", eval_steps=2)
    trainer = Overflowing(build_model(), args, train_dataset=Blocks(), eval_dataset=Blocks(8))
    with pytest.raises(NonFiniteLossError) as caught:
        trainer.train()
    last = tmp_path / "checkpoint-2"
    assert str(caught.value) == f"step 4: the validation's eval_loss is not finite; the last good checkpoint is {last}"
    assert newest_complete_checkpoint(tmp_path) == last


@pytest.mark.parametrize("what", ["the gradient", "a weight", "Φ"])
def test_weights_that_the_last_step_spoiled_are_not_saved(tmp_path, what):
    """The loss of the step was finite: the next one would tell, after the checkpoint."""

    class Spoil(TrainerCallback):
        def on_optimizer_step(self, args, state, control, model, **kwargs):
            if state.global_step == 3 and what == "a weight":
                with torch.no_grad():
                    model.lm_head.weight[0, 0] = float("nan")

    class Spoiled(ProgressiveTrainer):
        def training_step(self, model, *args, **kwargs):
            loss = super().training_step(model, *args, **kwargs)
            if self.state.global_step == 3 and what == "the gradient":
                model.lm_head.weight.grad[0, 0] = float("inf")
            return loss

    model = build_model()
    penalty = build_penalty(model)
    if what == "Φ":
        penalty.anchor["transformer.wte.weight"][0] = 1e30
    args = arguments(tmp_path, save_strategy="steps", save_steps=4, logging_steps=100)
    trainer = Spoiled(model, args, train_dataset=Blocks(), penalty=penalty, callbacks=[Spoil()])
    steps = {"the gradient": "step 4", "a weight": "steps 1 to 4", "Φ": "step 1"}[what]
    with pytest.raises(NonFiniteLossError, match=f"^{steps}: {what} is not finite; no checkpoint was written"):
        trainer.train()
    assert not list(tmp_path.glob("checkpoint-*"))
    if what != "Φ":  # whose infinite gradient is clipped to zero
        with pytest.raises(NonFiniteLossError, match="a weight is not finite"):
            trainer.save_pretrained_whole(tmp_path / "final")
        assert not (tmp_path / "final").exists()


def test_figures_are_noted_without_float64_which_mps_has_not():
    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            assert getattr(result, "dtype", None) is not torch.float64
            return result

    watch = FiniteWatch(Accelerator(cpu=True))
    with Watched():
        watch.note(LOSS, torch.tensor(float("nan")), step=2**24)
        watch.note_weights([torch.nn.Parameter(torch.ones(2))], step=2**24)
        assert watch.read() == (LOSS, 2**24)


def test_a_checkpoint_of_a_later_step_is_another_run_s_and_not_the_last_good_one(tmp_path):
    ProgressiveTrainer(
        build_model(), arguments(tmp_path, max_steps=4, save_strategy="steps", save_steps=4), train_dataset=Blocks()
    ).train()
    model = build_model()
    with torch.no_grad():
        model.transformer.wpe.weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteLossError, match="no checkpoint was written yet"):
        ProgressiveTrainer(model, arguments(tmp_path, max_steps=2, logging_steps=1), train_dataset=Blocks()).train()
