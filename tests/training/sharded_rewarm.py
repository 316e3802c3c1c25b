"""Some steps of AdamW, or of Muon beside it, with re-warmed new entries and grown moments, divided by FSDP2 or not.

Gradients are fixed. Leaves the weights and first moments of all, as the whole state that the next growth reads.
"""

import json
import sys
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import save_file
from torch import distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import AutoModelForCausalLM

from hf_progressive.distributed.processes import leave_processes
from hf_progressive.growth.grow import OPTIMIZER_NAME
from hf_progressive.growth.hidden_matrices import hidden_matrices
from hf_progressive.growth.optimizer import parameter_groups
from hf_progressive.training.callbacks import CarriedMoments
from hf_progressive.training.moments import whole_optimizer_state
from hf_progressive.training.muon import MuonWithAdamW
from hf_progressive.training.rewarm import RewarmNewEntries


def build_optimizer(model, *, muon):
    """Build what a ladder trains with, all weights decayed."""
    parameters = dict(model.named_parameters())
    groups = [
        {"params": [parameters[name] for name in names], "weight_decay": 0.01}
        for names in parameter_groups(model.config, muon=muon)[:2]
    ]
    if not muon:
        return torch.optim.AdamW(groups, lr=1e-2)
    matrices = [(parameters[name], parts) for name, parts in hidden_matrices(model).items()]
    return MuonWithAdamW(groups, matrices, lr=1e-2, muon_lr=1e-2, weight_decay=0.01)


def main(init, output, muon):
    """Take three steps, of which the third is past the warm-up."""
    dist.init_process_group("gloo")
    model = AutoModelForCausalLM.from_pretrained(init, dtype=torch.float32)
    if dist.get_world_size() > 1:
        fully_shard(model)
    parameters = dict(model.named_parameters())
    optimizer = build_optimizer(model, muon=muon)
    rewarm = RewarmNewEntries(lambda: model, init, steps=2, floor=0.1)
    for callback in (CarriedMoments(init / OPTIMIZER_NAME), rewarm):
        callback.on_train_begin(None, SimpleNamespace(global_step=0), None, model=model, optimizer=optimizer)
    for step in range(3):
        state = SimpleNamespace(global_step=step)
        for name, parameter in parameters.items():
            generator = torch.Generator().manual_seed(step + sum(name.encode()))
            gradient = torch.randn(parameter.shape, generator=generator)
            if isinstance(parameter.data, DTensor):
                gradient = distribute_tensor(gradient, parameter.device_mesh, parameter.placements)
            parameter.grad = gradient
        rewarm.on_pre_optimizer_step(None, state, None)
        optimizer.step()
        rewarm.on_optimizer_step(None, state, None)
    optimizer.zero_grad()
    moments = whole_optimizer_state(model, optimizer)
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if dist.get_rank() == 0:
        names = [*chain(*parameter_groups(model.config, muon=muon))]
        named = any(isinstance(key, str) for key in moments["state"])
        for number, name in enumerate(names):
            moment = moments["state"][name if named else number]
            weights[f"{name}/moment"] = moment["momentum_buffer" if "momentum_buffer" in moment else "exp_avg"]
        weights.pop("lm_head.weight", None)  # tied
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, output)
        output.with_suffix(".json").write_text(json.dumps({"named": named}))
    dist.barrier()  # no process goes while another one may still wait for it
    leave_processes()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]), muon="muon" in sys.argv[3:])
