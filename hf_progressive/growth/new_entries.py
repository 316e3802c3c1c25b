"""Which entries of a grown model its parent did not have, told from the initial checkpoint alone.

    new = new_entries("runs/trunk/l8w64/init")           # by parameter name, a few numbers each
    new["model.norm.weight"].mask()                      # boolean, of the parameter's shape
    new["model.norm.weight"].of_shard(start, length)     # the same for a flat shard of the row-major parameter
    masks = new_entry_masks("runs/trunk/l8w64/init")     # all of them at once, one byte per parameter

An entry is new if it stands at a new unit of one of its tensor's dimensions, or in a layer that is new or a mere copy
of another. These are the entries on which Ω is 0 and to which no statistic of the parent is carried. Copies of a unit
(`tile`, `split`) inherit, all of them, and are not new.
"""

import math
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig

from hf_progressive.config.ranges import shown
from hf_progressive.growth.axis import Axis
from hf_progressive.growth.experts import Dropped, dropped_units
from hf_progressive.growth.families import family_of
from hf_progressive.growth.family_table import AxisName, DimRule, Family, WeightRule
from hf_progressive.hub.names import GROWTH
from hf_progressive.storage import ReadingFromOutside, read_json

Ranges = tuple[tuple[int, int], ...]
"""Runs of units, each from its first unit to the one behind its last."""


