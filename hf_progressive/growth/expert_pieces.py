"""Tensors that files hold under other names than the stock class, or expert by expert, and their plans.

The published checkpoints of mixtures hold every expert's matrices alone; since version 5 the stock classes fuse them
on loading, gate beside up, all experts of a layer in one parameter of three dimensions (`conversion_mapping.py` of
Transformers). A plan has both: the parameter, for statistics, and its pieces, which growth reads and writes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from hf_progressive.growth.axis import Axis, Dim
from hf_progressive.growth.experts import NOISE_AMONG_COPIES, Alteration, dropped_units
from hf_progressive.growth.family_table import AxisName, Family, WeightRule, expert_names, stored_name
from hf_progressive.growth.layers import LayerOrigin
from hf_progressive.growth.options import GrowthOptions
from hf_progressive.growth.reader import TensorSpec
from hf_progressive.growth.tensor_plan import TensorPlan
from hf_progressive.growth.upcycle import Upcycling


def in_pieces(
    family: Family,
    target: Any,
    plans: Iterable[TensorPlan],
    axes: Mapping[AxisName, Axis],
    layers: Sequence[LayerOrigin],
    options: GrowthOptions,
    upcycling: Upcycling | None,
) -> Iterator[TensorPlan]:
    """Give every tensor of the child that files hold otherwise its pieces; of a dense parent, the parent's names."""
    for (_, rule, layer), plan in zip(family.tensors(target), plans, strict=True):
        source = None if layer is None else layers[layer].source
        if upcycling is not None:
            plan = upcycling.from_dense(plan, rule, source)
        if rule.per_expert:
            assert layer is not None
            plan = _expert_by_expert(plan, rule, layer, source, axes, options, upcycling)
        elif rule.published:
            own = rule.name.format(layer=source)  # or the embedding, of a head that is tied in the parent
            sources = tuple(stored_name(rule, source) if name == own else name for name in plan.sources)
            plan = replace(plan, pieces=(replace(plan, name=stored_name(rule, layer), sources=sources),))
        yield plan


def _expert_by_expert(
    plan: TensorPlan,
    rule: WeightRule,
    layer: int,
    source: int | None,
    axes: Mapping[AxisName, Axis],
    options: GrowthOptions,
    upcycling: Upcycling | None,
) -> TensorPlan:
    experts, parts = plan.dims[0].axis, len(rule.published)
    origins = dict(zip(*experts.unit_sources(), strict=True))
    split = len(rule.dims[1].axes) // parts
    outputs = [
        Dim(axes[rule.dims[1].axes[part * split]], plan.dims[1].role) if parts > 1 else plan.dims[1]
        for part in range(parts)
    ]
    if upcycling is not None and plan.sources and options.drop:
        hidden = plan.dims[2].axis if rule.leaves_expert else outputs[0].axis
        units = dropped_units(rule, layer, options.drop, hidden.parent_size, hidden.size)
        plan = replace(plan, dropped=units)
    pieces = []
    for expert, names in enumerate(expert_names(rule, layer, experts.size)):
        for part, name in enumerate(names):
            dims = (outputs[part], *plan.dims[2:])
            piece = replace(plan, name=name, shape=tuple(dim.axis.size for dim in dims), dims=dims, dropped=None)
            if plan.sources and upcycling is not None:
                piece = replace(piece, sources=(plan.sources[part],))
            elif plan.sources:
                parent = rule.published[part].format(layer=source, expert=origins[expert])
                piece = replace(piece, sources=(parent,))
            pieces.append(replace(piece, altered=_alteration(piece, rule, layer, expert, plan, options, upcycling)))
    return replace(plan, pieces=tuple(pieces))


def _alteration(
    piece: TensorPlan,
    rule: WeightRule,
    layer: int,
    expert: int,
    whole: TensorPlan,
    options: GrowthOptions,
    upcycling: Upcycling | None,
) -> Alteration | None:
    if not piece.sources:
        return None
    if upcycling is not None:
        dropped = whole.dropped and replace(whole.dropped, dim=whole.dropped.dim - 1, offsets=(0,))
        noise = options.noise or 0.0
        return Alteration(expert, noise=noise, dropped=dropped) if dropped or noise else None
    experts = whole.dims[0].axis
    copies = experts.size // experts.parent_size
    noise = NOISE_AMONG_COPIES if options.noise is None else options.noise
    if copies == 1 or not rule.leaves_expert or not noise:
        return None
    index, first = divmod(expert, experts.parent_size)
    return Alteration(
        expert, noise=noise, balanced=(index, copies), seeded_by=rule.published[0].format(layer=layer, expert=first)
    )


class Tensors(Protocol):
    """Tensors that are read one at a time, their shapes and dtypes known before."""

    specs: dict[str, TensorSpec]

    def read(self, name: str) -> Tensor:
        """Return one of them."""


class PublishedTensors:
    """Tensors by the names in published files, of a file or model that may hold experts fused, as the class does."""

    def __init__(self, family: Family, config: Any, tensors: Tensors) -> None:
        self.specs = dict(tensors.specs)
        """Shape and dtype of every tensor, by name."""
        self._tensors = tensors
        self._places: dict[str, tuple[str, int | None, int, int]] = {}
        self._read_whole = lru_cache(maxsize=2)(tensors.read)  # the two or three pieces that come next are of the same
        for name, rule, layer in family.tensors(config) if family.stores_otherwise else ():
            if rule.published and name in self.specs:
                self._divide(name, rule, layer)

    def _divide(self, name: str, rule: WeightRule, layer: int | None) -> None:
        whole = self.specs.pop(name)
        if not rule.per_expert:
            self._places[stored_name(rule, layer)] = (name, None, 0, whole.shape[0])
            self.specs[stored_name(rule, layer)] = whole
            return
        rows = whole.shape[1] // len(rule.published)
        for expert, names in enumerate(expert_names(rule, layer, whole.shape[0])):
            for part, piece in enumerate(names):
                self._places[piece] = (name, expert, part * rows, rows)
                self.specs[piece] = TensorSpec(shape=(rows, *whole.shape[2:]), dtype=whole.dtype)

    def read(self, name: str) -> Tensor:
        """Return one tensor on the CPU, which may share memory with what it is read from."""
        if name not in self._places:
            return self._tensors.read(name)
        whole, expert, first, rows = self._places[name]
        tensor = self._read_whole(whole)
        return (tensor if expert is None else tensor[expert]).narrow(0, first, rows)


class StockTensors:
    """Tensors by the names of the stock class's parameters, of files that may hold experts one by one."""

    def __init__(self, family: Family, config: Any, tensors: Tensors) -> None:
        self.specs = dict(tensors.specs)
        """Shape and dtype of every tensor, by name."""
        self._tensors = tensors
        self._parts: dict[str, list[list[str]]] = {}
        for name, rule, layer in family.tensors(config) if family.stores_otherwise else ():
            if rule.published and name not in self.specs:
                shape = family.shape(rule, config)
                parts = expert_names(rule, layer, shape[0]) if rule.per_expert else [[stored_name(rule, layer)]]
                self._parts[name] = parts
                dtype = [self.specs.pop(part).dtype for each in parts for part in each][0]
                self.specs[name] = TensorSpec(shape=shape, dtype=dtype)

    def read(self, name: str) -> Tensor:
        """Return one parameter on the CPU."""
        if name not in self._parts:
            return self._tensors.read(name)
        experts = [torch.cat([self._tensors.read(part) for part in parts]) for parts in self._parts[name]]
        return torch.stack(experts) if len(self.specs[name].shape) > experts[0].ndim else experts[0]
