"""The shard of a parameter that one process holds, and its gradient: one class for each way of dividing a model.

Every engine gives a process one contiguous shard of the row-major parameter: all of it (one process, DDP), some rows
(FSDP2's DTensor), a flat range (DeepSpeed ZeRO). Under ZeRO the shard is that of the optimizer's float32 master copy
and of the averaged gradient, which exist between the backward and the engine's step. Engines exchange what lies
behind a parameter, so that it is looked up each time.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.tensor import DTensor, Replicate, Shard


class ParameterShard(Protocol):
    """What a process holds of a parameter."""

    parameter: nn.Parameter
    """As the model has it."""
    shape: tuple[int, ...]
    """Of the whole parameter."""
    start: int
    """Where the shard begins in the flattened parameter, in elements."""
    length: int
    """Elements of the shard."""
    group: dist.ProcessGroup | None
    """The processes that hold the other shards; None where this one is the whole."""

    @property
    def is_whole(self) -> bool:
        """Whether there are no other shards."""
        return self.group is None

    def weights(self) -> Tensor:
        """Return the shard's weights, (length,), in the storage of the parameter or its master copy."""

    def weights_to_change(self) -> Tensor:
        """Return the weights to change in place, (length,), which `store_weights` follows."""
        return self.weights()

    def store_weights(self) -> None:
        """Give the optimizer what was changed in the last `weights_to_change`, where that is a copy of what it has."""
        return

    def gradient(self) -> Tensor:
        """Return the shard's gradient, (length,), zeros where there is none yet."""

    def store_gradient(self) -> None:
        """Show the optimizer what was added to the last `gradient`, where that is a copy of what it sees."""
        return


