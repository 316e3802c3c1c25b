"""Φ on one parameter: the arithmetic, in chunks, on the shard that this process holds. Nothing here is exchanged."""

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from hf_progressive.distributed.working_dtype import working_dtype
from hf_progressive.penalty.shards import rows_held

CHUNK_ELEMENTS = {"cpu": 1 << 17}
"""Elements worked on at once, by device type: what fits a core's cache on a CPU."""
_CHUNK_ELEMENTS_ELSEWHERE = 1 << 24  # an accelerator wants few, large kernels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restraint:
    """W₀, Ω and U of one parameter's shard."""

    shape: tuple[int, ...]
    """Of the whole parameter."""
    anchor: Tensor
    """(length,): the shard of W₀."""
    fisher: Tensor | None
    """(length,): the shard of Ω."""
    basis: Tensor | None
    """U: (out, r); under a division of the output side only the rows (outputs) held."""
    output_dimension: int
    """The dimension of a matrix that runs over its module's outputs."""
    start: int = 0
    """Where the shard begins in the flattened parameter."""
    is_whole: bool = True
    """Whether the shard is all of the parameter."""
    shared_rows: tuple[int, ...] = ()
    """Rows of the matrix that more than one process holds a part of."""

    def apply(
        self,
        weights: Tensor,
        gradient: Tensor | None,
        ewc_lambda: float,
        gamma: float,
        *,
        gradient_scale: float | Tensor = 1.0,
        projection: Tensor | None = None,
    ) -> Tensor:
        """Compute Φ on the shard, and add `gradient_scale`·∇Φ in place to the gradient found there, if one is given.

        Weights and gradient are (length,). `projection` is what the method of that name returned, summed over
        processes; it is needed under γ where the parameter is divided.

        Returns:
            (4,): λ·½ Σ Ω ΔW², γ‖(I − UUᵀ)ΔW‖², ‖∇Φ‖² and ‖gradient found / scale‖², over the shard; the last two are 0
            without a gradient.
        """
        fisher = self.fisher if ewc_lambda > 0.0 else None
        basis = self.basis if gamma > 0.0 else None
        unscaled = isinstance(gradient_scale, float) and gradient_scale == 1.0
        dtype = working_dtype(weights.dtype)
        sums = torch.zeros(4, dtype=dtype, device=weights.device)
        with torch.autocast(weights.device.type, enabled=False):  # Φ keeps its own precision
            for chunk in self._chunks(weights, restrained=basis is not None):
                delta = chunk.of(weights).to(dtype)
                delta = delta - chunk.of(self.anchor).to(delta)
                slope = torch.zeros_like(delta)
                if fisher is not None:
                    torch.mul(delta, chunk.of(fisher).to(delta), out=slope).mul_(ewc_lambda)
                    sums[0] += 0.5 * _dot(slope, delta)
                if basis is not None:
                    residual = self._residual(delta, basis, projection)
                    sums[1] += gamma * _dot(residual, residual)
                    slope.add_(residual, alpha=2.0 * gamma)
                if gradient is not None:
                    sums[2] += _dot(slope, slope)
                    found = chunk.of(gradient)
                    exact = found.to(dtype)
                    if not unscaled:
                        exact, slope = exact / gradient_scale, slope * gradient_scale
                    sums[3] += _dot(exact, exact)
                    found.add_(slope.to(found.dtype))
        return sums

    def projection(self, weights: Tensor) -> Tensor:
        """Compute this process's share of the part of UᵀΔW, of a divided parameter, that it cannot know alone.

        Returns:
            To be summed over processes: UᵀΔW, (r, in), where outputs are divided; where inputs are, ΔWᵀU of the rows
            cut in two, (shared rows, r).
        """
        assert self.basis is not None
        dtype = working_dtype(weights.dtype)
        with torch.autocast(weights.device.type, enabled=False):
            matrix, rows, _ = self._in_whole_rows(weights.to(dtype) - self.anchor.to(weights.device, dtype))
            if self.output_dimension == 0:
                return self.basis.T @ matrix
            shares = matrix.new_zeros(len(self.shared_rows), self.basis.shape[1])
            for index, row in self._cut(rows):
                shares[index] = matrix[row] @ self.basis
            return shares

    def _chunks(self, weights: Tensor, *, restrained: bool) -> "Iterator[_Chunk]":
        size = CHUNK_ELEMENTS.get(weights.device.type, _CHUNK_ELEMENTS_ELSEWHERE)
        if restrained and not self.is_whole:
            yield _Chunk(0, len(weights))
        elif restrained:
            # whole outputs: columns of (out, in), rows of (in, out)
            along = 1 - self.output_dimension
            step = max(1, size // self.shape[self.output_dimension])
            for start in range(0, self.shape[along], step):
                yield _Chunk(start, min(start + step, self.shape[along]), self.shape, along)
        else:
            for start in range(0, len(weights), size):
                yield _Chunk(start, min(start + size, len(weights)))

    def _residual(self, delta: Tensor, basis: Tensor, projection: Tensor | None) -> Tensor:
        # (I − UUᵀ)ΔW, in the layout of delta: a block of the matrix, or the flat shard of a divided one
        if not self.is_whole:
            assert projection is not None
            return self._divided_residual(delta, basis, projection)
        if self.output_dimension == 0:
            return delta.addmm(basis, basis.T @ delta, alpha=-1.0)  # (out, n)
        return delta.addmm(delta @ basis, basis.T, alpha=-1.0)  # (n, out)

    def _divided_residual(self, delta: Tensor, basis: Tensor, projection: Tensor) -> Tensor:
        matrix, rows, within = self._in_whole_rows(delta)
        if self.output_dimension == 0:
            residual = matrix.addmm(basis, projection, alpha=-1.0)  # (rows, in)
        else:
            projected = matrix @ basis  # (rows, r)
            for index, row in self._cut(rows):
                projected[row] = projection[index]
            residual = matrix.addmm(projected, basis.T, alpha=-1.0)  # (rows, out)
        return residual.view(-1)[within]

    def _in_whole_rows(self, delta: Tensor) -> tuple[Tensor, slice, slice]:
        # the flat shard as whole rows, zero where another process holds the rest; which rows; where it is in them
        columns = self.shape[1]
        rows = rows_held(self.start, len(delta), columns)
        offset = self.start - rows.start * columns
        within = slice(offset, offset + len(delta))
        matrix = delta.new_zeros(rows.stop - rows.start, columns)
        matrix.view(-1)[within] = delta
        return matrix, rows, within

    def _cut(self, rows: slice) -> list[tuple[int, int]]:
        # of the rows cut in two that are among these: which of all those, and which of these
        return [(i, row - rows.start) for i, row in enumerate(self.shared_rows) if rows.start <= row < rows.stop]


@dataclasses.dataclass(frozen=True)
class _Chunk:
    """A range of a flat shard, or of one dimension of a matrix."""

    start: int
    stop: int
    shape: tuple[int, ...] | None = None
    along: int = 0

    def of(self, flat: Tensor) -> Tensor:
        tensor = flat if self.shape is None else flat.view(self.shape)
        return tensor.narrow(self.along, self.start, self.stop - self.start)


def _dot(first: Tensor, second: Tensor) -> Tensor:
    return torch.dot(first.reshape(-1), second.reshape(-1))
