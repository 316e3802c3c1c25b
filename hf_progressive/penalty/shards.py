"""The piece of a parameter that one process holds, and its gradient, whatever engine has divided the model.

Every engine gives a process one contiguous piece of the row-major parameter: all of it (one process, DDP), some rows
(FSDP2's DTensor), a flat range (DeepSpeed ZeRO). Under ZeRO the piece is that of the optimizer's float32 master copy
and of the averaged gradient, which exist between the backward and the engine's step.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.tensor import DTensor, Replicate, Shard


class HeldPiece:
    """All of a parameter: the piece a process holds where nothing is divided.

    Args:
        parameter: The parameter as the model has it now.
    """

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = parameter
        self.shape: tuple[int, ...] = tuple(parameter.shape)
        """Shape of the whole parameter."""
        self.start = 0
        """Where the piece begins in the flattened parameter, in elements."""
        self.length = parameter.numel()
        """Elements of the piece."""
        self.group: dist.ProcessGroup | None = None
        """The processes that hold the other pieces; None where there are none."""

    @property
    def is_whole(self) -> bool:
        """Whether there are no other pieces."""
        return self.group is None

    def weights(self) -> Tensor:
        """Return the piece's weights.

        Returns:
            (length,), sharing storage with the parameter or its master copy.
        """
        return self.parameter.detach().view(-1)

    def gradient(self) -> Tensor:
        """Return the piece's gradient; what is added to it counts after `store_gradient`.

        Returns:
            (length,), zeros where the parameter has no gradient yet.
        """
        return self._whole_gradient().view(-1)

    def _whole_gradient(self) -> Tensor:
        if self.parameter.grad is None:
            self.parameter.grad = torch.zeros_like(self.parameter)
        return self.parameter.grad

    def store_gradient(self, gradient: Tensor) -> None:
        """Make a gradient that came from `gradient` and was changed in place the one the optimizer sees.

        Args:
            gradient: (length,).
        """


class _RowsPiece(HeldPiece):
    """FSDP2: some rows of a DTensor."""

    def __init__(self, parameter: nn.Parameter, tensor: DTensor) -> None:
        super().__init__(parameter)
        mesh, placements = tensor.device_mesh, tensor.placements
        sharded = [axis for axis, placement in enumerate(placements) if placement == Shard(0)]
        others = [p for axis, p in enumerate(placements) if axis not in sharded]
        if len(sharded) != 1 or any(not isinstance(p, Replicate) for p in others):
            raise ValueError(
                f"a parameter of shape {self.shape} is placed {placements}; Φ follows one sharding of dimension 0, "
                "as fully_shard does by default, not tensor parallelism"
            )
        # torch.chunk's rule, which Shard follows: equal pieces, the last ones shorter or empty
        rows, processes = self.shape[0], mesh.size(sharded[0])
        first = min(mesh.get_local_rank(sharded[0]) * -(-rows // processes), rows)
        self.start = first * (self.length // rows if rows else 0)
        self.length = tensor.to_local().numel()
        self.group = mesh.get_group(sharded[0])

    def weights(self) -> Tensor:
        return _local(self.parameter.detach())

    def gradient(self) -> Tensor:
        return _local(self._whole_gradient())


class _ZeroPartition(HeldPiece):
    """ZeRO-3: an equal flat range, the last one padded."""

    def __init__(self, parameter: Any) -> None:
        super().__init__(parameter)
        self.shape = tuple(parameter.ds_shape)
        self.group = parameter.ds_process_group
        self._partition: Tensor = parameter.ds_tensor
        partition = self._partition.numel()
        self.start = min(dist.get_rank(self.group) * partition, parameter.ds_numel)
        self.length = min(partition, parameter.ds_numel - self.start)

    def weights(self) -> Tensor:
        from deepspeed.utils import safe_get_local_fp32_param

        master: Tensor | None = safe_get_local_fp32_param(self.parameter)  # None: frozen
        held = self._partition if master is None else master
        return held.view(-1).narrow(0, 0, self.length)

    def gradient(self) -> Tensor:
        from deepspeed.utils import safe_get_local_grad

        padded = safe_get_local_grad(self.parameter)
        assert isinstance(padded, Tensor)
        self._padded = padded
        return padded.view(-1).narrow(0, 0, self.length)

    def store_gradient(self, gradient: Tensor) -> None:
        from deepspeed.utils import safe_set_local_grad

        safe_set_local_grad(self.parameter, self._padded)


class _ZeroFragment(HeldPiece):
    """ZeRO-1 and 2: the flat range, perhaps empty, that falls into this process's part of the optimizer's state."""

    def __init__(self, parameter: Any) -> None:
        super().__init__(parameter)
        self.group = parameter._dp_group
        self._mapping = parameter._hp_mapping
        if self._mapping is None:
            self.start = self.length = 0
            return
        if getattr(parameter, "_hp_grad", None) is not None:
            raise ValueError(
                "ZeRO-1 with bf16 weights and data_types.grad_accum_dtype fp32 keeps every gradient whole; "
                "leave grad_accum_dtype unset, or use ZeRO-2 or 3"
            )
        if self._mapping.use_offload:
            raise ValueError(
                "ZeRO-1 and 2 with offload_optimizer take the gradient's norm before Φ can be added; "
                "use ZeRO-3, or no offload"
            )
        address = self._mapping.lp_fragment_address
        self.start, self.length = address.start, address.numel
        self._index = parameter._index_in_param_group

    def weights(self) -> Tensor:
        if self._mapping is None:
            return self.parameter.detach().view(-1)[:0]
        held: Tensor = self._mapping.hp_fragment
        return held.view(-1)

    def gradient(self) -> Tensor:
        if self._mapping is None:
            return torch.zeros(0, device=self.parameter.device)
        averaged: Tensor = self._mapping.get_lp_grad_fragment(self._index)
        return averaged.view(-1)


def held_piece(parameter: nn.Parameter) -> HeldPiece:
    """Return the piece of a parameter that this process holds.

    Args:
        parameter: A parameter of a model as its engine has prepared it.

    Returns:
        The piece.

    Raises:
        ValueError: The parameter is divided in a way Φ does not follow.

    >>> piece = held_piece(nn.Parameter(torch.ones(3, 2)))
    >>> piece.shape, piece.start, piece.length, piece.is_whole
    ((3, 2), 0, 6, True)
    """
    if isinstance(parameter.data, DTensor):
        return _RowsPiece(parameter, parameter.data)
    if hasattr(parameter, "ds_tensor"):
        return _ZeroPartition(parameter)
    if hasattr(parameter, "_hp_mapping"):
        return _ZeroFragment(parameter)
    return HeldPiece(parameter)


def whole_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """Return a parameter's shape, also where ZeRO-3 has left it empty.

    Args:
        parameter: A parameter.

    Returns:
        The shape of the whole.
    """
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def rows_held(start: int, length: int, columns: int) -> slice:
    """Return the rows of a matrix that a flat piece touches.

    Args:
        start: Where the piece begins.
        length: Its elements.
        columns: Elements of a row.

    Returns:
        A slice of rows, empty for an empty piece.

    >>> rows_held(4, 5, columns=3), rows_held(4, 0, columns=3)
    (slice(1, 3, None), slice(1, 1, None))
    """
    first = start // columns
    return slice(first, -(-(start + length) // columns) if length else first)


def shared_rows(pieces: Sequence[tuple[int, int]], columns: int) -> list[int]:
    """Return the rows of a matrix that more than one process holds a part of.

    Args:
        pieces: Start and length of each process's flat piece; they cover the matrix.
        columns: Elements of a row.

    Returns:
        Row indices in rising order.

    >>> shared_rows([(0, 4), (4, 5), (9, 3)], columns=3)
    [1]
    """
    inner = {start for start, length in pieces if length and start % columns}
    return sorted({start // columns for start in inner})


def _local(tensor: Tensor) -> Tensor:
    assert isinstance(tensor, DTensor)
    with torch.no_grad():  # so that this is the storage itself
        return tensor.to_local().view(-1)
