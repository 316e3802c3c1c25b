"""Bytes that training holds, against tensors that really exist and a run that was really made."""

import inspect

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hf_progressive.config import TrainingConfig
from hf_progressive.planning.memory import (
    activation_bytes,
    checkpoint_bytes,
    disk_bytes,
    muon_parameters,
    saved_bytes,
    sequence_bytes,
    training_bytes,
)
from hf_progressive.training.trainer import ProgressiveTrainer, ProgressiveTrainingArguments

SIZES = {
    "gpt2": {"n_embd": 32, "n_head": 4, "n_layer": 5, "n_positions": 24, "vocab_size": 97, "resid_pdrop": 0.0,
             "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "llama": {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 5,
              "max_position_embeddings": 24, "vocab_size": 97},
    "mixtral": {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
                "num_hidden_layers": 5, "max_position_embeddings": 24, "vocab_size": 97, "num_local_experts": 4},
}  # fmt: skip


def kept_bytes(config, sequences, *, bf16):
    """What autograd really keeps of a real batch."""
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    tokens = torch.randint(0, 97, (sequences, 24))
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        model(input_ids=tokens, labels=tokens, use_cache=False)
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("model_type", SIZES)
def test_activations_are_those_of_a_real_batch(model_type, bf16):
    config = AutoConfig.for_model(model_type, **SIZES[model_type])
    counted = activation_bytes(config, context=24, bf16=bf16)
    real = kept_bytes(config, 3, bf16=bf16) - kept_bytes(config, 2, bf16=bf16)
    assert counted == pytest.approx(
        real, rel=0.06
    )  # what does not grow with the batch, such as rotations, is in the count


def test_the_state_is_16_bytes_a_parameter_and_8_with_a_penalty():
    sizes = {"sequences": 0, "per_sequence": 1, "with_fisher": True, "of_muon": 0}
    assert training_bytes(10, with_penalty=False, **sizes) == 160
    assert training_bytes(10, with_penalty=True, **sizes) == 240
    assert training_bytes(10, with_penalty=False, rewarm_new=True, **sizes) == 210
    assert training_bytes(10, with_penalty=True, shards=3, **sizes) == 80


def test_muon_keeps_half_of_what_adam_does_for_its_matrices(tmp_path):
    config = AutoConfig.for_model("gpt2", n_layer=2, n_embd=16, n_head=2, n_positions=24, vocab_size=97)
    of_muon = muon_parameters(config, TrainingConfig(optimizer="muon"))
    assert of_muon == 2 * 12 * 16**2
    assert muon_parameters(config, TrainingConfig()) == 0
    model = AutoModelForCausalLM.from_config(config)
    total = sum(p.numel() for p in model.parameters())
    args = ProgressiveTrainingArguments(str(tmp_path), muon_learning_rate=1e-3, use_cpu=True)
    optimizer = ProgressiveTrainer(model, args).create_optimizer()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    held = (value for entry in optimizer.state.values() for key, value in entry.items() if key != "step")
    kept = sum(4 * value.numel() for value in held)
    assert checkpoint_bytes(total, of_muon=of_muon) == 4 * total + kept
    sizes = {"sequences": 0, "per_sequence": 1, "with_penalty": False, "with_fisher": False}
    assert training_bytes(total, of_muon=of_muon, **sizes) == 8 * total + kept


def test_kept_moments_of_a_trunk_take_disk() -> None:
    def moments(**written):
        moments = {"of_muon": 0, "stable_moments": False, "initial_moments": False} | written
        return disk_bytes(10, baseline=False, stable=True, with_fisher=False, **moments)

    assert moments(stable_moments=True) - moments() == 80
    assert moments(stable_moments=True, initial_moments=True) - moments() == 160
    assert moments(of_muon=4, stable_moments=True) - moments(of_muon=4) == 64


@pytest.mark.parametrize(
    ("count", "options"),
    [
        (sequence_bytes, {"on_gpu"}),
        (training_bytes, {"of_muon"}),
        (disk_bytes, {"of_muon", "stable_moments", "initial_moments"}),
        (saved_bytes, {"of_muon"}),
    ],
)
def test_what_changes_a_count_is_said_by_whoever_counts(count, options):
    parameters = inspect.signature(count).parameters
    assert {name for name in options if parameters[name].default is not inspect.Parameter.empty} == set()
