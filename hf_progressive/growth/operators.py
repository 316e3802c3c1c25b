"""Pure tensor rules: how the units along one dimension of a parent's tensor become the child's units.

A *unit* is one index along a dimension: a residual channel, a hidden unit of the MLP, one dimension of one attention
head, a token of the vocabulary. An `Axis` lists the child's units as `Segment`s, runs of units that are either
inherited from consecutive units of the parent or new. A tensor that *writes* an axis (its output side) scales an
inherited unit by `write`; a tensor that *reads* the axis (its input side) scales the matching entries by `read`. An
axis that keeps the function satisfies, for every parent unit i,

    Σ_{child units j inherited from i} write_j · read_j = 1.                                                       (1)

With activations u'_j = write_j · u_i and, going back, ∂L/∂u'_j = read_j · ∂L/∂u_i, a weight that writes unit o and
reads unit i therefore becomes

    W'[o', i'] = write_o' · read_i' · W[o, i],        ∂L/∂W'[o', i'] = read_o' · write_i' · ∂L/∂W[o, i],            (2)

so one pair of factors maps values, gradients, Adam's moments and the diagonal Fisher information alike. Where nothing
is duplicated, read = 1/write, and a weight scaled by a has its gradient scaled by 1/a.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import torch
from torch import Tensor

Fill = Literal["fresh", "zero", "mean", "near_mean"]
"""How new entries are filled: as a freshly initialised tensor, with zero, with the mean of the inherited units, or
with that mean plus fresh noise."""

Role = Literal["read", "write"]
"""What a tensor does with the units along one of its dimensions."""


@dataclass(frozen=True)
class Segment:
    """A run of consecutive units of the child.

    Attributes:
        size: Number of units.
        source: The parent's unit that the first of them inherits from, the others following; None if they are new.
        write: Factor of an inherited unit where a tensor writes it.
        read: Factor of an inherited unit where a tensor reads it.
        written_as: How a tensor that writes new units fills its entries for them.
        read_as: How a tensor that reads new units fills its entries for them.
    """

    size: int
    source: int | None = None
    write: float = 1.0
    read: float = 1.0
    written_as: Fill = "fresh"
    read_as: Fill = "fresh"

    def follows(self, other: "Segment") -> bool:
        """Tell whether this segment continues another one, so that the two can be one.

        Args:
            other: The segment before this one.

        Returns:
            True if the factors, the fills and the order of the sources agree.
        """
        expected = None if other.source is None else other.source + other.size
        return self.source == expected and replace(self, size=other.size, source=other.source) == other


@dataclass(frozen=True)
class Axis:
    """The child's units along one dimension, in order.

    Attributes:
        parent_size: Number of the parent's units.
        segments: The child's units; neighbours that continue one another are merged.

    >>> wider = Axis.of(4, [Segment(4, source=0), Segment(2, written_as="mean")])
    >>> wider.size, wider.keeps_function
    (6, True)
    """

    parent_size: int
    segments: tuple[Segment, ...]

    @classmethod
    def of(cls, parent_size: int, segments: Sequence[Segment]) -> "Axis":
        """Build an axis, merging neighbouring segments.

        Args:
            parent_size: Number of the parent's units.
            segments: The child's units in order; empty ones are dropped.

        Returns:
            The axis.
        """
        merged: list[Segment] = []
        for segment in segments:
            if segment.size == 0:
                continue
            if merged and segment.follows(merged[-1]):
                merged[-1] = replace(merged[-1], size=merged[-1].size + segment.size)
            else:
                merged.append(segment)
        return cls(parent_size, tuple(merged))

    @classmethod
    def unchanged(cls, size: int) -> "Axis":
        """Build the axis on which parent and child agree.

        Args:
            size: Number of units.

        Returns:
            The identity.
        """
        return cls.of(size, [Segment(size, source=0)])

    @property
    def size(self) -> int:
        """Number of the child's units."""
        return sum(segment.size for segment in self.segments)

    @property
    def keeps_function(self) -> bool:
        """Whether equation (1) of this module holds."""
        totals = [0.0] * self.parent_size
        for _, segment in self.inherited():
            for source in range(_source(segment), _source(segment) + segment.size):
                totals[source] += segment.write * segment.read
        return all(math.isclose(total, 1.0, rel_tol=1e-12) for total in totals)

    def inherited(self) -> Iterator[tuple[int, Segment]]:
        """Iterate over the segments that have a parent.

        Yields:
            The first unit of the segment and the segment.
        """
        yield from ((start, segment) for start, segment in self._placed() if segment.source is not None)

    def new(self) -> Iterator[tuple[int, Segment]]:
        """Iterate over the segments that have none.

        Yields:
            The first unit of the segment and the segment.
        """
        yield from ((start, segment) for start, segment in self._placed() if segment.source is None)

    def unit_sources(self) -> tuple[list[int], list[int]]:
        """List the inherited units one by one.

        Returns:
            The child's units, and the parent's unit of each.
        """
        units = [start + unit for start, segment in self.inherited() for unit in range(segment.size)]
        sources = [_source(segment) + unit for _, segment in self.inherited() for unit in range(segment.size)]
        return units, sources

    def scaled(self, write: float, read: float) -> "Axis":
        """Multiply the factors of the inherited units.

        Args:
            write: Multiplies what a tensor writes.
            read: Multiplies what a tensor reads.

        Returns:
            The scaled axis.
        """
        return replace(
            self, segments=tuple(replace(s, write=s.write * write, read=s.read * read) for s in self.segments)
        )

    def filled(self, written_as: Fill, read_as: Fill = "fresh") -> "Axis":
        """Set how entries of new units are filled.

        Args:
            written_as: By a tensor that writes them.
            read_as: By a tensor that reads them.

        Returns:
            The axis with the fills of its new units replaced.
        """
        return Axis.of(
            self.parent_size,
            [s if s.source is not None else replace(s, written_as=written_as, read_as=read_as) for s in self.segments],
        )

    def _placed(self) -> Iterator[tuple[int, Segment]]:
        start = 0
        for segment in self.segments:
            yield start, segment
            start += segment.size


