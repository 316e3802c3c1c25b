"""Some steps of AdamW on fixed gradients with re-warmed new entries and grown moments, divided by FSDP2 or not.

Leaves the weights and first moments of all, as the whole state that the next growth reads has them.
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

from hf_progressive.growth.grow import OPTIMIZER_NAME
from hf_progressive.growth.optimizer import parameter_groups
from hf_progressive.training.callbacks import CarriedMoments
from hf_progressive.training.moments import whole_optimizer_state
from hf_progressive.training.rewarm import RewarmNewEntries


def main(init, output):
    """Take three steps, of which the third is past the warm-up."""
    dist.init_process_group("gloo")
    model = AutoModelForCausalLM.from_pretrained(init, dtype=torch.float32)
    if dist.get_world_size() > 1:
        fully_shard(model)
    parameters = dict(model.named_parameters())
    groups = [[parameters[name] for name in names] for names in parameter_groups(model.config)]
    optimizer = torch.optim.AdamW([{"params": group} for group in groups], lr=1e-2)
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
        names = [*chain(*parameter_groups(model.config))]
        named = any(isinstance(key, str) for key in moments["state"])
        for number, name in enumerate(names):
            weights[f"{name}/exp_avg"] = moments["state"][name if named else number]["exp_avg"]
        weights.pop("lm_head.weight", None)  # tied
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, output)
        output.with_suffix(".json").write_text(json.dumps({"named": named}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