@dataclass(frozen=True)
class NewEntries:
    """Which entries of one tensor the parent did not have.

    Attributes:
        shape: The tensor's shape.
        ranges: For each dimension the runs of new units; an entry at any of them is new.
        whole: Every entry is new: the tensor inherits nothing.
        dropped: The hidden units of experts that were drawn anew, in a tensor of all experts.

    >>> entries = NewEntries((2, 3), ((), ((2, 3),)))
    >>> entries.count, entries.mask().tolist()
    (2, [[False, False, True], [False, False, True]])
    >>> entries.of_shard(2, 3).tolist()
    [True, False, False]
    """

    shape: tuple[int, ...]
    ranges: tuple[Ranges, ...]
    whole: bool = False
    dropped: Dropped | None = None

    @property
    def count(self) -> int:
        """Number of new entries."""
        if self.whole:
            return math.prod(self.shape)
        if self.dropped is not None:
            return sum(int(self._rows(expert, expert + 1).sum()) for expert in range(self.shape[0]))
        new = (sum(stop - start for start, stop in ranges) for ranges in self.ranges)
        return math.prod(self.shape) - math.prod(size - added for size, added in zip(self.shape, new, strict=True))

    def mask(self) -> Tensor:
        """Return a boolean tensor of the tensor's shape, true where an entry is new."""
        return self._rows(0, self.shape[0])

    def of_shard(self, start: int, length: int) -> Tensor:
        """Return the mask of a shard, without the rest of it.

        Args:
            start: Where the shard begins in the flattened row-major tensor, in elements.
            length: Elements of the shard, perhaps 0.

        Returns:
            (length,), boolean.

        Raises:
            ValueError: The shard is not within the tensor.
        """
        size = math.prod(self.shape)
        if not 0 <= start <= start + length <= size:
            raise ValueError(f"a shard of {length} elements from {start} is not within a tensor of {size}")
        columns = math.prod(self.shape[1:])
        first = start // columns
        rows = self._rows(first, max(first, -(-(start + length) // columns)))
        return rows.reshape(-1)[start - first * columns :][:length]

    def _rows(self, first: int, stop: int) -> Tensor:
        mask = torch.full((stop - first, *self.shape[1:]), self.whole, dtype=torch.bool)
        for dim, ranges in enumerate(self.ranges):
            low, high = (first, stop) if dim == 0 else (0, self.shape[dim])
            for begin, end in ranges:
                begin, end = max(begin, low), min(end, high)
                if begin < end:
                    mask.narrow(dim, begin - low, end - begin).fill_(True)
        if self.dropped is not None:
            self.dropped.mark(mask, first, True)
        return mask


def new_entries(init: str | os.PathLike[str]) -> dict[str, NewEntries]:
    """Tell which entries of a grown checkpoint its parent did not have.

    Args:
        init: The folder that `grow_checkpoint` wrote: an initial model, before any training. Its config.json and
            growth.json are read, no weights.

    Returns:
        By name, in the order of the stock class's parameters, a description of a few numbers; a tied output head is
        none of them.

    Raises:
        FileNotFoundError: The folder holds no growth.json: it was not grown.
        ValueError: growth.json does not say it: it was written before it did.
    """
    path = Path(init) / GROWTH
    if not path.is_file():
        raise FileNotFoundError(f"{init}: holds no {GROWTH}, so it was not grown; give a rung's init/ folder")
    return recorded_entries(path, AutoConfig.from_pretrained(init))


def recorded_entries(path: Path, config: Any) -> dict[str, NewEntries]:
    """Tell the same from a growth.json and the config of the model that it is of."""
    plan = read_json(path).get("plan", {})
    if not isinstance(plan, dict) or "new_units" not in plan:
        raise ValueError(f"{path}: does not say which units are new, as later versions do; grow the checkpoint again")
    with ReadingFromOutside(str(path), "grow the checkpoint again"):
        sizes = {name: size[1] for name, size in plan.get("sizes", {}).items()}
        new = plan["new_units"].items()
        units = {name: tuple((int(start), int(stop)) for start, stop in ranges) for name, ranges in new}
        heirs = [bool(layer["heir"]) for layer in plan["layers"]]
    for name, size in asdict(family_of(config).sizes(config)).items():
        grown = sizes.get(name, size)
        if grown != size:
            raise ValueError(
                f"{path}: is of a model with {name} {shown(grown)}, not {size}; give the record of this growth"
            )
    with ReadingFromOutside(str(path), "grow the checkpoint again"):
        return describe_new_entries(
            family_of(config),
            config,
            units,
            heirs,
            new_kinds=plan.get("new_kinds", ()),
            dropped=plan.get("dropped"),
        )


def new_entry_masks(init: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the mask of every parameter of a grown checkpoint, true where its parent had no such entry.

    Args:
        init: As for `new_entries`, which describes the same without a byte per parameter.

    Returns:
        By name a boolean tensor of the parameter's shape, all of them on the CPU.

    Raises:
        FileNotFoundError: As for `new_entries`.
        ValueError: As for `new_entries`.
    """
    return {name: entries.mask() for name, entries in new_entries(init).items()}


def new_units(axes: Mapping[AxisName, Axis]) -> dict[str, Ranges]:
    """List the new units of every axis that has any."""
    runs = {name: tuple((start, start + s.size) for start, s in axis.new()) for name, axis in axes.items()}
    return {name: _joined(ranges) for name, ranges in runs.items() if ranges}


def describe_new_entries(
    family: Family,
    config: Any,
    units: Mapping[str, Ranges],
    heirs: Sequence[bool],
    *,
    new_kinds: Collection[str] = (),
    dropped: Mapping[str, Any] | None = None,
) -> dict[str, NewEntries]:
    """Describe every tensor of a child, from the new units of its axes and which of its layers are heirs.

    What `upcycle` adds are kinds of tensors that no layer of the parent had (`new_kinds`, by their names in the
    family's table) and the share of the parent's hidden `units` that is `dropped` in experts.
    """
    lengths, heads = family.axis_lengths(config), family.sizes(config).kv_heads

    def drawn_anew(rule: WeightRule, layer: int | None) -> Dropped | None:
        if not dropped or not rule.per_expert or layer is None or not heirs[layer] or rule.name in new_kinds:
            return None
        return dropped_units(
            rule, layer, dropped["share"], dropped["units"], lengths[rule.dims[2 if rule.leaves_expert else 1].axes[0]]
        )

    return {
        name: NewEntries(
            shape=tuple(sum(lengths[axis] for axis in dim.axes) for dim in rule.dims),
            ranges=tuple(_along(dim, units, lengths, heads if dim.grouped else 1) for dim in rule.dims),
            whole=rule.name in new_kinds or (layer is not None and not heirs[layer]),
            dropped=drawn_anew(rule, layer),
        )
        for name, rule, layer in family.tensors(config)
    }


def _along(dim: DimRule, units: Mapping[str, Ranges], lengths: Mapping[AxisName, int], groups: int) -> Ranges:
    found, offset = [], 0
    for group in range(groups):
        for axis in dim.axes:
            own = lengths[axis] // groups
            low, high = group * own, (group + 1) * own
            clipped = ((max(start, low), min(stop, high)) for start, stop in units.get(axis, ()))
            found += [(offset + start - low, offset + stop - low) for start, stop in clipped if start < stop]
            offset += own
    return _joined(found)


def _joined(ranges: Iterable[tuple[int, int]]) -> Ranges:
    joined: list[tuple[int, int]] = []
    for start, stop in ranges:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return tuple(joined)
