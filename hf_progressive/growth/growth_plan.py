"""The plan of a growth: from two configs to every tensor of the child and the rule that makes it. Reads no weights.

    plan = plan_growth(parent.config, {"n_layer": 11, "n_embd": 704, "n_head": 11})
    for tensor in plan.tensors:
        weight = tensor.produce(read, torch.Generator().manual_seed(...))

`read` returns a tensor of the parent by its canonical name. Tensors can be produced in any order, one at a time.

What grows with the weights grows through the same plan: `map_diagonal` carries squared-gradient statistics,
`map_subspace` orthonormal bases of the weights' output sides. The *output side* of a weight is what it writes:
dimension 0 of a `Linear` (out, in), dimension 1 of a `Conv1D` (in, out) and of an `Embedding` (token, feature).
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from hf_progressive.config.ranges import class_of
from hf_progressive.growth.axis import Axis
from hf_progressive.growth.exactness import grow_axes
from hf_progressive.growth.expert_pieces import in_pieces
from hf_progressive.growth.families import family_of
from hf_progressive.growth.family_table import AxisName, Family, Sizes
from hf_progressive.growth.fitting import describe_misfit
from hf_progressive.growth.layers import LayerOrigin, follow_layers
from hf_progressive.growth.methods import Method, method_named
from hf_progressive.growth.mixtures import MIXTURES, write_sparsity
from hf_progressive.growth.new_entries import NewEntries, describe_new_entries, new_units
from hf_progressive.growth.options import GrowthOptions
from hf_progressive.growth.positions import keep_rotation
from hf_progressive.growth.target import check_token_numbers, complete_target
from hf_progressive.growth.tensor_plan import TensorPlan, plan_tensors
from hf_progressive.growth.upcycle import as_mixture, refuse_without_copies, upcycling_of, with_choice

_FACTORS_TOLD = 8  # along an axis, in a plan's summary


@dataclass(frozen=True)
class GrowthPlan:
    """What growth from one config to another does to every tensor.

    Attributes:
        source_config: The parent's config.
        target_config: The child's whole config, its norms' epsilon rescaled.
        family: The child's family.
        source_family: The parent's, which is another under the method `upcycle` alone.
        method: Name of the growth method.
        options: What the method left open.
        changes: What changes the function, a line each; none if the child computes the parent's function.
        tensors: The child's tensors in the order of the stock class's parameters; a tied output head is none.
        ignored_sources: Canonical names of what the parent's files may hold and the child does without: buffers, a
            tied output head.
        layers: The origin of every layer.
        axes: The axes by name.
    """

    source_config: Any
    target_config: Any
    family: Family
    source_family: Family
    method: str
    options: GrowthOptions
    changes: tuple[str, ...]
    tensors: tuple[TensorPlan, ...]
    ignored_sources: tuple[str, ...]
    layers: tuple[LayerOrigin, ...]
    axes: Mapping[AxisName, Axis]

    def __repr__(self) -> str:
        """Tell what grows; `summary` tells all of it."""
        old, new = asdict(self.source_family.sizes(self.source_config)), asdict(self.family.sizes(self.target_config))
        sizes = (name for name in self.family.size_fields if new[name] != old[name])
        grown = ", ".join(f"{name} {old[name]} → {new[name]}" for name in sizes)
        kept = f"function not preserved ({'; '.join(self.changes)})" if self.changes else "function preserved"
        family = self.family.model_type
        return f"<GrowthPlan {self.method}, {family}: {grown or 'same sizes'}; {len(self.tensors)} tensors; {kept}>"

    @property
    def stored(self) -> tuple[TensorPlan, ...]:
        """What files hold of the tensors: themselves, but for those that are stored expert by expert."""
        return tuple(piece for tensor in self.tensors for piece in tensor.stored)

    @property
    def preserves_function(self) -> bool:
        """Whether the child computes the parent's function, up to rounding.

        With a larger vocabulary, that is about the logits of the parent's tokens: new tokens have logits of their own,
        so probabilities change.
        """
        return not self.changes

    def check_source_keys(self, keys_with_shapes: Mapping[str, Sequence[int]]) -> None:
        """Raise unless a checkpoint, by its files' names and shapes, holds exactly the parent's tensors."""
        if misfit := describe_misfit(self.source_family, self.source_config, keys_with_shapes):
            raise ValueError(misfit)

    def map_diagonal(self, mapping: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Carry the parent's diagonal Fisher information into the child's coordinates.

        Args:
            mapping: By parameter name of the parent's stock class, each of the parameter's shape. It need not hold
                every parameter.

        Returns:
            By parameter name of the child, for the kinds of parameters that the mapping holds. Where W' = a·W,
            Ω' = Ω/a²; 0 where nothing is inherited: new units, and layers that are new or mere copies.

        Raises:
            ValueError: A name is not a parameter of the parent, or a shape is another.
        """
        return self._carried(mapping, partial(TensorPlan.carry, power=2))

    def map_gradient(self, mapping: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Carry gradients, or averages of them such as Adam's first moment, into the child's coordinates.

        Args:
            mapping: As for `map_diagonal`.

        Returns:
            As from `map_diagonal`, but where W' = a·W, G' = G/a.

        Raises:
            ValueError: A name is not a parameter of the parent, or a shape is another.
        """
        return self._carried(mapping, partial(TensorPlan.carry, power=1))

    def map_subspace(self, bases: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Carry orthonormal bases of the weights' output sides into the child's coordinates.

        Args:
            bases: By parameter name of the parent's stock class; each (out, r) with orthonormal columns. It need not
                hold every weight.

        Returns:
            By parameter name of the child, for the kinds of weights that `bases` holds; each (out', r), orthonormal,
            its rows zero for new output units. A layer that is new or a mere copy has a basis of no columns,
            (out', 0): P_S is zero there, and γ restrains it whole.

        Raises:
            ValueError: A name is not a 2-D parameter of the parent, or a basis has another number of rows.
        """
        return self._carried(bases, TensorPlan.carry_basis, matrices=True)

    def _carried(
        self, mapping: Mapping[str, Tensor], carry: Callable[..., Tensor], *, matrices: bool = False
    ) -> dict[str, Tensor]:
        carried = self.carried_from(mapping, matrices=matrices).items()
        return {name: carry(tensor, *(mapping[source] for source in sources)) for name, (tensor, sources) in carried}

    def carried_from(
        self, names: Iterable[str], *, matrices: bool = False
    ) -> dict[str, tuple[TensorPlan, tuple[str, ...]]]:
        """Tell from which of the parent's tensors each of the child's statistics is carried, to do it one at a time.

        Returns:
            By parameter name of the child, its plan and the parent's names, several where dense matrices become one
            tensor of experts. Where the child's is no heir, the parent's is any of its kind, of which shape and dtype
            alone count. With `matrices` tensors of experts, which have no one output side, are left out.
        """
        kinds = {name: rule.name for name, rule, _ in self.source_family.tensors(self.source_config)}
        given = dict.fromkeys(names)
        unknown = [name for name in given if name not in kinds]
        if unknown:
            raise ValueError(f"not parameters of the parent: {', '.join(unknown)}")
        examples = {kinds[name]: name for name in given}
        carried = {}
        for tensor in self.tensors:
            if matrices and len(tensor.dims) > 2:
                continue
            if tensor.heir and given.keys() >= set(tensor.sources):
                carried[tensor.name] = (tensor, tensor.sources)
            elif not tensor.heir and tensor.kind in examples:
                carried[tensor.name] = (tensor, (examples[tensor.kind],))
        return carried

    def inherited_mask(self, name: str) -> Tensor:
        """Tell which entries of a tensor come from the parent.

        Args:
            name: A parameter of the child.

        Returns:
            A boolean tensor of the child's shape; False in layers that are new or mere copies.
        """
        return self.tensor(name).inherited()

    def new_entries(self) -> dict[str, NewEntries]:
        """Tell which entries of every tensor the parent did not have: the complement of `inherited_mask`.

        Returns:
            By parameter name of the child, a description of a few numbers, of which a mask, or a shard's part of it,
            is made when it is needed. `hf_progressive.growth.new_entries` tells the same of a grown checkpoint.
        """
        heirs = [layer.heir for layer in self.layers]
        upcycled = self._upcycled()
        return describe_new_entries(
            self.family,
            self.target_config,
            new_units(self.axes),
            heirs,
            new_kinds=upcycled.get("new_kinds", ()),
            dropped=upcycled.get("dropped"),
        )

    def tensor(self, name: str) -> TensorPlan:
        """Return the plan of one tensor.

        Args:
            name: Its name in the child.

        Returns:
            The plan.

        Raises:
            KeyError: The child has none of that name.
        """
        for tensor in self.tensors:
            if tensor.name == name:
                return tensor
        raise KeyError(name)

    def summary(self) -> dict[str, Any]:
        """Summarise the plan in values that JSON can hold.

        Returns:
            Sizes from → to, layers, the new units of every axis, numbers of tensors and parameters, factors, and the
            rules used.
        """
        family, source = self.family, self.source_config
        old, new = self.source_family.sizes(source), family.sizes(self.target_config)
        before = sum(math.prod(shape) for _, shape in self.source_family.stored(source))
        factors = {
            name: sorted({segment.write for _, segment in axis.inherited()} - {1.0})
            for name, axis in self.axes.items()
        }
        eps = [getattr(config, family.eps_field, None) for config in (source, self.target_config)]
        return {
            "family": family.model_type,
            "method": self.method,
            "preserves_function": self.preserves_function,
            "changes": list(self.changes),
            "sizes": {
                name: [value, getattr(new, name)]
                for name, value in asdict(old).items()
                if family.has_experts or name not in ("experts", "chosen", "expert_mlp", "shared_mlp")
            },
            "layers": [asdict(layer) for layer in self.layers],
            "new_units": {name: [list(run) for run in runs] for name, runs in new_units(self.axes).items()},
            "tensors": {
                "inherited": sum(bool(t.sources) and t.heir for t in self.tensors),
                "copied": sum(bool(t.sources) and not t.heir for t in self.tensors),
                "new": sum(not t.sources for t in self.tensors),
            },
            "parameters": [before, sum(math.prod(tensor.shape) for tensor in self.tensors)],
            "factors": {name: _few(values) for name, values in factors.items() if values},
            **({family.eps_field: eps} if family.eps_field else {}),
            "rules": dict(Counter(tensor.rule for tensor in self.tensors)),
            **self._upcycled(),
        }

    def _upcycled(self) -> dict[str, Any]:
        # What neither layers nor axes tell of a child with experts of a dense parent.
        if self.source_family is self.family:
            return {}
        made = {tensor.kind for tensor in self.tensors if tensor.sources}
        dropped = next((tensor.dropped for tensor in self.tensors if tensor.dropped is not None), None)
        return {
            "source_family": self.source_family.model_type,
            "new_kinds": sorted({tensor.kind for tensor in self.tensors} - made),
            "dropped": None if dropped is None else {"share": dropped.share, "units": dropped.units},
        }


def plan_growth(
    source_config: Any, target_config: Any | Mapping[str, Any], *, method: str = "exact", **options: Any
) -> GrowthPlan:
    """Plan the growth of a model, from configs alone.

    Args:
        source_config: The parent's `PreTrainedConfig`; not changed.
        target_config: The child's config, or a dict of the family's own config fields; what a dict does not name is
            kept, or derived where the family derives it. Not changed.
        method: A growth method; see `hf_progressive.growth.methods`.
        **options: What the method leaves open: any of `depth_position`, `new_layers`, `depth_method`, `repeats`,
            `init_std`, `free_scale`, `new_scale`, `noise`, `drop`, `uneven`, `shrink`, `perturb`, `new_moments` and
            `vocab_multiple`; `GrowthOptions` in `hf_progressive.growth.options` says what each is.

    Returns:
        The plan.

    Raises:
        ValueError: Unknown family, method, option or field; a size that shrinks or cannot be reached exactly; a change
            of the function.

    >>> from transformers import GPT2Config
    >>> parent = GPT2Config(n_layer=2, n_embd=96, n_head=6, vocab_size=64, n_positions=16)
    >>> plan = plan_growth(parent, {"n_embd": 112, "n_head": 7})
    >>> plan
    <GrowthPlan exact, gpt2: width 96 → 112, heads 6 → 7, mlp 384 → 448; 28 tensors; function preserved>
    >>> plan.preserves_function, round(plan.target_config.layer_norm_epsilon * 1e6, 3)
    (True, 8.571)
    >>> plan.tensor("transformer.h.0.attn.c_attn.weight").shape
    (112, 336)
    """
    chosen = GrowthOptions.of(options)
    source_family = family = family_of(source_config)
    if not isinstance(target_config, Mapping | PreTrainedConfig):
        what = f"the target is {class_of(target_config)}"
        raise ValueError(f"{what}; give fields of the config, such as {{'num_hidden_layers': 24}}, or a whole one")
    if not isinstance(method, str):
        raise ValueError(f"method is {class_of(method)}; give a method's name, such as 'exact'")
    way = method_named(method).with_options(chosen)
    upcycling, source = None, source_config
    if way.upcycles:
        upcycling = upcycling_of(source_config, target_config)
        refuse_without_copies(upcycling, chosen)
        target_config = with_choice(upcycling, target_config)
        family, source = MIXTURES[upcycling.target], as_mixture(upcycling, source_config, target_config)
    target = complete_target(family, source, target_config)
    vocab_field = family.size_fields["vocab"]
    rows = math.ceil(getattr(target, vocab_field) / chosen.vocab_multiple) * chosen.vocab_multiple
    setattr(target, vocab_field, rows)
    check_token_numbers(source, target, vocab_field)
    axes, eps_factor = grow_axes(family, source, target, way, new_scale=chosen.new_scale)
    old, new = family.sizes(source), family.sizes(target)
    layers = _layer_origins(way, old.layers, new.layers, chosen)
    if way.inherits:
        keep_rotation(source, target)
        if family.eps_field:
            setattr(target, family.eps_field, getattr(source, family.eps_field) * eps_factor)
        for name in family.layer_fields:
            setattr(target, name, follow_layers(layers, getattr(source, name)))
        if family.sparse_layers and family.follow_sparse and upcycling is None:
            write_sparsity(family, source, target, follow_layers(layers, family.sparse_layers(source)))
    tensors = plan_tensors(family, source, target, axes, layers, way, chosen)
    return GrowthPlan(
        source_config=source_config,
        target_config=target,
        family=family,
        source_family=source_family,
        method=way.name,
        options=chosen,
        changes=tuple(_changes(way, chosen, old, new, family)),
        tensors=tuple(in_pieces(family, target, tensors, axes, layers, chosen, upcycling)),
        ignored_sources=tuple(source_family.ignored_names(source_config)),
        layers=tuple(layers),
        axes=axes,
    )


def _changes(method: Method, options: GrowthOptions, old: Sizes, new: Sizes, family: Family) -> Iterator[str]:
    if not method.inherits:
        yield "nothing is inherited"
        return
    kept = replace(old, layers=new.layers)
    if not method.keeps_width and kept != new:
        differing = (name for size, name in family.size_fields.items() if getattr(kept, size) != getattr(new, size))
        yield f"the method {method.name!r} does not keep the function when it changes {', '.join(differing)}"
    if not method.keeps_depth and old.layers != new.layers:
        yield f"the order of layers of {options.depth_method or method.name!r} does not keep the function"
    if options.new_scale > 0 and replace(kept, vocab=new.vocab, positions=new.positions) != new:
        yield f"new entries that the function fixes are drawn at {options.new_scale:g} of their matrix's RMS"
    if method.shrink != 1.0:
        yield f"old matrices are multiplied by {method.shrink:g}"
    if method.perturb > 0:
        yield f"matrices carry noise of {method.perturb:g} of a new model's"
    if method.upcycles and options.drop > 0:
        yield f"{options.drop:.0%} of every expert's hidden units are drawn anew, the others are the dense model's"
    if method.upcycles and options.noise:
        yield f"experts' matrices carry noise of {options.noise:g} of their RMS"


def _few(values: Sequence[float]) -> Sequence[float]:
    # Shares that are drawn are as many as there are units: the least and the largest of them say enough.
    return values if len(values) <= _FACTORS_TOLD else [values[0], values[-1]]


def _layer_origins(method: Method, old: int, new: int, options: GrowthOptions) -> Sequence[LayerOrigin]:
    if not method.inherits:
        return [LayerOrigin(None, heir=False)] * new
    if old == new:
        return [LayerOrigin(layer) for layer in range(old)]
    layers = method.depth(old, new, options)
    heirs = [layer.source for layer in layers if layer.heir]
    if len(layers) != new or sorted(source for source in heirs if source is not None) != list(range(old)):
        raise ValueError(
            f"layers: the method {method.name!r} gives {len(layers)} of {new} layers, with the heirs {heirs}; each of"
            f" the parent's {old} needs one"
        )
    return layers
