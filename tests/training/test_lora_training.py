"""A Trainer that holds what LoRA adds: the first gradient, a run resumed, and frozen weights under an ordinary Φ."""

import pytest
import torch
from test_other_trainers import KeptGradient
from trainer_fixtures import Blocks, arguments, assert_same_weights, build_model, build_penalty, logged, weights

from hf_progressive.penalty import LoraPenalty
from hf_progressive.training.trainer import ProgressiveTrainer

peft = pytest.importorskip("peft")


def build_adapted():
    torch.manual_seed(2)
    wrapped = peft.get_peft_model(build_model(), peft.LoraConfig(target_modules=["c_attn"], r=2, fan_in_fan_out=True))
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return wrapped


def build_lora_penalty():
    return LoraPenalty(build_penalty(build_model()).fisher, ewc_lambda=0.5)


def train(folder, penalty, resume=None, **changes):
    kept = KeptGradient()
    settings = arguments(folder, max_grad_norm=0.0, **changes)
    trainer = ProgressiveTrainer(
        build_adapted(), settings, train_dataset=Blocks(), penalty=penalty, callbacks=[kept], phi_schedule="linear"
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer, getattr(kept, "gradients", None)


def test_the_first_gradient_is_the_tasks_plus_that_of_the_dense_formula(tmp_path):
    _, task = train(tmp_path, None, max_steps=1)
    trainer, both = train(tmp_path, build_lora_penalty(), max_steps=1)
    model, fisher = build_adapted(), build_penalty(build_model()).fisher
    value = 0.0
    for number, block in enumerate(model.base_model.model.transformer.h):
        delta = block.attn.c_attn.get_delta_weight("default")
        value = value + 0.25 * (fisher[f"transformer.h.{number}.attn.c_attn.weight"] * delta**2).sum()
    value.backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert both.keys() == task.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(both[name] - task[name], gradient, rtol=1e-4, atol=1e-6)
    assert logged(trainer, "phi/ewc") == [pytest.approx(float(value.detach()), rel=1e-5)]


def test_a_resumed_run_ends_with_the_same_bits_and_wants_the_same_penalty(tmp_path):
    saves = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole, _ = train(tmp_path, build_lora_penalty(), **saves)
    checkpoint = str(tmp_path / "checkpoint-2")
    again, _ = train(tmp_path / "again", build_lora_penalty(), resume=checkpoint, **saves)
    assert_same_weights(weights(again.model), weights(whole.model))
    with pytest.raises(ValueError, match="another penalty: the two differ in fisher; pass"):
        train(tmp_path, LoraPenalty({n: 2.0 * f for n, f in build_lora_penalty().fisher.items()}, ewc_lambda=0.5),
              resume=checkpoint, **saves)  # fmt: skip


def test_an_ordinary_penalty_on_what_lora_leaves_alone_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"for LoRA's adapters use LoraPenalty\(fisher, ewc_lambda=\.\.\.\)"):
        train(tmp_path, build_penalty(build_model()))
