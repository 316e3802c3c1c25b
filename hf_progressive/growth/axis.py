"""Axes: how the units along one dimension of a parent's tensors become the child's units.

A *unit* is one index along a dimension: a residual channel, a hidden unit of the MLP, one dimension of one attention
head, a token of the vocabulary. An `Axis` lists the child's units as `Segment`s, runs of units that are either
inherited from consecutive units of the parent or new. A tensor that *writes* an axis (its output side) scales an
inherited unit by `write`; a tensor that *reads* the axis (its input side) scales the matching entries by `read`. An
axis that keeps the function satisfies, for every parent unit i,

    Σ_{child units j inherited from i} write_j · read_j = 1.                                                       (1)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

Fill = Literal["fresh", "zero", "mean", "near_mean", "varied_mean"]
"""How new entries are filled: as a freshly initialised tensor, with zero, with the mean of the inherited units, with
that mean plus fresh noise, or with that mean times a factor around 1."""

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

    @property
    def first(self) -> int:
        assert self.source is not None
        return self.source

    def follows(self, other: "Segment", size: int) -> bool:
        # Whether it continues another segment, by now of this size, so that the two can be one.
        return (
            self.source == (None if other.source is None else other.source + size)
            and (self.write, self.read) == (other.write, other.read)
            and (self.written_as, self.read_as) == (other.written_as, other.read_as)
        )


@dataclass(frozen=True)
class Axis:
    """The child's units along one dimension, in order; `parent_size` is the number of the parent's.

    >>> wider = Axis.of(4, [Segment(4, source=0), Segment(2, written_as="mean")])
    >>> wider.size, wider.unit_sources()
    (6, ([0, 1, 2, 3], [0, 1, 2, 3]))
    """

    parent_size: int
    segments: tuple[Segment, ...]

    @classmethod
    def of(cls, parent_size: int, segments: Sequence[Segment]) -> "Axis":
        """Build an axis; empty segments are dropped, and neighbours that continue one another merged."""
        runs: list[tuple[Segment, int]] = []  # the first segment of each, and the size of all
        for segment in segments:
            if segment.size == 0:
                continue
            if runs and segment.follows(*runs[-1]):
                runs[-1] = (runs[-1][0], runs[-1][1] + segment.size)
            else:
                runs.append((segment, segment.size))
        return cls(parent_size, tuple(s if s.size == size else replace(s, size=size) for s, size in runs))

    @classmethod
    def unchanged(cls, size: int) -> "Axis":
        """Build the axis on which parent and child agree."""
        return cls.of(size, [Segment(size, source=0)])

    @property
    def size(self) -> int:
        """Number of the child's units."""
        return sum(segment.size for segment in self.segments)

    def inherited(self) -> Iterator[tuple[int, Segment]]:
        """Iterate over the segments that have a parent, each with its first unit."""
        yield from ((start, segment) for start, segment in self._placed() if segment.source is not None)

    def new(self) -> Iterator[tuple[int, Segment]]:
        """Iterate over the segments that have none, each with its first unit."""
        yield from ((start, segment) for start, segment in self._placed() if segment.source is None)

    def unit_sources(self) -> tuple[list[int], list[int]]:
        """List the child's inherited units one by one, and the parent's unit of each."""
        units = [start + unit for start, segment in self.inherited() for unit in range(segment.size)]
        sources = [segment.first + unit for _, segment in self.inherited() for unit in range(segment.size)]
        return units, sources

    def scaled(self, write: float, read: float) -> "Axis":
        """Multiply the factors of the inherited units."""
        return replace(
            self, segments=tuple(replace(s, write=s.write * write, read=s.read * read) for s in self.segments)
        )

    def filled(self, written_as: Fill, read_as: Fill = "fresh") -> "Axis":
        """Set how tensors that write and that read new units fill their entries."""
        return Axis.of(
            self.parent_size,
            [s if s.source is not None else replace(s, written_as=written_as, read_as=read_as) for s in self.segments],
        )

    def _placed(self) -> Iterator[tuple[int, Segment]]:
        start = 0
        for segment in self.segments:
            yield start, segment
            start += segment.size


def joined(axes: Sequence[Axis]) -> Axis:
    """Join axes that a fused tensor stores one after the other, such as query, key and value.

    >>> joined([Axis.unchanged(2), Axis.unchanged(3)]) == Axis.unchanged(5)
    True
    """
    if len(axes) == 1:
        return axes[0]
    segments: list[Segment] = []
    offset = 0
    for axis in axes:
        segments += [s if s.source is None else replace(s, source=s.source + offset) for s in axis.segments]
        offset += axis.parent_size
    return Axis.of(offset, segments)


def interleaved(axes: Sequence[Axis], parent_groups: int, groups: int) -> Axis:
    """Join axes that a fused tensor stores group by group: the first group's units of every axis, then the next's.

    >>> query, key = Axis.unchanged(4), Axis.unchanged(2)
    >>> interleaved([query, key], 2, 2) == Axis.unchanged(6)
    True
    >>> wider = Axis.of(4, [Segment(4, source=0), Segment(2)])
    >>> interleaved([wider, Axis.of(2, [Segment(2, source=0), Segment(1)])], 2, 3).unit_sources()
    ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5])
    """
    own = [axis.size // groups for axis in axes]
    parents = [axis.parent_size // parent_groups for axis in axes]
    segments: list[Segment] = []
    for group in range(groups):
        for index, axis in enumerate(axes):
            first, stride = sum(parents[:index]), sum(parents)
            for piece in _pieces(axis, group * own[index], (group + 1) * own[index], parents[index]):
                if piece.source is not None:
                    of, unit = divmod(piece.source, parents[index])
                    piece = replace(piece, source=of * stride + first + unit)
                segments.append(piece)
    return Axis.of(sum(axis.parent_size for axis in axes), segments)


def _pieces(axis: Axis, low: int, high: int, parent_own: int) -> Iterator[Segment]:
    # An axis from `low` to `high`, in pieces that each inherit from one of the parent's groups.
    start = 0
    for segment in axis.segments:
        unit = max(start, low)
        while unit < min(start + segment.size, high):
            size = min(start + segment.size, high) - unit
            if segment.source is None:
                yield replace(segment, size=size)
            else:
                source = segment.source + unit - start
                size = min(size, parent_own - source % parent_own)
                yield replace(segment, size=size, source=source)
            unit += size
        start += segment.size


@dataclass(frozen=True)
class Dim:
    """One dimension of one tensor: an axis, and whether the tensor reads or writes its units."""

    axis: Axis
    role: Role

    def value_factor(self, segment: Segment) -> float:
        """Return the factor of a value along an inherited segment."""
        return segment.write if self.role == "write" else segment.read

    def gradient_factor(self, segment: Segment) -> float:
        """Return the factor of a gradient along an inherited segment."""
        return segment.read if self.role == "write" else segment.write

    def fill(self, segment: Segment) -> Fill:
        """Return how the entries of a new segment are filled."""
        return segment.written_as if self.role == "write" else segment.read_as