class WholeShard(ParameterShard):
    """One process, or DDP: all of the parameter."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter, self.shape = parameter, tuple(parameter.shape)
        self.start, self.length, self.group = 0, parameter.numel(), None
        if not parameter.is_contiguous():
            raise ValueError(
                f"a parameter of shape {self.shape} is not laid out row by row, as under channels_last; call "
                "model.to(memory_format=torch.contiguous_format), the inputs may stay as they are"
            )

    def weights(self) -> Tensor:
        return self.parameter.detach().view(-1)

    def gradient(self) -> Tensor:
        return _gradient_of(self.parameter).view(-1)


class RowShard(ParameterShard):
    """FSDP2: some rows of a DTensor."""

    def __init__(self, parameter: nn.Parameter, tensor: DTensor) -> None:
        self.parameter, self.shape = parameter, tuple(parameter.shape)
        mesh, axis = tensor.device_mesh, sharded_axis(tensor, "Φ")
        # torch.chunk's rule, which Shard follows: equal shards, the last ones shorter or empty
        rows, processes = self.shape[0], mesh.size(axis)
        first = min(mesh.get_local_rank(axis) * -(-rows // processes), rows)
        self.start = first * (parameter.numel() // rows if rows else 0)
        self.length = tensor.to_local().numel()
        self.group = mesh.get_group(axis)

    def weights(self) -> Tensor:
        return _local(self.parameter.detach())

    def gradient(self) -> Tensor:
        return _local(_gradient_of(self.parameter))


class ZeroPartition(ParameterShard):
    """ZeRO-3: an equal flat range, the last one padded."""

    def __init__(self, parameter: Any) -> None:
        self.parameter, self.shape = parameter, tuple(parameter.ds_shape)
        self.group = parameter.ds_process_group
        partition = parameter.ds_tensor.numel()
        self.start = min(dist.get_rank(self.group) * partition, parameter.ds_numel)
        self.length = min(partition, parameter.ds_numel - self.start)
        self._padded: Tensor | None = None  # the gradient last handed out, a copy
        self._master: Tensor | None = None  # the weights last handed out, a copy where the optimizer is offloaded

    def weights(self) -> Tensor:
        from deepspeed.utils import safe_get_local_fp32_param

        parameter: Any = self.parameter
        master: Tensor | None = safe_get_local_fp32_param(parameter)  # None: frozen
        held: Tensor = parameter.ds_tensor if master is None else master
        return held.view(-1).narrow(0, 0, self.length)

    def weights_to_change(self) -> Tensor:
        from deepspeed.utils import safe_get_local_fp32_param

        self._master = safe_get_local_fp32_param(self.parameter)
        assert self._master is not None
        return self._master.view(-1).narrow(0, 0, self.length)

    def store_weights(self) -> None:
        from deepspeed.utils import safe_set_local_fp32_param

        safe_set_local_fp32_param(self.parameter, self._master)
        self._master = None

    def gradient(self) -> Tensor:
        from deepspeed.utils import safe_get_local_grad

        padded: Tensor | None = safe_get_local_grad(self.parameter)
        assert padded is not None
        self._padded = padded
        return padded.view(-1).narrow(0, 0, self.length)

    def store_gradient(self) -> None:
        from deepspeed.utils import safe_set_local_grad

        safe_set_local_grad(self.parameter, self._padded)
        self._padded = None


class ZeroFragment(ParameterShard):
    """ZeRO-1 and 2: the flat range, perhaps empty, that falls into this process's part of the optimizer's state."""

    def __init__(self, parameter: Any) -> None:
        self.parameter, self.shape = parameter, tuple(parameter.shape)
        self.group = parameter._dp_group
        self.start = self.length = 0
        if parameter._hp_mapping is None:
            return
        if getattr(parameter, "_hp_grad", None) is not None:
            raise ValueError(
                "ZeRO-1 with bf16 weights and data_types.grad_accum_dtype fp32 keeps every gradient whole; "
                "leave grad_accum_dtype unset, or use ZeRO-2 or 3"
            )
        if parameter._hp_mapping.use_offload:
            raise ValueError(
                "ZeRO-1 and 2 with offload_optimizer take the gradient's norm before Φ can be added; "
                "use ZeRO-3, or no offload"
            )
        address = parameter._hp_mapping.lp_fragment_address
        self.start, self.length = address.start, address.numel

    def weights(self) -> Tensor:
        parameter: Any = self.parameter
        held: Tensor = parameter._hp_mapping.hp_fragment if self.length else parameter.detach().view(-1)[:0]
        return held.view(-1)

    def gradient(self) -> Tensor:
        parameter: Any = self.parameter
        if self.length == 0:
            return torch.zeros(0, device=parameter.device)
        averaged: Tensor = parameter._hp_mapping.get_lp_grad_fragment(parameter._index_in_param_group)
        return averaged.view(-1)


def shard_of(parameter: nn.Parameter) -> ParameterShard:
    """Return what this process holds of a parameter of a model as its engine has prepared it.

    >>> shard = shard_of(nn.Parameter(torch.ones(3, 2)))
    >>> shard.shape, shard.start, shard.length, shard.is_whole
    ((3, 2), 0, 6, True)
    """
    if isinstance(parameter.data, DTensor):
        return RowShard(parameter, parameter.data)
    if hasattr(parameter, "ds_tensor"):
        return ZeroPartition(parameter)
    if hasattr(parameter, "_hp_mapping"):
        return ZeroFragment(parameter)
    return WholeShard(parameter)


def sharded_axis(tensor: DTensor, follower: str) -> int:
    """Return the axis of the mesh that divides a tensor's rows, or refuse any other placement for `follower`."""
    placements = tensor.placements
    if placements.count(Shard(0)) != 1 or placements.count(Replicate()) != len(placements) - 1:
        raise ValueError(
            f"a parameter of shape {tuple(tensor.shape)} is placed {placements}; {follower} follows one sharding of "
            "dimension 0, as fully_shard does by default, not tensor parallelism"
        )
    return placements.index(Shard(0))


def whole_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """Return a parameter's shape, also where ZeRO-3 has left it empty."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def gather_layouts(shards: Mapping[str, ParameterShard]) -> dict[str, list[tuple[int, int]]]:
    """Exchange, for each divided parameter, start and length of every process's shard; all processes must call."""
    divided = {name: (shard.start, shard.length) for name, shard in shards.items() if not shard.is_whole}
    if not divided:
        return {}
    group = next(shard.group for shard in shards.values() if not shard.is_whole)
    everyones: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyones, divided, group=group)
    return {name: [layout[name] for layout in everyones] for name in divided}


def rows_held(start: int, length: int, columns: int) -> slice:
    """Return the rows of a matrix that a flat shard touches; an empty slice for an empty shard.

    >>> rows_held(4, 5, columns=3), rows_held(4, 0, columns=3)
    (slice(1, 3, None), slice(1, 1, None))
    """
    first = start // columns
    return slice(first, -(-(start + length) // columns) if length else first)


def shared_rows(layout: Sequence[tuple[int, int]], columns: int) -> tuple[int, ...]:
    """Return the rows of a matrix that more than one process holds a part of, in rising order.

    `layout` has start and length of each process's flat shard; together they cover the matrix.

    >>> shared_rows([(0, 4), (4, 5), (9, 3)], columns=3)
    (1,)
    """
    return tuple(sorted({start // columns for start, length in layout if length and start % columns}))


def _gradient_of(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _local(tensor: Tensor) -> Tensor:
    assert isinstance(tensor, DTensor)
    with torch.no_grad():  # so that this is the storage itself
        return tensor.to_local().view(-1)
