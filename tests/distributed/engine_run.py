"""One short training of a tiny GPT-2 with Φ, on whatever engine it is launched with; leaves what the tests compare."""

import json
import weakref
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import DistributedType, PartialState
from accelerate.utils import patch_environment
from safetensors.torch import save_file
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, set_seed

from hf_progressive.penalty import InheritancePenalty, LoraPenalty
from hf_progressive.training.parent_divergence import ParentDivergence
from hf_progressive.training.trainer import ProgressiveTrainer, ProgressiveTrainingArguments

VOCABULARY, WIDTH = 67, 20  # 67 rows: odd, so that two processes hold unequal shards
MUON = {"muon_learning_rate": 1e-2, "weight_decay": 0.1}
# Keys' biases have no gradient but rounding, which Adam would blow up; ε damps it.
DAMPED = {"adam_epsilon": 1e-4}
PROXIMAL = {"apply": "proximal", "weight_decay": 0.1, **DAMPED}
NO_WEIGHTS = {"ewc_lambda": 0.0, "gamma": 0.0, "apply": "gradient"}
LARGEST_BYTES = 4 * 4 * WIDTH * WIDTH  # the MLP's matrices


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


def build_penalty(model, *, ewc_lambda, gamma, apply):
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
        apply=apply,
    )


def build_adapted():
    """The model with LoRA's adapters, none of whose products is zero; r = 3, so that processes hold unequal shards."""
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(
        build_model(), LoraConfig(r=3, target_modules=["c_attn", "c_fc", "wte"], fan_in_fan_out=True)
    )
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2, generator=generator(name, 4))
    return adapted


def build_divergence(folder, batch, fsdp):
    """Hold the predictions of a parent that is loaded once the engine is known, in step 0 and 2."""
    efficient = {"accelerate_use_fsdp": "true", "fsdp_cpu_ram_efficient_loading": "true"}  # one process reads
    with patch_environment(**(efficient if fsdp else {})):
        parent = GPT2LMHeadModel.from_pretrained(folder)
    blocks = torch.randint(VOCABULARY, (12, 16), generator=torch.Generator().manual_seed(8))
    return ParentDivergence(parent=parent, blocks=blocks, weight=2.0, every=2, batch_size=batch)


def pretend_to_be_on_an_accelerator():
    """Let Accelerate pick FSDP2, which it does on no CPU; `fully_shard` itself runs there, on gloo."""
    PartialState().distributed_type = DistributedType.MULTI_GPU


def train(output, *, batch, accumulation, form="phi", resume=False, fsdp=False, apply="gradient", **changes):
    """Train; leave `result-RANK.json` of every process and the whole `weights.safetensors`."""
    output = Path(output)
    model = build_adapted() if form == "lora" else build_model()
    parent = output.parent / "parent"
    if form == "divergence":
        with PartialState().main_process_first():
            if PartialState().is_main_process:
                far = build_model()
                far.lm_head.weight.data.mul_(8.0)
                far.save_pretrained(parent)
    arguments = ProgressiveTrainingArguments(
        output_dir=str(output), per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
        learning_rate=1e-2, max_steps=4, logging_steps=1, report_to="none", disable_tqdm=True,
        phi_schedule="linear", max_grad_norm=0.5, **{"save_strategy": "no", "use_cpu": True} | changes,
    )  # fmt: skip
    if fsdp:
        pretend_to_be_on_an_accelerator()
    CountedTensors.peak = CountedTensors.alive
    held = {}
    if form == "phi":
        weights = {"ewc_lambda": 0.2, "gamma": 0.05} if apply == "gradient" else {"ewc_lambda": 20.0, "gamma": 10.0}
        held["penalty"] = build_penalty(model, **weights, apply=apply)  # neither term rules
    elif form == "lora":
        held["penalty"] = LoraPenalty(build_penalty(build_model(), **NO_WEIGHTS).fisher, ewc_lambda=0.05)
    else:
        held["divergence"] = build_divergence(parent, 8 // arguments.world_size, fsdp)
    trainer = ProgressiveTrainer(model, arguments, train_dataset=Blocks(), **held)
    trainer.train(resume_from_checkpoint=resume)
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    keys = {key for entry in history for key in entry if key.startswith("phi/") or key in ("loss", "grad_norm")}
    result = {key: [entry[key] for entry in history if key in entry] for key in sorted(keys)}
    result |= {
        "engine": str(trainer.accelerator.distributed_type),
        "processes": trainer.args.world_size,
        "held_bytes": trainer.bound_penalty.held_bytes() if trainer.bound_penalty else 0,
        "peak_bytes": CountedTensors.peak,
    }
    output.mkdir(exist_ok=True)
    rank = trainer.args.process_index
    (output / f"result-{rank}.json").write_text(json.dumps(result))
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if rank == 0:
        trained = {name: t.clone() for name, t in state.items() if form != "lora" or "lora_" in name}
        save_file(trained, output / "weights.safetensors")
