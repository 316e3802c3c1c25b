"""Φ on an accelerator: the same arithmetic as on a CPU, in few and large kernels.

A CPU works in chunks that fit its cache, at the price of a dozen operators a chunk. An accelerator waits for its
memory and for launches: so what belongs to an entry is done at once where code can be compiled (W, W₀, Ω and the
gradient are read once, what changes is written once), small tensors are taken together, and a large one in parts of
whole rows.
"""

import functools
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hf_progressive.distributed.compilation import compiles_on
from hf_progressive.distributed.working_dtype import working_dtype
from hf_progressive.penalty.arithmetic import Restraint, total_of

PART_ELEMENTS = 1 << 24
"""Elements worked on at once."""
_COLUMNS = 1024  # of what is no matrix under γ
_SMALL_ELEMENTS = 1 << 16  # below that, tensors are taken together

_Operands = tuple[Tensor, Tensor, Tensor | None, Tensor | None]  # W, W₀, Ω, gradient


class _Grouped(ABC):
    """One kernel on the shards of parameters that are handed in one after the other.

    Products with U follow `torch.set_float32_matmul_precision`.
    """

    def __init__(self, ewc_lambda: float, gamma: float) -> None:
        self._ewc_lambda, self._gamma = ewc_lambda, gamma
        self._sums: list[Tensor] = []
        self._small: dict[tuple[Any, ...], list[_Operands]] = defaultdict(list)
        self._small_elements = 0
        self._factors: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    @abstractmethod
    def _numbers(self) -> list[float | Tensor]:
        """Return what the kernel multiplies with."""

    @abstractmethod
    def _kernel(self, device_type: str | None) -> Callable[..., Tensor]:
        """Return what works on rows, compiled for a device or, for None, not."""

    def _projected(self, weights: Tensor, anchor: Tensor, fisher: Tensor | None) -> Tensor:
        """Return what U is multiplied with: ΔW."""
        return _difference(weights, anchor)

    def finish(self) -> Tensor | None:
        """Do what is still to be done; return the sums that `Restraint` does, since the last call, if any."""
        self._flush_small()
        sums, self._sums = self._sums, []
        return total_of(sums) if sums else None

    def _take(self, restraint: Restraint, weights: Tensor, gradient: Tensor | None) -> None:
        anchor, fisher = restraint.anchor, restraint.fisher if self._ewc_lambda > 0.0 else None
        if self._gamma > 0.0 and restraint.subspaces:
            assert restraint.is_whole
            assert restraint.basis is not None
            assert not restraint.further
            assert restraint.gamma_share == 1.0
            self._take_matrix(restraint, weights, fisher, gradient)
            return
        whole_rows = 0 if len(weights) < _SMALL_ELEMENTS else len(weights) - len(weights) % _COLUMNS
        for start in range(0, whole_rows, PART_ELEMENTS):
            part = slice(start, min(start + PART_ELEMENTS, whole_rows))
            rows = [None if t is None else t[part].view(-1, _COLUMNS) for t in (weights, anchor, fisher, gradient)]
            self._take_rows(rows[0], rows[1], rows[2], rows[3])
        if whole_rows < len(weights):
            rest = [None if t is None else t[whole_rows:] for t in (weights, anchor, fisher, gradient)]
            self._keep_small(*rest)

    def _take_matrix(
        self, restraint: Restraint, weights: Tensor, fisher: Tensor | None, gradient: Tensor | None
    ) -> None:
        shape, basis = restraint.shape, restraint.basis
        assert basis is not None
        w, w0 = (each.view(shape) for each in (weights, restraint.anchor))
        omega, g = (None if each is None else each.view(shape) for each in (fisher, gradient))
        rows_at_once = max(1, PART_ELEMENTS // shape[1])
        parts = [slice(start, start + rows_at_once) for start in range(0, shape[0], rows_at_once)]
        projected: Tensor | None = None

        def of(part: slice) -> Tensor:
            return self._projected(w[part], w0[part], None if omega is None else omega[part])

        if restraint.output_dimension == 0:
            for part in parts:  # UᵀΔW, (r, in): a sum over outputs
                share = basis[part].T @ of(part)
                projected = share if projected is None else projected + share
        for part in parts:
            within = (of(part) @ basis) @ basis.T if projected is None else basis[part] @ projected
            rows = [None if each is None else each[part] for each in (omega, g)]
            self._take_rows(w[part], w0[part], rows[0], rows[1], within=within, inside=restraint.inside)

    def _take_rows(
        self,
        weights: Any,
        anchor: Any,
        fisher: Tensor | None,
        gradient: Tensor | None,
        *,
        within: Tensor | None = None,
        inside: bool = False,
    ) -> None:
        place = weights.device
        anchor = anchor.to(place)
        fisher = None if fisher is None else fisher.to(place)
        kernel = self._kernel(place.type if min(weights.shape) > 1 else None)
        self._sums.append(kernel(weights, anchor, fisher, within, gradient, self._factors_on(weights), inside))

    def _keep_small(self, weights: Any, anchor: Any, fisher: Tensor | None, gradient: Tensor | None) -> None:
        dtypes = [None if each is None else each.dtype for each in (weights, anchor, fisher, gradient)]
        self._small[(weights.device, *dtypes)].append((weights, anchor, fisher, gradient))
        self._small_elements += len(weights)
        if self._small_elements > PART_ELEMENTS:
            self._flush_small()

    def _flush_small(self) -> None:
        for operands in self._small.values():
            columns = [None if each[0] is None else each for each in zip(*operands, strict=True)]
            rows = [None if each is None else torch.cat(each).view(1, -1) for each in columns]
            self._take_rows(rows[0], rows[1], rows[2], rows[3])
            changed, row = (columns[0], rows[0]) if columns[3] is None else (columns[3], rows[3])
            assert changed is not None
            assert row is not None
            torch._foreach_copy_(list(changed), list(torch.split(row.view(-1), [len(each) for each in changed])))
        self._small.clear()
        self._small_elements = 0

    def _factors_on(self, weights: Tensor) -> Tensor:
        # Compiled code would be compiled anew for other numbers, not for another tensor of them.
        place = weights.device, working_dtype(weights.dtype)
        if place not in self._factors:
            self._factors[place] = torch.stack([_scalar(number, *place) for number in self._numbers()])
        return self._factors[place]


class GroupedGradient(_Grouped):
    """Φ's gradient, added to those of the parameters; the gradients found are multiplied by `gradient_scale`."""

    def __init__(self, ewc_lambda: float, gamma: float, gradient_scale: float) -> None:
        super().__init__(ewc_lambda, gamma)
        self._scale = gradient_scale

    def add(self, restraint: Restraint, weights: Tensor, gradient: Tensor) -> None:
        """Add the scale times ∇Φ to a shard's gradient, (length,), in place; to a small one not before `finish`.

        Under γ a shard that has a basis must be the whole parameter.
        """
        self._take(restraint, weights, gradient)

    def _numbers(self) -> list[float | Tensor]:
        return [self._ewc_lambda, self._gamma, self._scale]

    def _kernel(self, device_type: str | None) -> Callable[..., Tensor]:
        return _compiled(_rows, device_type)


class GroupedShrinking(_Grouped):
    """Φ's proximal step of one length, on the weights of the parameters."""

    def __init__(self, rate: float | Tensor, ewc_lambda: float, gamma: float) -> None:
        super().__init__(ewc_lambda, gamma)
        self._rate = rate

    def add(self, restraint: Restraint, weights: Tensor) -> None:
        """Move a shard's weights, (length,), in place; small ones not before `finish`.

        Under γ a shard that has a basis must be the whole parameter.
        """
        self._take(restraint, weights, None)

    def _projected(self, weights: Tensor, anchor: Tensor, fisher: Tensor | None) -> Tensor:
        delta = _difference(weights, anchor)
        if fisher is not None:
            delta = delta / (1.0 + fisher.to(delta) * self._factors_on(weights)[2])
        return delta

    def _numbers(self) -> list[float | Tensor]:
        return [self._ewc_lambda, self._gamma, self._ewc_lambda * self._rate, 2.0 * self._gamma * self._rate]

    def _kernel(self, device_type: str | None) -> Callable[..., Tensor]:
        return _compiled(_shrunk_rows, device_type)


def _rows(
    weights: Tensor,
    anchor: Tensor,
    fisher: Tensor | None,
    within: Tensor | None,
    gradient: Tensor,
    factors: Tensor,
    inside: bool = False,
) -> Tensor:
    # All (rows, columns); within: UUᵀΔW. The gradient is changed in place. Returns the four sums.
    ewc_lambda, gamma, scale = factors.unbind()
    delta = weights.to(factors.dtype) - anchor.to(factors.dtype)
    slope = torch.zeros_like(delta)
    ewc = subspace = torch.zeros_like(delta[:, 0])
    if fisher is not None:
        slope = delta * fisher.to(factors.dtype) * ewc_lambda
        ewc = 0.5 * (slope * delta).sum(-1)
    if within is not None:
        residual = within if inside else delta - within
        subspace = gamma * residual.square().sum(-1)
        slope = slope + 2.0 * gamma * residual
    found = gradient.to(factors.dtype) / scale
    sums = torch.stack([ewc, subspace, slope.square().sum(-1), found.square().sum(-1)])  # (4, rows)
    gradient.add_((slope * scale).to(gradient.dtype))
    return sums.sum(-1)


def _shrunk_rows(
    weights: Tensor,
    anchor: Tensor,
    fisher: Tensor | None,
    within: Tensor | None,
    gradient: None,
    factors: Tensor,
    inside: bool = False,
) -> Tensor:
    # As above; within: UUᵀ of what λ's step leaves of ΔW. The weights are changed in place.
    ewc_lambda, gamma, ewc_pull, subspace_pull = factors.unbind()
    delta = weights.to(factors.dtype) - anchor.to(factors.dtype)
    moved = torch.zeros_like(delta)
    ewc = subspace = torch.zeros_like(delta[:, 0])
    if fisher is not None:
        omega = fisher.to(factors.dtype)
        ewc = 0.5 * ewc_lambda * (omega * delta * delta).sum(-1)
        moved = delta * (omega * ewc_pull / (1.0 + omega * ewc_pull))
    if within is not None:
        part = within if inside else delta - moved - within
        subspace = gamma * part.square().sum(-1)
        moved = moved + part * (subspace_pull / (1.0 + subspace_pull))
    sums = torch.stack([ewc, subspace, moved.square().sum(-1), delta.square().sum(-1)])  # (4, rows)
    weights.sub_(moved)
    return sums.sum(-1)


@functools.cache
def _compiled(kernel: Callable[..., Tensor], device_type: str | None) -> Callable[..., Tensor]:
    if device_type != "cuda" or not compiles_on(device_type):
        return kernel
    compiled: Callable[..., Tensor] = torch.compile(kernel, dynamic=True)
    return compiled


def _scalar(number: float | Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    if isinstance(number, Tensor):
        return number.to(device, dtype).reshape(())
    return torch.full((), number, device=device, dtype=dtype)


def _difference(weights: Tensor, anchor: Tensor) -> Tensor:
    dtype = working_dtype(weights.dtype)
    return weights.to(dtype) - anchor.to(weights.device, dtype)
