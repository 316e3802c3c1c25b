"""One tensor of the child: what it is made from, and how its weights and statistics follow from the parent's."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from hf_progressive.distributed.working_dtype import working_dtype
from hf_progressive.growth.axis import Axis, Dim, interleaved, joined
from hf_progressive.growth.experts import Alteration, Dropped
from hf_progressive.growth.family_table import AxisName, DimRule, Family, WeightRule
from hf_progressive.growth.layers import LayerOrigin
from hf_progressive.growth.methods import Method
from hf_progressive.growth.operators import Fresh, Lowered, add_noise, fill_new, inherited_rms, place
from hf_progressive.growth.options import GrowthOptions
from hf_progressive.growth.reused_memory import ReusedMemory

_ALL_NAMED = 4  # factors along an axis, when more of them are told by their range


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of the child and how to make it.

    Attributes:
        name: The name of the stock class's parameter; of what is in `pieces`, the name in files.
        shape: The child's shape.
        sources: Names of the parent's parameters that it is made from, in files' words for what is in `pieces`; empty
            if it is new. Several are the parts of a fused tensor.
        rule: What is done, for people.
        dims: Its dimensions.
        fresh: How a new model initialises it.
        kind: The name with `{layer}` in place of the layer's index.
        offset: The working value is the stored value plus this.
        heir: It inherits its source's statistics too; a copied layer beside the original does not.
        noise: Symmetry-breaking noise, relative to the root mean square of the weight.
        shrink: Factor of what is inherited.
        perturb: Standard deviation of the noise on all entries, inherited or new.
        free_scale: Standard deviation of free new entries, relative to the root mean square of the inherited ones;
            None takes that of `fresh`.
        new_scale: Standard deviation of what is added to the new entries that exactness fixes, relative likewise.
        pieces: What files hold of it, where they hold it under other names or in parts: the experts of a mixture.
        altered: What tells an expert's matrix from that which it is copied from.
        dropped: The hidden units of experts that are drawn anew, of a tensor of all experts.
        lowered: What lowers the logits of new tokens, of the output head.
    """

    name: str
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    rule: str
    dims: tuple[Dim, ...] = field(repr=False)
    fresh: Fresh = field(repr=False)
    kind: str = field(repr=False)
    offset: float = field(default=0.0, repr=False)
    heir: bool = True
    noise: float = field(default=0.0, repr=False)
    shrink: float = field(default=1.0, repr=False)
    perturb: float = field(default=0.0, repr=False)
    free_scale: float | None = field(default=None, repr=False)
    new_scale: float = field(default=0.0, repr=False)
    pieces: "tuple[TensorPlan, ...]" = field(default=(), repr=False)
    altered: Alteration | None = field(default=None, repr=False)
    dropped: Dropped | None = field(default=None, repr=False)
    lowered: Lowered | None = field(default=None, repr=False)

    @property
    def seeded_by(self) -> str:
        """The name that seeds its random numbers: its own, or that of the copy which others are balanced with."""
        return (self.altered and self.altered.seeded_by) or self.name

    @property
    def stored(self) -> "tuple[TensorPlan, ...]":
        """What files hold of it: itself, unless it is stored in pieces."""
        return self.pieces or (self,)

    @property
    def is_copy(self) -> bool:
        """Whether the child's tensor equals the parent's."""
        return bool(self.sources) and all(dim.axis == Axis.unchanged(dim.axis.parent_size) for dim in self.dims)

    @property
    def is_renamed(self) -> bool:
        """Whether files hold the tensor whole, under another name."""
        return len(self.pieces) == 1 and self.pieces[0].shape == self.shape

    def produce(
        self, read: Callable[[str], Tensor], generator: torch.Generator, memory: ReusedMemory | None = None
    ) -> Tensor:
        """Make the tensor, in float64 if its source is float64, else in float32.

        Args:
            read: Returns a tensor of the parent by its canonical name; the result may share memory with it.
            generator: Source of random numbers; seed it by the tensor's name, and the order does not matter.
            memory: Where the tensor is made, unless it is the parent's as it is or wholly new.
        """
        assert not self.pieces or self.is_renamed, f"{self.name} is made piece by piece"
        if not self.sources:
            return self._perturbed(self.fresh.draw(self.shape, torch.float32, generator) - self.offset, generator)
        parent = read(self.sources[0])
        self._require_parents_shape(parent)
        dtype = working_dtype(parent.dtype)
        if self.shrink != 1.0:
            parent = parent.to(dtype) * self.shrink
        if self.altered is not None:
            parent = self.altered.apply(parent.to(dtype), generator)
        if self.is_copy:
            return self._perturbed(parent.to(dtype), generator)
        if self.offset:
            parent = parent.to(dtype) + self.offset
        child = (memory or torch).empty(self.shape, dtype=dtype)
        if scaled := self.free_scale is not None or self.new_scale > 0.0:
            child.zero_()
        place(parent, self.dims, power=0, out=child)
        rms = inherited_rms(child, self.dims) if scaled else 0.0
        if self.noise:
            add_noise(child, self.dims, self.noise * parent.to(dtype).square().mean().sqrt().item(), generator)
        free = self.fresh if self.free_scale is None else Fresh(std=self.free_scale * rms)
        silent = Fresh(std=self.new_scale * rms)
        near, shift = self.fresh, None
        if self.lowered is not None:
            shift = self.lowered.grown(self.dims)
            near = self.lowered.limited(near, shift)
        fill_new(child, self.dims, fresh=free, near=near, silent=silent, generator=generator)
        if self.lowered is not None and shift is not None:
            self.lowered.add(child, self.dims, shift)
        if self.offset:
            child.sub_(self.offset)
        if self.perturb:
            child.add_(Fresh(std=self.perturb).draw(self.shape, dtype, generator))
        return child

    def _perturbed(self, child: Tensor, generator: torch.Generator) -> Tensor:
        if not self.perturb:
            return child
        return child + Fresh(std=self.perturb).draw(self.shape, child.dtype, generator)

    def _require_parents_shape(self, tensor: Tensor, what: str = "") -> None:
        expected = tuple(dim.axis.parent_size for dim in self.dims)
        if tuple(tensor.shape) != expected:
            raise ValueError(f"{what}{self.sources[0]} has shape {tuple(tensor.shape)}, the config says {expected}")

    def carry(self, *statistics: Tensor, power: int) -> Tensor:
        """Carry a gradient statistic of the parent's tensor, one of each of `sources`, into the child's coordinates.

        Where W' = a·W, it is divided by a to the `power` (1 if it scales as a gradient does, 2 as a squared gradient),
        and copies of a unit, or of an expert, get their share; 0 where nothing is inherited.
        """
        statistic = statistics[0]
        if self.pieces and statistic.ndim < len(self.dims):  # of dense matrices, which are one expert
            statistic = torch.cat(statistics)[None]
        self._require_parents_shape(statistic, "the statistic of ")
        child = statistic.new_zeros(self.shape)
        if self.heir:
            place(statistic, self.dims, power=power, out=child)
        if self.dropped is not None:
            child.masked_fill_(~self.inherited(), 0)
        return child

    def carry_basis(self, basis: Tensor) -> Tensor:
        """Carry an orthonormal basis (out, r) of the output side of the parent's weight into the child's coordinates.

        Returns:
            (out', r), orthonormal columns, rows zero for new output units; (out', 0) if this tensor is no heir.
        """
        output = next(dim for dim in self.dims if dim.role == "write")
        if len(self.dims) != 2 or basis.ndim != 2 or basis.shape[0] != output.axis.parent_size:
            raise ValueError(
                f"basis of {self.sources[0]}: shape {tuple(basis.shape)}, expected ({output.axis.parent_size}, r) for"
                " a weight of two dimensions"
            )
        columns = basis.shape[1] if self.heir else 0
        grown = basis.new_zeros((output.axis.size, columns))
        if columns == 0:
            return grown
        place(basis, (output, Dim(Axis.unchanged(columns), "read")), power=0, out=grown)
        # Copies of rows, and factors that differ between rows (queries against keys), leave columns that span the
        # right space without being orthonormal.
        orthonormal: Tensor = torch.linalg.qr(grown.to(working_dtype(basis.dtype))).Q
        return orthonormal.to(basis.dtype)

    def inherited(self) -> Tensor:
        """Tell which entries come from the parent: none if this tensor is no heir."""
        mask = torch.full(self.shape, self.heir, dtype=torch.bool)
        for index, dim in enumerate(self.dims):
            for start, segment in dim.axis.new():
                mask.narrow(index, start, segment.size).fill_(False)
        if self.dropped is not None:
            self.dropped.mark(mask, 0, False)
        return mask


