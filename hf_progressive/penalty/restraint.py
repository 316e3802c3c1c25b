"""Φ on one parameter: the arithmetic, in chunks, on whatever piece of the parameter this process holds."""

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor
from torch import distributed as dist

from hf_progressive.distributed.working_dtype import working_dtype
from hf_progressive.penalty.shards import rows_held

CHUNK_ELEMENTS = {"cpu": 1 << 17}
"""Elements worked on at once, by device type: what fits a core's cache on a CPU."""
_CHUNK_ELEMENTS_ELSEWHERE = 1 << 24  # an accelerator wants few, large kernels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restraint:
    """W₀, Ω and U of the piece held of one parameter."""

    name: str
    shape: tuple[int, ...]
    """Of the whole parameter."""
    start: int
    """Where the piece begins in the flattened parameter."""
    anchor: Tensor
    """(length,): the piece of W₀."""
    fisher: Tensor | None
    """(length,): the piece of Ω."""
    basis: Tensor | None
    """U: (out, r); under a division of the output side only the rows (outputs) held."""
    output_dimension: int
    """The dimension of a matrix that runs over its module's outputs."""
    group: dist.ProcessGroup | None = None
    """The processes that hold the other pieces."""
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
    ) -> Tensor:
        """Compute Φ on the piece, and add its gradient to one.

        Args:
            weights: (length,).
            gradient: (length,), to which `gradient_scale`·∇Φ is added in place; None for none.
            ewc_lambda: λ.
            gamma: γ.
            gradient_scale: By what the gradient found is multiplied.

        Returns:
            (4,): λ·½ Σ Ω ΔW², γ‖(I − UUᵀ)ΔW‖², ‖∇Φ‖² and ‖gradient found / scale‖², over the piece; the last two are 0
            without a gradient. If a subspace is at work on a divided parameter, all its processes must call.
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
                    residual = self._residual(delta, basis)
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

    def _chunks(self, weights: Tensor, *, restrained: bool) -> "Iterator[_Chunk]":
        size = CHUNK_ELEMENTS.get(weights.device.type, _CHUNK_ELEMENTS_ELSEWHERE)
        if restrained and self.group is not None:
            yield _Chunk(0, len(weights))  # the collective inside wants the piece at once
        elif restrained:
            # whole outputs: columns of (out, in), rows of (in, out)
            along = 1 - self.output_dimension
            step = max(1, size // self.shape[self.output_dimension])
            for start in range(0, self.shape[along], step):
                yield _Chunk(start, min(start + step, self.shape[along]), self.shape, along)
        else:
            for start in range(0, len(weights), size):
                yield _Chunk(start, min(start + size, len(weights)))

    def _residual(self, delta: Tensor, basis: Tensor) -> Tensor:
        # (I − UUᵀ)ΔW, in the layout of delta: a block of the matrix, or the flat piece of a divided one
        if self.group is not None:
            return self._divided_residual(delta, basis)
        if self.output_dimension == 0:
            return delta.addmm(basis, basis.T @ delta, alpha=-1.0)  # (out, n)
        return delta.addmm(delta @ basis, basis.T, alpha=-1.0)  # (n, out)

    def _divided_residual(self, delta: Tensor, basis: Tensor) -> Tensor:
        # The piece stands in whole rows, zero where another process holds the rest: what is missing from UᵀΔW is then
        # a sum over processes, of all of it if outputs are divided, of the rows cut in two if inputs are.
        columns = self.shape[1]
        rows = rows_held(self.start, len(delta), columns)
        offset = self.start - rows.start * columns
        matrix = delta.new_zeros(rows.stop - rows.start, columns)
        matrix.view(-1)[offset : offset + len(delta)] = delta
        if self.output_dimension == 0:
            projected = basis.T @ matrix  # (r, in)
            dist.all_reduce(projected, group=self.group)
            residual = matrix.addmm(basis, projected, alpha=-1.0)  # (rows, in)
        else:
            projected = matrix @ basis  # (rows, r)
            self._sum_shared_rows(projected, rows.start)
            residual = matrix.addmm(projected, basis.T, alpha=-1.0)  # (rows, out)
        return residual.view(-1)[offset : offset + len(delta)]

    def _sum_shared_rows(self, projected: Tensor, first: int) -> None:
        if not self.shared_rows:
            return
        shared = torch.tensor(self.shared_rows, device=projected.device)
        held = (shared >= first) & (shared < first + len(projected))
        mine = shared[held] - first
        total = projected.new_zeros(len(shared), projected.shape[1])
        total[held] = projected[mine]
        dist.all_reduce(total, group=self.group)
        projected[mine] = total[held]


@dataclasses.dataclass(frozen=True)
class _Chunk:
    """A range of a flat piece, or of one dimension of a matrix."""

    start: int
    stop: int
    shape: tuple[int, ...] | None = None
    along: int = 0

    def of(self, flat: Tensor) -> Tensor:
        tensor = flat if self.shape is None else flat.view(self.shape)
        return tensor.narrow(self.along, self.start, self.stop - self.start)


def _dot(first: Tensor, second: Tensor) -> Tensor:
    return torch.dot(first.reshape(-1), second.reshape(-1))
