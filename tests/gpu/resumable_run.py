"""One run with deterministic kernels, killed where asked, continued where it was; leaves its weights' digest."""

import argparse
import hashlib
import json
import os
import signal
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, TrainerCallback, set_seed

from hf_progressive.penalty import InheritancePenalty
from hf_progressive.training.trainer import (
    ProgressiveTrainer,
    ProgressiveTrainingArguments,
    newest_complete_checkpoint,
)

VOCABULARY, LENGTH, STEPS = 97, 64, 9


class Blocks(Dataset):
    """Packed blocks of a fixed random text."""

    def __init__(self, count=40):
        self.blocks = torch.randint(VOCABULARY, (count, LENGTH), generator=torch.Generator().manual_seed(5))

    def __len__(self):
        return len(self.blocks)

    def __getitem__(self, index):
        return {"input_ids": self.blocks[index], "labels": self.blocks[index]}


class DieAfter(TrainerCallback):
    """Kill this process as the system would, without a chance to clean up."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def build_model():
    set_seed(3)
    config = GPT2Config(n_layer=3, n_embd=128, n_head=4, vocab_size=VOCABULARY, n_positions=LENGTH)  # dropout is on
    return GPT2LMHeadModel(config)


def build_penalty(model):
    generator = torch.Generator().manual_seed(11)
    anchor, fisher, subspace = {}, {}, {}
    for name, p in model.named_parameters():
        anchor[name] = p.detach().cpu() + 0.05 * torch.randn(p.shape, generator=generator)
        fisher[name] = torch.rand(p.shape, generator=generator)
        if p.ndim == 2:
            subspace[name] = torch.linalg.qr(torch.randn(p.shape[1], 9, generator=generator)).Q
    return InheritancePenalty(anchor, fisher, subspace, ewc_lambda=0.6, gamma=0.06)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("--die-after", type=int)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--bf16", action="store_true")
    options = parser.parse_args()
    arguments = ProgressiveTrainingArguments(
        output_dir=str(options.output), per_device_train_batch_size=4, gradient_accumulation_steps=2,
        learning_rate=1e-2, max_steps=STEPS, logging_steps=1, report_to="none", disable_tqdm=True, seed=7,
        save_strategy="steps", save_steps=2, phi_schedule="cosine", phi_until=0.8, warmup_steps=2,
        full_determinism=True, use_cpu=options.cpu, bf16=options.bf16,
    )  # fmt: skip
    model = build_model()
    callbacks = [] if options.die_after is None else [DieAfter(options.die_after)]
    trainer = ProgressiveTrainer(
        model, arguments, train_dataset=Blocks(), penalty=build_penalty(model), callbacks=callbacks
    )
    checkpoint = newest_complete_checkpoint(options.output)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().cpu().numpy().tobytes())
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    result = {
        "digest": digest.hexdigest(),
        "losses": losses,
        "from": None if checkpoint is None else checkpoint.name,
        "device": str(next(model.parameters()).device),
    }
    (options.output / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
