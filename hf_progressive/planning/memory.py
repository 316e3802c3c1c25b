"""What training a model holds: bytes on each accelerator, and bytes on disk, counted before anything is trained."""

from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.pytorch_utils import Conv1D

from hf_progressive.config import PhiConfig, TrainingConfig
from hf_progressive.growth.hidden_matrices import hidden_matrices
from hf_progressive.training.flops import meta_model

_WEIGHT, _GRADIENT, _MOMENTS = 4, 4, 8  # bytes per parameter: float32 weights and gradients, Adam's two moments
_MOMENTUM = 4  # of Muon, in place of Adam's moments
_MASK = 1  # of new entries, beside the weights from before a step, while they alone are re-warmed
_ANCHOR, _FISHER = 4, 4  # Φ's W₀ and Ω
_TRAINER_CHECKPOINTS = 2  # of which the newest are kept for resuming


def activation_bytes(config: PretrainedConfig, *, context: int, bf16: bool) -> int:
    """Count what the forward pass of one sequence keeps for the backward pass, the loss included.

    The stock class runs on tensors without storage, and every tensor that autograd saves is counted once. It does so
    with one layer and with two; further layers keep what the second one does. Under bfloat16 autocast, the copies of
    weights that it makes, which do not grow with the batch, are left out. Gradient checkpointing is not counted.
    """
    one, two = (_saved_bytes(_with_layers(config, layers), context, bf16=bf16) for layers in (1, 2))
    layers: int = config.num_hidden_layers
    return one + (layers - 1) * (two - one)


