"""Pure tensor rules: what becomes of a tensor when the axes it reads and writes grow.

On an axis (see `hf_progressive.growth.axis`), activations become u'_j = write_j · u_i and, going back, gradients
∂L/∂u'_j = read_j · ∂L/∂u_i. A weight that writes unit o and reads unit i therefore becomes

    W'[o', i'] = write_o' · read_i' · W[o, i],        ∂L/∂W'[o', i'] = read_o' · write_i' · ∂L/∂W[o, i],            (1)

so one pair of factors maps values, gradients, Adam's moments and the diagonal Fisher information alike. Where nothing
is duplicated, read = 1/write, and a weight scaled by a has its gradient scaled by 1/a.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from hf_progressive.growth.axis import Axis, Dim, Segment

_MANY_BLOCKS = 512  # copied one by one, in some 10 µs each
_VARIATION = 0.3  # standard deviation of the factors of "varied_mean"


@dataclass(frozen=True)
class Fresh:
    """How a new model initialises a tensor: normally distributed; the mean is 1 for the gains of norms."""

    mean: float = 0.0
    std: float = 0.0

    def draw(self, shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
        """Draw a tensor, contiguous: drawing into a strided view is ten times slower."""
        if self.std == 0.0:
            return torch.full(tuple(shape), self.mean, dtype=dtype)
        return torch.empty(tuple(shape), dtype=dtype).normal_(self.mean, self.std, generator=generator)

    def fill(self, out: Tensor, generator: torch.Generator) -> None:
        """Draw into a tensor, the same numbers."""
        if self.std == 0.0:
            out.fill_(self.mean)
        elif out.is_contiguous():
            out.normal_(self.mean, self.std, generator=generator)
        else:
            out.copy_(self.draw(out.shape, out.dtype, generator))


def place(parent: Tensor, dims: Sequence[Dim], *, power: int, out: Tensor) -> None:
    """Write the inherited entries of a tensor in place; entries of new units are left alone.

    `power` is 0 to scale values, 1 to scale gradients, 2 to scale squared gradients (equation 1).
    """
    if math.prod(len(dim.axis.segments) for dim in dims) > _MANY_BLOCKS:
        _place_units(parent, dims, power=power, out=out)
        return
    for blocks in product(*(list(dim.axis.inherited()) for dim in dims)):
        target, source, factor = out, parent, 1.0
        for index, (dim, (start, segment)) in enumerate(zip(dims, blocks, strict=True)):
            target = target.narrow(index, start, segment.size)
            source = source.narrow(index, segment.first, segment.size)
            factor *= _factor(dim, segment, power)
        if factor == 1.0:
            target.copy_(source)
        elif source.dtype == target.dtype and not source.requires_grad:
            torch.mul(source, factor, out=target)
        else:  # the product is rounded once, in the wider dtype
            target.copy_(source).mul_(factor)


def _factor(dim: Dim, segment: Segment, power: int) -> float:
    return dim.gradient_factor(segment) ** power if power else dim.value_factor(segment)


# The same unit by unit, where shares that are drawn leave no runs of units alike: a block for every entry otherwise.
def _place_units(parent: Tensor, dims: Sequence[Dim], *, power: int, out: Tensor) -> None:
    grown, places = parent, []
    for index, dim in enumerate(dims):
        units, sources = dim.axis.unit_sources()
        factors = [_factor(dim, segment, power) for _, segment in dim.axis.inherited() for _ in range(segment.size)]
        along = [-1 if axis == index else 1 for axis in range(out.ndim)]
        grown = grown.index_select(index, torch.tensor(sources, dtype=torch.long)).to(out.dtype)
        grown = grown * torch.tensor(factors, dtype=out.dtype).view(along)
        places.append(torch.tensor(units, dtype=torch.long).view(along))
    out[tuple(places)] = grown


def fill_new(
    out: Tensor,
    dims: Sequence[Dim],
    *,
    fresh: Fresh,
    generator: torch.Generator,
    near: Fresh | None = None,
    silent: Fresh | None = None,
) -> None:
    """Fill the entries of new units in place, once the inherited ones stand.

    Dimensions that are read come first, those that are written last: a new output unit holds what its own rule says
    for every input, new inputs included, and a mean over outputs is taken when all of them stand.

    `fresh` is what free entries are drawn from, `near` what is added to a mean that only has to be near (`fresh`, if
    it is not given), `silent` what is added to the zeros and means that keep the function (nothing, likewise).
    """
    added = {"zero": silent or Fresh(), "mean": silent or Fresh(), "fresh": fresh, "near_mean": near or fresh}
    for role in ("read", "write"):
        for index, dim in enumerate(dims):
            if dim.role != role:
                continue
            for start, segment in dim.axis.new():
                region, fill = out.narrow(index, start, segment.size), dim.fill(segment)
                if fill == "varied_mean":
                    factors = Fresh(1.0, _VARIATION).draw(region.shape, region.dtype, generator)
                    region.copy_(factors * _mean_unit(out, index, dim.axis))
                    continue
                added[fill].fill(region, generator)
                if fill in ("mean", "near_mean"):
                    region.add_(_mean_unit(out, index, dim.axis))


@dataclass(frozen=True)
class Lowered:
    """What is added to a tensor's entries for new tokens, so that their logits are low.

    Attributes:
        index: The dimension along which tokens stand.
        shift: What is added, in the parent's coordinates; of size 1 along that dimension.
        noise: Largest standard deviation, likewise, of the noise that tells new tokens apart.
    """

    index: int
    shift: Tensor
    noise: float = math.inf

    def grown(self, dims: Sequence[Dim]) -> Tensor:
        """Return `shift` in the child's coordinates."""
        along = [Dim(Axis.unchanged(1), dim.role) if i == self.index else dim for i, dim in enumerate(dims)]
        grown = self.shift.new_zeros([dim.axis.size for dim in along])
        place(self.shift, along, power=0, out=grown)
        fill_new(grown, along, fresh=Fresh(), generator=torch.Generator())
        return grown

    def limited(self, fresh: Fresh, grown: Tensor) -> Fresh:
        """Return noise with the limit kept, given the shift in the child's coordinates."""
        scale = float(grown.norm() / self.shift.norm())
        return replace(fresh, std=min(fresh.std, self.noise * scale))

    def add(self, out: Tensor, dims: Sequence[Dim], grown: Tensor) -> None:
        """Add the shift, in the child's coordinates, to the entries of new tokens in place."""
        for start, segment in dims[self.index].axis.new():
            out.narrow(self.index, start, segment.size).add_(grown)