def plan_tensors(
    family: Family,
    source: Any,
    target: Any,
    axes: Mapping[AxisName, Axis],
    layers: Sequence[LayerOrigin],
    method: Method,
    options: GrowthOptions,
) -> Iterator[TensorPlan]:
    """Plan every tensor of the child, in the order of the stock class's parameters."""
    std = getattr(target, family.init_field) if options.init_std is None else options.init_std
    groups = family.sizes(source).kv_heads, family.sizes(target).kv_heads
    copies = Counter(layer.source for layer in layers if not layer.silent)
    layered = bool(family.layered_scores and getattr(source, family.layered_scores))
    for name, rule, layer in family.tensors(target):
        origin = LayerOrigin(None) if layer is None else layers[layer]
        here = axes
        if layered and layer is not None and origin.source is not None:
            later = (layer + 1) / (origin.source + 1)  # scores are divided by the layer's number
            here = {**axes, "query": axes["query"].scaled(later, 1 / later)}
        if origin.silent and family.closes_by_gain:
            # New channels that are written as zero and have a gain of zero would never learn.
            here = {**here, "residual": axes["residual"].filled("fresh")}
        if options.repeats == "shared" and rule.closes and origin.source is not None:
            share = 1 / copies[origin.source]
            here = {**here, **{name: here[name].scaled(share, 1.0) for name in ("residual", "post_gain")}}
        dims = tuple(Dim(_stored(dim, here, *groups), dim.role) for dim in rule.dims)
        shape = tuple(dim.axis.size for dim in dims)
        fresh = rule.fresh(std, len(layers))
        plan = TensorPlan(name, shape, (), "fresh", dims, fresh, rule.name, rule.offset, False)
        if origin.silent and rule.closes:
            silent = replace(plan, rule="zero: the new layer is silent", fresh=Fresh())
            yield replace(silent, rule=_and_noise(silent, method), perturb=method.perturb * fresh.std)
        elif not method.inherits or (layer is not None and origin.source is None):
            yield plan
        else:
            # An output head that is tied in the parent and is not in the child is made from the embedding.
            parent = rule.name.format(layer=origin.source) if rule.exists(source) else rule.tied_to
            words = _describe(rule, dims, origin)
            plan = replace(plan, sources=(parent,), rule=words, heir=origin.heir, noise=method.noise)
            if len(dims) > 1:  # gains and biases are left alone
                plan = replace(
                    plan,
                    rule=_and_noise(plan, method),
                    shrink=method.shrink,
                    perturb=method.perturb * fresh.std,
                    free_scale=options.free_scale,
                    new_scale=options.new_scale,
                )
            yield plan


