"""Sums with one entry per weight: whole where the model is whole, divided among processes where the model is.

Where FSDP2 or DeepSpeed ZeRO-3 divides a model, no process holds a full copy of the sums either. Each layer's share of
a batch is formed in full, added up over the processes and scattered, as training does with a layer's gradient.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Shard, zeros

from hf_progressive.distributed.working_dtype import working_dtype
from hf_progressive.penalty.shards import sharded_axis, whole_shape


def zero_totals(model: nn.Module) -> dict[str, Tensor]:
    """Return zeros of every parameter's full shape, by name; where the model is divided, DTensors of some rows."""
    return {name: _zero_total(parameter) for name, parameter in model.named_parameters()}


def _zero_total(parameter: nn.Parameter) -> Tensor:
    dtype = working_dtype(parameter.dtype)
    if isinstance(parameter, DTensor):
        sharded_axis(parameter, "the Fisher information")
        mesh, placements = parameter.device_mesh, parameter.placements
        return zeros(parameter.shape, dtype=dtype, device_mesh=mesh, placements=placements)
    if hasattr(parameter, "ds_process_group"):  # ZeRO-3
        mesh = DeviceMesh.from_group(parameter.ds_process_group, parameter.device.type)
        return zeros(whole_shape(parameter), dtype=dtype, device_mesh=mesh, placements=[Shard(0)])
    return torch.zeros(parameter.shape, dtype=dtype, device=parameter.device)


def add_to_total(total: Tensor, add: Callable[[Tensor], None]) -> None:
    """Let a function add in place to a sum, or to a tensor of its full shape.

    If the sum is divided, all processes must call this for it in the same order, and what each adds is summed.
    """
    if not isinstance(total, DTensor):
        add(total)
        return
    own = torch.zeros(total.shape, dtype=total.dtype, device=total.device)
    add(own)
    mesh = total.device_mesh
    total.add_(DTensor.from_local(own, mesh, [Partial()] * mesh.ndim).redistribute(placements=total.placements))


def sum_over_processes(tensors: Iterable[Tensor]) -> None:
    """Add up, in place, what the processes of `torch.distributed` each have; a divided tensor is a sum already."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        for tensor in tensors:
            if not isinstance(tensor, DTensor):
                dist.all_reduce(tensor)


def whole_tensor(value: Tensor) -> Tensor:
    """Return the whole of a tensor that FSDP2 or ZeRO-3 may divide, without gradient; all processes must call."""
    if isinstance(value, DTensor):
        gathered: Tensor = value.full_tensor().detach()
        return gathered
    if hasattr(value, "ds_tensor"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([value]):
            return value.detach().clone()
    return value.detach()