def _source(segment: Segment) -> int:
    assert segment.source is not None
    return segment.source


def joined(axes: Sequence[Axis]) -> Axis:
    """Join axes that a fused tensor stores one after the other, such as query, key and value.

    Args:
        axes: The axes in the order of storage.

    Returns:
        The joined axis.

    >>> joined([Axis.unchanged(2), Axis.unchanged(3)]) == Axis.unchanged(5)
    True
    """
    segments: list[Segment] = []
    offset = 0
    for axis in axes:
        segments += [s if s.source is None else replace(s, source=s.source + offset) for s in axis.segments]
        offset += axis.parent_size
    return Axis.of(offset, segments)


@dataclass(frozen=True)
class Dim:
    """One dimension of one tensor: an axis and what the tensor does with it.

    Attributes:
        axis: The units.
        role: Whether the tensor reads or writes them.
    """

    axis: Axis
    role: Role

    def value_factor(self, segment: Segment) -> float:
        """Return the factor of a value.

        Args:
            segment: An inherited segment of the axis.

        Returns:
            `write` or `read`, after the role.
        """
        return segment.write if self.role == "write" else segment.read

    def gradient_factor(self, segment: Segment) -> float:
        """Return the factor of a gradient.

        Args:
            segment: An inherited segment of the axis.

        Returns:
            `read` or `write`, the opposite of the role.
        """
        return segment.read if self.role == "write" else segment.write

    def fill(self, segment: Segment) -> Fill:
        """Return how the entries of new units are filled.

        Args:
            segment: A new segment of the axis.

        Returns:
            The rule.
        """
        return segment.written_as if self.role == "write" else segment.read_as


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which a tensor is grown: float64 for float64, float32 for every other.

    Args:
        dtype: The dtype of the parent's tensor.

    Returns:
        The dtype of the result.
    """
    return torch.float64 if dtype == torch.float64 else torch.float32


def place(parent: Tensor, dims: Sequence[Dim], *, power: int, out: Tensor) -> None:
    """Write the inherited entries of a tensor in place.

    Args:
        parent: The parent's tensor.
        dims: Its dimensions.
        power: 0 to scale values, 1 to scale gradients, 2 to scale squared gradients (equation 2).
        out: The child's tensor; entries of new units are left alone.
    """
    for blocks in product(*(list(dim.axis.inherited()) for dim in dims)):
        target, source, factor = out, parent, 1.0
        for index, (dim, (start, segment)) in enumerate(zip(dims, blocks, strict=True)):
            target = target.narrow(index, start, segment.size)
            source = source.narrow(index, _source(segment), segment.size)
            factor *= dim.gradient_factor(segment) ** power if power else dim.value_factor(segment)
        target.copy_(source)
        if factor != 1.0:
            target.mul_(factor)


def fill_new(out: Tensor, dims: Sequence[Dim], *, fresh: "Fresh", generator: torch.Generator) -> None:
    """Fill the entries of new units in place.

    Dimensions that are read come first, those that are written last: a new output unit holds what its own rule says
    for every input, new inputs included, and a mean over outputs is taken when all of them stand.

    Args:
        out: The child's tensor, its inherited entries in place.
        dims: Its dimensions.
        fresh: How the tensor is initialised in a new model.
        generator: Source of random numbers.
    """
    for role in ("read", "write"):
        for index, dim in enumerate(dims):
            if dim.role != role:
                continue
            for start, segment in dim.axis.new():
                region = out.narrow(index, start, segment.size)
                match dim.fill(segment):
                    case "zero":
                        region.zero_()
                    case "fresh":
                        region.copy_(fresh.draw(region.shape, region.dtype, generator))
                    case "mean":
                        region.copy_(_mean_unit(out, index, dim.axis))
                    case "near_mean":
                        region.copy_(fresh.draw(region.shape, region.dtype, generator))
                        region.add_(_mean_unit(out, index, dim.axis))


def _mean_unit(out: Tensor, index: int, axis: Axis) -> Tensor:
    inherited = [out.narrow(index, start, s.size).sum(index, keepdim=True) for start, s in axis.inherited()]
    count = sum(s.size for _, s in axis.inherited())
    return torch.stack(inherited).sum(0) / count


@dataclass(frozen=True)
class Fresh:
    """How a tensor is initialised in a new model: normal with a mean and a standard deviation.

    Attributes:
        mean: 0 for weights and biases, 1 for the gains of norms.
        std: Standard deviation; 0 draws nothing.
    """

    mean: float = 0.0
    std: float = 0.0

    def draw(self, shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
        """Draw a tensor.

        Args:
            shape: Its shape.
            dtype: Its dtype.
            generator: Source of random numbers.

        Returns:
            The tensor, contiguous: drawing into a strided view is ten times slower.
        """
        if self.std == 0.0:
            return torch.full(tuple(shape), self.mean, dtype=dtype)
        return torch.empty(tuple(shape), dtype=dtype).normal_(self.mean, self.std, generator=generator)


def add_noise(out: Tensor, dims: Sequence[Dim], std: float, generator: torch.Generator) -> None:
    """Tell the copies of a unit apart: add noise in place where they are read, zero in sum over the copies of a unit.

    Args:
        out: The child's tensor, its inherited entries in place.
        dims: Its dimensions; only what reads copies is changed.
        std: Standard deviation of the noise before its mean over the copies of a unit is taken off.
        generator: Source of random numbers.
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
