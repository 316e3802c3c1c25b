"""Training on the device: compiled as eager, bfloat16 as float32, killed as whole, and no step that waits."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import resumable_run
import torch
from transformers import GPT2Config, GPT2LMHeadModel, TrainerCallback, set_seed

import hf_progressive
from hf_progressive.config import DataConfig, TokenizerConfig, TrainingConfig
from hf_progressive.data import prepare_corpus, rung_blocks
from hf_progressive.distributed.float32_products import allow_tf32
from hf_progressive.training.checkpoints import write_fresh
from hf_progressive.training.trainer import ProgressiveTrainer, ProgressiveTrainingArguments
from hf_progressive.training.training_run import TrainingRun, train_run

CONTEXT = 128
SOURCE = Path(hf_progressive.__file__).parent


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """The package's own source text."""
    config = DataConfig(
        source="text", files=(str(SOURCE / "growth"), str(SOURCE / "penalty")), validation_fraction=0.1,
        max_validation_tokens=16 * CONTEXT, tokenizer=TokenizerConfig(vocab_size=384),
    )  # fmt: skip
    return prepare_corpus(config, CONTEXT, tmp_path_factory.mktemp("corpus") / "data")


def build_config(corpus, dropout=0.0):
    return GPT2Config(
        n_layer=2, n_embd=128, n_head=4, vocab_size=corpus.vocab_size, n_positions=CONTEXT,
        resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout,
    )  # fmt: skip


def train(corpus, folder, device, *, steps, **changes):
    """Losses by step, and the weights."""
    set_seed(3)
    model = GPT2LMHeadModel(build_config(corpus))
    arguments = ProgressiveTrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=8, max_steps=steps, logging_steps=1, learning_rate=2e-3,
        warmup_steps=4, report_to="none", disable_tqdm=True, save_strategy="no", seed=7,
        train_sampling_strategy="sequential", use_cpu=device.type == "cpu", **changes,
    )  # fmt: skip
    trainer = ProgressiveTrainer(model, arguments, train_dataset=rung_blocks(corpus, 0, 8 * steps))
    allow_tf32(False)  # which compiling switches on
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, {name: p.detach().float().cpu() for name, p in model.named_parameters()}


def test_compiled_training_is_eager_training_to_rounding(corpus, tmp_path, cuda, record_property):
    eager, eager_weights = train(corpus, tmp_path / "eager", cuda, steps=8)
    compiled, weights = train(corpus, tmp_path / "compiled", cuda, steps=8, torch_compile=True)
    differences = [abs(a - b) / a for a, b in zip(eager, compiled, strict=True)]
    record_property("first_relative_loss_difference", differences[0])
    record_property("largest_relative_loss_difference", max(differences))
    assert differences[0] <= 2e-6
    assert max(differences) <= 1e-4
    # A key's bias moves no prediction: its gradient is all rounding, of which AdamW makes whole steps.
    compared = [name for name in weights if not name.endswith("c_attn.bias")]
    apart = torch.stack([(weights[name] - eager_weights[name]).norm() for name in compared]).norm().item()
    scale = torch.stack([eager_weights[name].norm() for name in compared]).norm().item()
    record_property("relative_weight_difference", apart / scale)
    assert apart <= 1e-3 * scale


def test_bfloat16_training_follows_the_curve_of_float32(corpus, tmp_path, device, record_property):
    steps = 100 if device.type == "cuda" else 12
    exact, _ = train(corpus, tmp_path / "float32", device, steps=steps)
    rounded, _ = train(corpus, tmp_path / "bfloat16", device, steps=steps, bf16=True)
    apart = [abs(a - b) for a, b in zip(exact, rounded, strict=True)]
    tail = max(1, steps // 10)
    ends = [sum(losses[-tail:]) / tail for losses in (exact, rounded)]
    record_property("losses_at_the_end", ends)
    record_property("mean_difference_in_nats", sum(apart) / steps)
    record_property("largest_difference_in_nats", max(apart))
    assert exact[-1] < exact[0] - (1.5 if device.type == "cuda" else 0.3)
    assert rounded != exact
    assert sum(apart) / steps <= 0.02
    assert ends[1] == pytest.approx(ends[0], rel=0.01)


def start(folder, device, *options):
    command = [sys.executable, resumable_run.__file__, str(folder), *options]
    if device.type == "cpu":
        command.append("--cpu")
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process, code=0):
    try:
        output, _ = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == code, output[-3000:]


@pytest.mark.parametrize("precision", [(), ("--bf16",)], ids=["float32", "bfloat16"])
def test_a_killed_run_goes_on_to_the_same_bits(precision, tmp_path, device):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    processes = start(whole, device, *precision), start(killed, device, *precision, "--die-after", "5")
    finish(processes[0])
    finish(processes[1], -signal.SIGKILL)
    assert not (killed / "result.json").exists()
    finish(start(killed, device, *precision))
    expected, found = (json.loads((folder / "result.json").read_text()) for folder in (whole, killed))
    assert found["from"] == "checkpoint-4"
    assert found["device"].startswith(device.type)
    assert found["losses"] == expected["losses"]
    assert found["digest"] == expected["digest"]


class WaitForNothing(TrainerCallback):
    """Make every wait for a result an error, from a step's first micro-batch to its end and on to the next step's.

    Where a step ends with a log, an evaluation or a checkpoint, these may wait.
    """

    def __init__(self, warmup):
        self.warmup = warmup
        self.steps = 0

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step >= self.warmup:
            torch.cuda.set_sync_debug_mode("error")

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.get_sync_debug_mode():
            self.steps += 1
        if control.should_log or control.should_evaluate or control.should_save:
            torch.cuda.set_sync_debug_mode("default")

    def on_train_end(self, args, state, control, **kwargs):
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("with_phi", [False, True], ids=["plain", "phi"])
def test_no_step_waits_for_a_result(with_phi, corpus, tmp_path, cuda, record_property):
    steps = 200  # more than are logged
    training = TrainingConfig(
        batch_tokens=8 * CONTEXT, micro_batch_size=4, learning_rate=1e-3, evaluations=1, checkpoints=1
    )
    write_fresh(build_config(corpus), corpus.tokenizer, tmp_path / "init", seed=0)
    run = TrainingRun(
        title="no step waits", init=tmp_path / "init", folder=tmp_path, training=training, learning_rate=1e-3,
        steps=steps, first_block=0, flops_per_token=1.0, checkpoint_steps=frozenset(),
    )  # fmt: skip
    penalty = None
    if with_phi:
        set_seed(0)
        model = GPT2LMHeadModel.from_pretrained(tmp_path / "init", dtype=torch.float32)
        penalty = resumable_run.build_penalty(model)
    watch = WaitForNothing(warmup=10)
    result, _ = train_run(run, corpus, penalty, [watch])
    record_property("steps", watch.steps)
    assert watch.steps == steps - 10
    assert result.curve[-1]["step"] == steps