def inherited_rms(out: Tensor, dims: Sequence[Dim]) -> float:
    """Return the root mean square of the inherited entries of a tensor whose others are zero."""
    count = math.prod(sum(segment.size for _, segment in dim.axis.inherited()) for dim in dims)
    return float(torch.linalg.vector_norm(out)) / math.sqrt(max(count, 1))


def _mean_unit(out: Tensor, index: int, axis: Axis) -> Tensor:
    inherited = [out.narrow(index, start, s.size).sum(index, keepdim=True) for start, s in axis.inherited()]
    count = sum(s.size for _, s in axis.inherited())
    return torch.stack(inherited).sum(0) / count


def add_noise(out: Tensor, dims: Sequence[Dim], std: float, generator: torch.Generator) -> None:
    """Tell the copies of a unit apart: add noise in place where they are read, zero in sum over the copies of a unit.

    `std` is that of the noise before its mean over the copies of a unit is taken off.
    """
    for index, dim in enumerate(dims):
        if dim.role != "read":
            continue
        units, sources = dim.axis.unit_sources()
        if len(units) == len(set(sources)):
            continue
        origin = torch.tensor(sources)
        shape = [*out.shape[:index], len(units), *out.shape[index + 1 :]]
        noise = torch.empty(shape, dtype=out.dtype).normal_(0.0, std, generator=generator)
        count = torch.bincount(origin, minlength=dim.axis.parent_size).clamp(min=1).to(out.dtype)
        totals = noise.new_zeros([*out.shape[:index], dim.axis.parent_size, *out.shape[index + 1 :]])
        totals.index_add_(index, origin, noise)
        mean = totals / count.view([-1 if axis == index else 1 for axis in range(out.ndim)])
        noise -= mean.index_select(index, origin)
        out.index_add_(index, torch.tensor(units), noise)
