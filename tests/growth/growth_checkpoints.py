"""Small parents on non-trivial weights, a target, and how to write, read and damage a checkpoint's folder."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from hf_progressive.growth.reader import TensorSpec
from hf_progressive.growth.writer import CheckpointWriter

TINY_GPT2 = {
    "n_embd": 24,
    "n_layer": 2,
    "n_head": 3,
    "n_positions": 32,
    "vocab_size": 96,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "architectures": ["GPT2LMHeadModel"],
}

WIDER = {"n_embd": 40, "n_head": 5, "n_layer": 3}


def gpt2(dtype=torch.float32, **fields):
    """A GPT-2 whose gains, biases and weights are all far from their initial values."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**{**TINY_GPT2, **fields}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.to(dtype).eval()


def save(model, folder, **options):
    """Write a model as `save_pretrained` does, without its imports and output."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    tied = set(model.all_tied_weights_keys)
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    write_tensors(folder, tensors, **options)
    return folder


def write_tensors(folder, tensors, **options):
    specs = {name: TensorSpec(shape=tuple(tensor.shape), dtype=tensor.dtype) for name, tensor in tensors.items()}
    with CheckpointWriter(folder, specs, **options) as writer:
        for name in writer.order:
            writer.write(name, tensors[name])
    return writer


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
