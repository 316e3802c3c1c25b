"""Models, penalties, arguments and trainers for the tests of training."""

import torch
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, set_seed

from hf_progressive.penalty import InheritancePenalty
from hf_progressive.training.trainer import ProgressiveTrainer, ProgressiveTrainingArguments

VOCABULARY = 64


class Blocks(Dataset):
    """Packed blocks of a fixed random text."""

    def __init__(self, count=64, length=16):
        self.blocks = torch.randint(VOCABULARY, (count, length), generator=torch.Generator().manual_seed(5))

    def __len__(self):
        return len(self.blocks)

    def __getitem__(self, index):
        return {"input_ids": self.blocks[index], "labels": self.blocks[index]}


def build_model(dropout=0.0):
    set_seed(3)
    config = GPT2Config(
        n_layer=2, n_embd=16, n_head=2, vocab_size=VOCABULARY, n_positions=16,
        resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def build_penalty(model, ewc_lambda=0.6, gamma=0.06, seed=12, **options):
    """Anchor a little beside the start, so that Φ pulls from the first step; λ and γ at which neither term rules."""
    generator = torch.Generator().manual_seed(11)
    anchor = {
        name: p.detach() + 0.05 * torch.randn(p.shape, generator=generator) for name, p in model.named_parameters()
    }
    generator = torch.Generator().manual_seed(seed)
    fisher = {name: torch.rand(p.shape, generator=generator) for name, p in model.named_parameters()}
    subspace = {}
    for name, p in model.named_parameters():
        if p.ndim == 2:
            subspace[name] = torch.linalg.qr(torch.randn(p.shape[1], 5, generator=generator)).Q  # Conv1D, Embedding
    return InheritancePenalty(anchor, fisher, subspace, ewc_lambda=ewc_lambda, gamma=gamma, **options)


def arguments(folder, *, kind=ProgressiveTrainingArguments, **changes):
    settings = {
        "per_device_train_batch_size": 8, "learning_rate": 1e-2, "max_steps": 6, "logging_steps": 1, "use_cpu": True,
        "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "seed": 7,
    }  # fmt: skip
    return kind(output_dir=str(folder), **settings | changes)


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def logged(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def assert_same_weights(first, second):
    assert {n for n in first if not torch.equal(first[n], second[n])} == set()


RESUMABLE = {
    "max_steps": 9, "save_strategy": "steps", "save_steps": 2, "gradient_accumulation_steps": 2,
    "per_device_train_batch_size": 4, "phi_schedule": "cosine", "phi_until": 0.8,
    "lr_scheduler_type": "warmup_stable_decay", "warmup_steps": 2,
    "lr_scheduler_kwargs": {"num_decay_steps": 4, "decay_type": "linear"},
}  # fmt: skip


def resumable_trainer(folder, *, apply="gradient", **changes):
    model = build_model(dropout=0.1)
    penalty = build_penalty(model, apply=apply)
    return ProgressiveTrainer(
        model, arguments(folder, **RESUMABLE | changes), train_dataset=Blocks(40), penalty=penalty
    )
