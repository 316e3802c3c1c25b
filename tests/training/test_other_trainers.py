"""Before every other trainer too: its losses to the bit without a penalty, its gradient plus Φ's with one."""

import functools

import pytest
import torch
from datasets import Dataset
from trainer_fixtures import assert_same_weights, logged, weights
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    set_seed,
)

from hf_progressive.data.tokenizer import train_tokenizer
from hf_progressive.penalty import InheritancePenalty
from hf_progressive.training.trainer import ProgressiveMixin, ProgressiveTrainer, ProgressiveTrainingArguments

WORDS = ["rain", "wind", "north", "south", "the sea", "a hill", "snow", "an island"]
LAMBDA, VOCABULARY = 0.7, 270
SETTINGS = {
    "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "learning_rate": 1e-2, "max_steps": 2,
    "max_grad_norm": 0.0, "logging_steps": 1, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "no",
    "report_to": "none", "use_cpu": True, "disable_tqdm": True, "bf16": False,
}  # fmt: skip


class KeptGradient(TrainerCallback):
    """The gradients that the optimizer gets in the first step."""

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        if state.global_step == 0:
            self.gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@functools.cache
def tokenizer():
    trained = train_tokenizer([" ".join(WORDS)], vocab_size=VOCABULARY, training_bytes=1000)
    trained.pad_token = trained.eos_token
    return trained


def gpt2():
    set_seed(3)
    sizes = {"n_layer": 1, "n_embd": 16, "n_head": 2, "vocab_size": VOCABULARY, "n_positions": 64}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, pad_token_id=0))


def t5():
    set_seed(3)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "vocab_size": VOCABULARY}
    return T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0, pad_token_id=0))


def ids(text):
    return (tokenizer()(text)["input_ids"] + [0] * 12)[:12]


def seq2seq():
    rows = [{"input_ids": ids(one), "labels": ids(f"{one}, {one}")} for one in WORDS]
    return Seq2SeqTrainer, Seq2SeqTrainingArguments, t5, rows


def sft():
    trl = pytest.importorskip("trl")
    return trl.SFTTrainer, trl.SFTConfig, gpt2, [{"text": f"{one} and {one}"} for one in WORDS]


def sft_of_pairs_on_plain_arguments():
    trl = pytest.importorskip("trl")
    return trl.SFTTrainer, TrainingArguments, gpt2, [{"prompt": one, "completion": " of " + one} for one in WORDS]


def dpo():
    trl = pytest.importorskip("trl")
    rows = [{"prompt": one, "chosen": " falls", "rejected": f" {one}"} for one in WORDS]
    return trl.DPOTrainer, trl.DPOConfig, gpt2, rows


CASES = [seq2seq, sft, sft_of_pairs_on_plain_arguments, dpo]


def train(case, folder, *, progressive, penalty=None):
    """Train by the stock class or by ours before it; return the trainer and its first gradient."""
    stock, arguments, build, rows = case()
    kind, more = stock, {"ref_model": build()} if case is dpo else {}
    if progressive:
        kind = type("Held" + stock.__name__, (ProgressiveMixin, stock), {})
        more |= {"penalty": penalty, "phi_schedule": "linear", "phi_until": 2.0}
    kept, data = KeptGradient(), Dataset.from_list(rows)
    trainer = kind(
        model=build(), args=arguments(output_dir=str(folder), **SETTINGS), train_dataset=data,
        eval_dataset=data.select(range(3)), processing_class=tokenizer(), callbacks=[kept], **more,
    )  # fmt: skip
    trainer.train()
    return trainer, kept.gradients


@functools.cache
def stock_run(case, folder):
    return train(case, folder, progressive=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize("case", CASES)
def test_without_a_penalty_it_is_the_stock_one_to_the_bit(folder, case):
    """Training and validation, which read logits where the stock loss does."""
    stock, _ = stock_run(case, folder)
    ours, _ = train(case, folder, progressive=True)
    for key in ("loss", "grad_norm", "eval_loss", "mean_token_accuracy", "rewards/margins"):
        assert logged(ours, key) == logged(stock, key), key
    assert logged(ours, "eval_loss")
    assert_same_weights(weights(ours.model), weights(stock.model))


@pytest.mark.parametrize("case", [seq2seq, sft, dpo])
def test_the_first_gradient_is_the_tasks_plus_the_dense_formula(folder, case):
    _, task = stock_run(case, folder)
    start, draw = weights(case()[2]()), torch.Generator().manual_seed(1)
    anchor = {name: weight + 0.1 * torch.randn(weight.shape, generator=draw) for name, weight in start.items()}
    fisher = {name: torch.rand(weight.shape, generator=draw) for name, weight in start.items()}
    penalty = InheritancePenalty(anchor, fisher, ewc_lambda=LAMBDA)
    ours, gradients = train(case, folder, progressive=True, penalty=penalty)
    assert gradients.keys() == task.keys() == start.keys()
    value = 0.0
    for name, weight in start.items():
        delta = weight.double() - anchor[name].double()
        slope = LAMBDA * fisher[name].double() * delta
        value += 0.5 * float((slope * delta).sum())
        torch.testing.assert_close(gradients[name].double() - task[name].double(), slope, rtol=1e-4, atol=1e-5)
    assert logged(ours, "phi/ewc")[0] == pytest.approx(value, rel=1e-5)
    assert logged(ours, "phi/lambda") == pytest.approx([LAMBDA, 0.75 * LAMBDA])  # linear, to be zero at twice the run


def test_a_model_of_pictures_trains_as_with_the_stock_trainer(tmp_path):
    def trained(trainer, kind):
        set_seed(0)
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        model = ViTForImageClassification(ViTConfig(**sizes, image_size=8, patch_size=4, num_labels=3))
        generator = torch.Generator().manual_seed(1)
        data = [{"pixel_values": torch.randn(3, 8, 8, generator=generator), "labels": i % 3} for i in range(16)]
        args = kind(str(tmp_path / trainer.__name__), max_steps=3, report_to=[], save_strategy="no", use_cpu=True)
        trainer(model, args, train_dataset=data).train()
        return model.state_dict()

    ours, stock = trained(ProgressiveTrainer, ProgressiveTrainingArguments), trained(Trainer, TrainingArguments)
    assert all(torch.equal(ours[name], stock[name]) for name in stock)