def _stored(dim: DimRule, axes: Mapping[AxisName, Axis], parent_groups: int, groups: int) -> Axis:
    named = [axes[name] for name in dim.axes]
    return interleaved(named, parent_groups, groups) if dim.grouped else joined(named)


def _and_noise(plan: TensorPlan, method: Method) -> str:
    words = [f"× {method.shrink:g}"] if plan.sources and method.shrink != 1.0 else []
    words += ["noise on all"] if len(plan.dims) > 1 and method.perturb else []
    return "; ".join([plan.rule, *words])


def _describe(rule: WeightRule, dims: Sequence[Dim], origin: LayerOrigin) -> str:
    words = ["inherited" if origin.heir else "copied from a neighbour"]
    for dim_rule, dim in zip(rule.dims, dims, strict=True):
        name = "|".join(dim_rule.axes)
        fills = sorted({dim.fill(segment) for _, segment in dim.axis.new()})
        factors = sorted({dim.value_factor(segment) for _, segment in dim.axis.inherited()} - {1.0})
        named = [f"{factor:.6g}" for factor in factors]
        words += [f"new {name}: {' or '.join(fills)}"] if fills else []
        if len(named) > _ALL_NAMED:
            words += [f"{name} × {named[0]} … {named[-1]}"]
        elif named:
            words += [f"{name} × {', '.join(named)}"]
    return "; ".join(words)
