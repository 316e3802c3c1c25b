"""Φ on one parameter: the arithmetic, in chunks, on the shard that this process holds.

Where a parameter is divided, a product with U is a sum over processes, which `summed` forms. No more is exchanged.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from hf_progressive.distributed.working_dtype import working_dtype
from hf_progressive.penalty.shards import rows_held

CHUNK_ELEMENTS = {"cpu": 1 << 17}
"""Elements worked on at once, by device type: what fits a core's cache on a CPU."""
_CHUNK_ELEMENTS_ELSEWHERE = 1 << 24  # an accelerator wants few, large kernels


def chunk_elements(device: torch.device) -> int:
    """Return how many elements are worked on at once on a device."""
    return CHUNK_ELEMENTS.get(device.type, _CHUNK_ELEMENTS_ELSEWHERE)


def total_of(sums: Sequence[Tensor]) -> Tensor:
    """Add up sums of (4,) each, on any device, where the first is; zeros on the CPU where there is none."""
    return torch.stack([each.to(sums[0]) for each in sums]).sum(0) if sums else torch.zeros(4)


def of_one_process(local: Tensor) -> Tensor:
    """Return a sum over processes where there is one."""
    return local


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restraint:
    """W₀, Ω and U of one parameter's shard."""

    shape: tuple[int, ...]
    """Of the whole parameter, a convolution's as (out, in·kernel)."""
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
    inside: bool = False
    """Whether γ restrains UUᵀΔW, not (I − UUᵀ)ΔW."""
    gamma_share: float = 1.0
    """By what γ is multiplied here."""
    further: tuple["Restraint", ...] = ()
    """More γ terms on the same shard, each with its own anchor."""

    def apply(
        self,
        weights: Tensor,
        gradient: Tensor | None,
        ewc_lambda: float,
        gamma: float,
        *,
        gradient_scale: float | Tensor = 1.0,
        summed: Callable[[Tensor], Tensor] = of_one_process,
    ) -> Tensor:
        """Compute Φ on the shard, and add `gradient_scale`·∇Φ in place to the gradient found there, if one is given.

        Weights and gradient are (length,). Under γ every process of a divided parameter must call.

        Returns:
            (4,): λ·½ Σ Ω ΔW², γ‖(I − UUᵀ)ΔW‖² or γ‖UUᵀΔW‖², ‖∇Φ‖² and ‖gradient found / scale‖², over the shard; the
            last two are 0 without a gradient.
        """
        fisher = self.fisher if ewc_lambda > 0.0 else None
        subspaces = self.subspaces if gamma > 0.0 else []
        unscaled = isinstance(gradient_scale, float) and gradient_scale == 1.0
        dtype = working_dtype(weights.dtype)
        sums = torch.zeros(4, dtype=dtype, device=weights.device)
        with torch.autocast(weights.device.type, enabled=False):  # Φ keeps its own precision
            for chunk in self._chunks(weights, restrained=bool(subspaces)):
                held = chunk.of(weights).to(dtype)
                delta = held - chunk.of(self.anchor).to(held)
                slope = torch.zeros_like(delta)
                if fisher is not None:
                    torch.mul(delta, chunk.of(fisher).to(delta), out=slope).mul_(ewc_lambda)
                    sums[0] += 0.5 * _dot(slope, delta)
                for each in subspaces:
                    strength = gamma * each.gamma_share
                    part = each._restrained(delta if each is self else held - chunk.of(each.anchor).to(held), summed)
                    sums[1] += strength * _dot(part, part)
                    slope.add_(part, alpha=2.0 * strength)
                if gradient is not None:
                    sums[2] += _dot(slope, slope)
                    found = chunk.of(gradient)
                    exact = found.to(dtype)
                    if not unscaled:
                        exact, slope = exact / gradient_scale, slope * gradient_scale
                    sums[3] += _dot(exact, exact)
                    found.add_(slope.to(found.dtype))
        return sums

    def shrink(
        self,
        weights: Tensor,
        rate: float | Tensor,
        ewc_lambda: float,
        gamma: float,
        *,
        summed: Callable[[Tensor], Tensor] = of_one_process,
    ) -> Tensor:
        """Take Φ's proximal step of length `rate` on the shard's weights, (length,), in place: the terms in sequence.

        First λ's, then γ's, then those of `further`; entries that a term does not restrain keep their bits. Under γ
        every process of a divided parameter must call.

        Returns:
            (4,): λ·½ Σ Ω ΔW² and γ's term as each found it, ‖what was moved‖² and ‖ΔW found‖², over the shard.
        """
        fisher = self.fisher if ewc_lambda > 0.0 else None
        subspaces = self.subspaces if gamma > 0.0 else []
        dtype = working_dtype(weights.dtype)
        sums = torch.zeros(4, dtype=dtype, device=weights.device)
        with torch.autocast(weights.device.type, enabled=False):
            for chunk in self._chunks(weights, restrained=bool(subspaces)):
                held = chunk.of(weights)
                delta = held.to(dtype) - chunk.of(self.anchor).to(held.device, dtype)
                moved = torch.zeros_like(delta)
                sums[3] += _dot(delta, delta)
                if fisher is not None:
                    pull = chunk.of(fisher).to(delta) * ewc_lambda
                    torch.mul(pull, delta, out=moved)
                    sums[0] += 0.5 * _dot(moved, delta)
                    moved.mul_(rate).div_(pull.mul_(rate).add_(1.0))
                for each in subspaces:
                    strength = gamma * each.gamma_share
                    origin = delta if each is self else held.to(dtype) - chunk.of(each.anchor).to(delta)
                    part = each._restrained(origin - moved, summed)
                    sums[1] += strength * _dot(part, part)
                    moved.add_(part * (2.0 * strength * rate / (1.0 + 2.0 * strength * rate)))
                sums[2] += _dot(moved, moved)
                held.sub_(moved)
        return sums

    @property
    def subspaces(self) -> "list[Restraint]":
        """This restraint and the further ones, those that have a basis."""
        return [each for each in (self, *self.further) if each.basis is not None]

    def _chunks(self, weights: Tensor, *, restrained: bool) -> "Iterator[_Chunk]":
        size = chunk_elements(weights.device)
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

    def _restrained(self, delta: Tensor, summed: Callable[[Tensor], Tensor]) -> Tensor:
        # (I − UUᵀ)ΔW or UUᵀΔW, in the layout of delta: a block of the matrix, or the flat shard of a divided one
        basis = self.basis
        assert basis is not None
        if not self.is_whole:
            return self._restrained_shard(delta, basis, summed)
        if self.output_dimension == 0:
            return self._side(delta, basis, basis.T @ delta)  # (out, n)
        return self._side(delta, delta @ basis, basis.T)  # (n, out)

    def _side(self, delta: Tensor, left: Tensor, right: Tensor) -> Tensor:
        return left @ right if self.inside else delta.addmm(left, right, alpha=-1.0)

    def _restrained_shard(self, delta: Tensor, basis: Tensor, summed: Callable[[Tensor], Tensor]) -> Tensor:
        matrix, rows, within = self._in_whole_rows(delta)
        if self.output_dimension == 0:
            part = self._side(matrix, basis, summed(basis.T @ matrix))  # (rows, in), by way of (r, in)
        else:
            projected = matrix @ basis  # (rows, r)
            shares = matrix.new_zeros(len(self.shared_rows), basis.shape[1])
            cut = self._cut(rows)
            for index, row in cut:
                shares[index] = projected[row]
            shares = summed(shares)
            for index, row in cut:
                projected[row] = shares[index]
            part = self._side(matrix, projected, basis.T)  # (rows, out)
        return part.view(-1)[within]

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
