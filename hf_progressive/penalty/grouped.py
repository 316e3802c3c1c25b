"""Φ on an accelerator: the same arithmetic as on a CPU, in few and large kernels.

A CPU works in chunks that fit its cache, at the price of a dozen operators a chunk. An accelerator waits for its
memory and for launches: so what belongs to an entry is done at once where code can be compiled (W, W₀, Ω and the
gradient are read once, the gradient written once), small tensors are taken together, and a large one in parts of whole
rows.
"""

import functools
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hf_progressive.distributed.compilation import compiles_on
from hf_progressive.distributed.working_dtype import working_dtype
from hf_progressive.penalty.arithmetic import Restraint

PART_ELEMENTS = 1 << 24
"""Elements worked on at once."""
_COLUMNS = 1024  # of what is no matrix under γ
_SMALL_ELEMENTS = 1 << 16  # below that, tensors are taken together


class GroupedGradient:
    """Φ's gradient, added to those of parameters that are handed in one after the other.

    The gradients found are multiplied by `gradient_scale`. Products with U follow
    `torch.set_float32_matmul_precision`.
    """

    def __init__(self, ewc_lambda: float, gamma: float, gradient_scale: float) -> None:
        self._ewc_lambda, self._gamma, self._scale = ewc_lambda, gamma, gradient_scale
        self._sums: list[Tensor] = []
        self._small: dict[tuple[Any, ...], list[tuple[Tensor, Tensor, Tensor | None, Tensor]]] = defaultdict(list)
        self._small_elements = 0
        self._factors: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def add(self, restraint: Restraint, weights: Tensor, gradient: Tensor) -> None:
        """Add the scale times ∇Φ to a shard's gradient, (length,), in place; to a small one not before `finish`.

        Under γ a shard that has a basis must be the whole parameter.
        """
        anchor, fisher = restraint.anchor, restraint.fisher if self._ewc_lambda > 0.0 else None
        if self._gamma > 0.0 and restraint.basis is not None:
            assert restraint.is_whole
            self._add_matrix(restraint, weights, fisher, gradient)
            return
        whole_rows = 0 if len(weights) < _SMALL_ELEMENTS else len(weights) - len(weights) % _COLUMNS
        for start in range(0, whole_rows, PART_ELEMENTS):
            part = slice(start, min(start + PART_ELEMENTS, whole_rows))
            rows = [None if t is None else t[part].view(-1, _COLUMNS) for t in (weights, anchor, fisher, gradient)]
            self._add_rows(rows[0], rows[1], rows[2], None, rows[3])
        if whole_rows < len(weights):
            rest = [None if t is None else t[whole_rows:] for t in (weights, anchor, fisher, gradient)]
            self._keep_small(*rest)

    def finish(self) -> Tensor | None:
        """Add what is still to be added; return the sums that `Restraint.apply` does, since the last call, if any."""
        self._flush_small()
        sums, self._sums = self._sums, []
        return torch.stack([each.to(sums[0]) for each in sums]).sum(0) if sums else None

    def _add_matrix(self, restraint: Restraint, weights: Tensor, fisher: Tensor | None, gradient: Tensor) -> None:
        shape, basis = restraint.shape, restraint.basis
        assert basis is not None
        w, w0, g = (each.view(shape) for each in (weights, restraint.anchor, gradient))
        omega = None if fisher is None else fisher.view(shape)
        rows_at_once = max(1, PART_ELEMENTS // shape[1])
        parts = [slice(start, start + rows_at_once) for start in range(0, shape[0], rows_at_once)]
        projected: Tensor | None = None
        if restraint.output_dimension == 0:
            for part in parts:  # UᵀΔW, (r, in): a sum over outputs
                share = basis[part].T @ _difference(w[part], w0[part])
                projected = share if projected is None else projected + share
        for part in parts:
            if projected is not None:
                within = basis[part] @ projected
            else:
                within = (_difference(w[part], w0[part]) @ basis) @ basis.T
            self._add_rows(w[part], w0[part], None if omega is None else omega[part], within, g[part])

    def _add_rows(
        self, weights: Any, anchor: Any, fisher: Tensor | None, within: Tensor | None, gradient: Any
    ) -> None:
        place = weights.device
        anchor = anchor.to(place)
        fisher = None if fisher is None else fisher.to(place)
        kernel = _row_kernel(place.type) if min(weights.shape) > 1 else _rows
        self._sums.append(kernel(weights, anchor, fisher, within, gradient, self._factors_on(weights)))

    def _keep_small(self, weights: Any, anchor: Any, fisher: Tensor | None, gradient: Any) -> None:
        kind = (weights.device, weights.dtype, anchor.dtype, gradient.dtype, None if fisher is None else fisher.dtype)
        self._small[kind].append((weights, anchor, fisher, gradient))
        self._small_elements += len(weights)
        if self._small_elements > PART_ELEMENTS:
            self._flush_small()

    def _flush_small(self) -> None:
        for tensors in self._small.values():
            weights, anchors, fishers, gradients = zip(*tensors, strict=True)
            fisher = None if fishers[0] is None else torch.cat(fishers).view(1, -1)
            gradient = torch.cat(gradients).view(1, -1)
            self._add_rows(torch.cat(weights).view(1, -1), torch.cat(anchors).view(1, -1), fisher, None, gradient)
            torch._foreach_copy_(list(gradients), list(torch.split(gradient.view(-1), [len(g) for g in gradients])))
        self._small.clear()
        self._small_elements = 0

    def _factors_on(self, weights: Tensor) -> Tensor:
        # Compiled code would be compiled anew for other numbers, not for another tensor of them.
        place = weights.device, working_dtype(weights.dtype)
        if place not in self._factors:
            values = (self._ewc_lambda, self._gamma, self._scale)
            filled = [torch.full((), value, device=place[0], dtype=place[1]) for value in values]
            self._factors[place] = torch.stack(filled)
        return self._factors[place]


def _rows(
    weights: Tensor, anchor: Tensor, fisher: Tensor | None, within: Tensor | None, gradient: Tensor, factors: Tensor
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
        residual = delta - within
        subspace = gamma * residual.square().sum(-1)
        slope = slope + 2.0 * gamma * residual
    found = gradient.to(factors.dtype) / scale
    sums = torch.stack([ewc, subspace, slope.square().sum(-1), found.square().sum(-1)])  # (4, rows)
    gradient.add_((slope * scale).to(gradient.dtype))
    return sums.sum(-1)


@functools.cache
def _row_kernel(device_type: str) -> Callable[..., Tensor]:
    compiled: Callable[..., Tensor] = torch.compile(_rows, dynamic=True)
    return compiled if device_type == "cuda" and compiles_on(device_type) else _rows


def _difference(weights: Tensor, anchor: Tensor) -> Tensor:
    dtype = working_dtype(weights.dtype)
    return weights.to(dtype) - anchor.to(weights.device, dtype)
