"""One short training of a tiny GPT-2 with Φ, on whatever engine it is launched with; leaves what the tests compare."""

import argparse
import json
import sys
import weakref
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, set_seed

from hf_progressive.phi import InheritancePenalty
from hf_progressive.trainer import ProgressiveTrainer, ProgressiveTrainingArguments

VOCABULARY, WIDTH = 67, 20  # 67 rows: odd, so that two processes hold unequal pieces


class Blocks(Dataset):
    """Packed blocks of a fixed random text."""

    def __init__(self, count=64, length=16):
        self.blocks = torch.randint(VOCABULARY, (count, length), generator=torch.Generator().manual_seed(5))

    def __len__(self):
        return len(self.blocks)

    def __getitem__(self, index):
        return {"input_ids": self.blocks[index], "labels": self.blocks[index]}


class CountedTensors(Mapping):
    """A lazy mapping that knows how many bytes of what it gave out were alive at once."""

    alive = 0
    peak = 0

    def __init__(self, shapes, make):
        self.shapes, self.make = shapes, make

    def __getitem__(self, name):
        tensor = self.make(name, self.shapes[name])
        size = tensor.untyped_storage().nbytes()
        CountedTensors.alive += size
        CountedTensors.peak = max(CountedTensors.peak, CountedTensors.alive)
        weakref.finalize(tensor.untyped_storage(), self.forget, size)
        return tensor

    @staticmethod
    def forget(size):
        CountedTensors.alive -= size

    def __iter__(self):
        return iter(self.shapes)

    def __len__(self):
        return len(self.shapes)


def generator(name, seed):
    return torch.Generator().manual_seed(seed + sum(name.encode()))


def build_model():
    set_seed(3)
    return GPT2LMHeadModel(
        GPT2Config(
            n_layer=2,
            n_embd=WIDTH,
            n_head=2,
            vocab_size=VOCABULARY,
            n_positions=16,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            tie_word_embeddings=False,
        )  # fmt: skip
    )


def build_penalty(model, *, ewc_lambda, gamma):
    """Each tensor made anew, the same everywhere, when it is asked for."""
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    shapes = {name: tuple(p.shape) for name, p in start.items()}
    matrices = {}
    for name, shape in shapes.items():
        if len(shape) == 2:
            matrices[name] = shape[0] if name.startswith("lm_head") else shape[1]
    return InheritancePenalty(
        CountedTensors(shapes, lambda n, s: start[n] + 0.05 * torch.randn(s, generator=generator(n, 1))),
        CountedTensors(shapes, lambda n, s: torch.rand(s, generator=generator(n, 2))),
        CountedTensors(matrices, lambda n, out: torch.linalg.qr(torch.randn(out, 7, generator=generator(n, 3))).Q),
        ewc_lambda=ewc_lambda,
        gamma=gamma,
    )


def train(output, *, batch=8, accumulation=1, steps=4, resume=False, **changes):
    """Train and write `result.json`, and `weights.safetensors` in the first process."""
    model = build_model()
    arguments = ProgressiveTrainingArguments(
        output_dir=str(output), per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
        learning_rate=1e-2, max_steps=steps, logging_steps=1, use_cpu=True, report_to="none", disable_tqdm=True,
        phi_schedule="linear", max_grad_norm=0.5, **{"save_strategy": "no"} | changes,
    )  # fmt: skip
    # A scale at which both terms count beside the task's gradient.
    penalty = build_penalty(model, ewc_lambda=0.2, gamma=0.05)
    trainer = ProgressiveTrainer(model, arguments, train_dataset=Blocks(), penalty=penalty)
    trainer.train(resume_from_checkpoint=resume)
    keys = ("loss", "grad_norm", "phi/ewc", "phi/subspace", "phi/grad_ratio", "phi/lambda")
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    rank = trainer.args.process_index
    result = {key: [entry[key] for entry in history] for key in keys}
    result |= {
        "engine": str(trainer.accelerator.distributed_type),
        "processes": trainer.args.world_size,
        "held_bytes": penalty.held_bytes(),
        "peak_bytes": CountedTensors.peak,
    }
    (Path(output) / f"result-{rank}.json").write_text(json.dumps(result))
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if rank == 0:
        save_file({name: tensor.clone() for name, tensor in state.items()}, Path(output) / "weights.safetensors")
    return trainer


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--save-steps", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    options = vars(parser.parse_args())
    save_steps = options.pop("save_steps")
    saving = {"save_strategy": "steps", "save_steps": save_steps} if save_steps else {}
    train(**options, **saving)
    sys.exit(0)