def _with_layers(config: PretrainedConfig, layers: int) -> PretrainedConfig:
    fields = config.to_dict()
    for name in ("layer_types", "no_rope_layers"):
        if fields.get(name):
            fields[name] = fields[name][:layers]
    fields[config.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = layers
    return type(config).from_dict(fields)


def _saved_bytes(config: PretrainedConfig, context: int, *, bf16: bool) -> int:
    storages: dict[Any, int] = {}
    kept: list[Tensor] = []  # so that no storage is counted under the address of one that is gone

    def count(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage.nbytes()
        return tensor

    saving: AbstractContextManager[Any] = torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor)
    with FakeTensorMode():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        tokens = torch.zeros(1, context, dtype=torch.long)
        for module in model.modules():
            if isinstance(getattr(module, "gate_up_proj", None), nn.Parameter):
                module.forward = partial(_through_one_expert, module)
        with saving, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            model(input_ids=tokens, labels=tokens, use_cache=False)
        for parameter in model.parameters():
            storages.pop(parameter.untyped_storage()._cdata, None)
        matrices = (module.weight for module in model.modules() if isinstance(module, nn.Linear | Conv1D))
        casts = 2 * sum(matrix.numel() for matrix in matrices) if bf16 else 0
    return sum(storages.values()) - casts


def _through_one_expert(experts: Any, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    # Every token through one expert, as often as it is sent to one: as large, and known without values. The stock
    # class's grouped products stay in the weights' dtype under autocast.
    with torch.autocast("cpu", enabled=False):
        repeated = hidden.to(experts.down_proj.dtype).repeat_interleave(chosen.shape[-1], 0)  # (T · K, D)
        gate, up = functional.linear(repeated, experts.gate_up_proj[0]).chunk(2, dim=-1)
        made = functional.linear(experts.act_fn(gate) * up, experts.down_proj[0])
    weighted: Tensor = made * weights.reshape(-1, 1)
    return weighted.reshape(*chosen.shape, -1).sum(1).to(hidden.dtype)


def sequence_bytes(config: PretrainedConfig, training: TrainingConfig, *, context: int, on_gpu: bool) -> int:
    """Return `activation_bytes` in a ladder's precision; on a GPU, `training.precision: auto` means bfloat16."""
    chosen = on_gpu and training.precision == "auto" and not training.arguments.get("fp16")
    bf16 = training.arguments.get("bf16", chosen or training.precision == "bfloat16")
    return activation_bytes(config, context=context, bf16=bool(bf16))


def penalty_state(phi: PhiConfig, *, grown: bool) -> dict[str, bool]:
    """Return what Φ holds beside the state of a rung that is grown or not, as `training_bytes` takes it."""
    return {"with_penalty": grown and not phi.is_off, "with_fisher": phi.ewc_lambda > 0}


def muon_parameters(config: PretrainedConfig, training: TrainingConfig) -> int:
    """Count the parameters that Muon trains; 0 where everything is AdamW's."""
    if training.optimizer != "muon":
        return 0
    model = meta_model(config)
    return sum(model.get_parameter(name).numel() for name in hidden_matrices(model))


def _moments(parameters: int, of_muon: int) -> int:
    return parameters * _MOMENTS - of_muon * (_MOMENTS - _MOMENTUM)


def training_bytes(
    parameters: int,
    *,
    sequences: int,
    per_sequence: int,
    with_penalty: bool,
    with_fisher: bool,
    of_muon: int,
    shards: int = 1,
    rewarm_new: bool = False,
) -> int:
    """Return the bytes that one accelerator holds while a model trains in float32 or under autocast.

    Weights, gradients and moments are 16 bytes per parameter (Rajbhandari et al., arXiv 1910.02054, section 3, in
    float32), 12 for those `of_muon`, Φ's anchor and Fisher information 8 more, and 5 more while new entries alone are
    re-warmed. Bases of subspaces, buffers of the communication and the fragmentation of memory are not counted: leave
    a tenth. With ZeRO-3 and FSDP2, `shards` processes share the state.

    >>> state = {"with_penalty": True, "with_fisher": True, "of_muon": 0}
    >>> training_bytes(1000, sequences=2, per_sequence=50, shards=4, **state)
    6100
    """
    state = _WEIGHT + _GRADIENT
    if with_penalty:
        state += _ANCHOR + (_FISHER if with_fisher else 0)
    if rewarm_new:
        state += _WEIGHT + _MASK
    held = parameters * state + _moments(parameters, of_muon)
    return -(-held // shards) + sequences * per_sequence


def disk_bytes(
    parameters: int,
    *,
    baseline: bool,
    stable: bool,
    with_fisher: bool,
    of_muon: int,
    stable_moments: bool,
    initial_moments: bool,
) -> int:
    """Return the bytes that a rung leaves in its run folder, but for bases of subspaces and what is small.

    >>> moments = {"of_muon": 0, "stable_moments": False, "initial_moments": False}
    >>> disk_bytes(1000, baseline=False, stable=False, with_fisher=True, **moments)
    36000
    """
    kept = _TRAINER_CHECKPOINTS * checkpoint_bytes(parameters, of_muon=of_muon)
    run = 2 * _WEIGHT * parameters + kept  # initial and final weights, checkpoints
    runs = 2 if baseline else 1
    extra = (_WEIGHT if stable else 0) + (_FISHER if with_fisher else 0)
    return runs * run + parameters * extra + (stable_moments + initial_moments) * _moments(parameters, of_muon)


def saved_bytes(
    parameters: int,
    *,
    checkpoints: int,
    stable: bool,
    with_fisher: bool,
    of_muon: int,
    averaged: int = 0,
    stable_moments: bool = False,
    initial_moments: bool = False,
) -> int:
    """Return the bytes that one training run writes, replaced checkpoints included: by them goes what saving takes.

    A trunk's rung may write besides: weights that its member is an `averaged` one of, but for its last ones, which are
    the stable ones; and the optimizer's state with its stable and its grown weights.

    >>> saved_bytes(1000, checkpoints=4, stable=True, with_fisher=False, of_muon=0)
    60000
    >>> stable = {"stable": True, "stable_moments": True}
    >>> saved_bytes(1000, checkpoints=4, **stable, with_fisher=False, of_muon=0, averaged=5)
    84000
    """
    weights = _WEIGHT * ((3 if stable else 2) + max(0, averaged - 1))  # initial, final, and those before the decay
    saved = checkpoints * checkpoint_bytes(parameters, of_muon=of_muon)
    saved += (stable_moments + initial_moments) * _moments(parameters, of_muon)
    return saved + parameters * (weights + (_FISHER if with_fisher else 0))


def checkpoint_bytes(parameters: int, *, of_muon: int = 0) -> int:
    """Return the bytes of a checkpoint for resuming: weights, Adam's moments and Muon's momentum."""
    return parameters * _WEIGHT + _moments(parameters, of_muon)
