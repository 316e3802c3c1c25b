"""Growth methods: what a wider model's units and a deeper model's layers inherit from.

| method       | width                        | depth                       | function | source (arXiv)              |
|--------------|------------------------------|-----------------------------|----------|-----------------------------|
| `exact`      | new units, silent at first   | new layers, silent at first | kept     | padding of LEMON 2310.07999 |
| `tile`       | every unit copied k times    | as `exact`                  | kept     | HyperCloning 2409.12903     |
| `split`      | copies read in uneven shares | as `exact`                  | kept     | Net2Net 1511.05641; LEMON   |
| `stack`      | as `exact`                   | the stack on top of itself  | changed  | G_stack 2405.15319          |
| `interleave` | as `exact`                   | every layer repeated        | changed  | interpolation 1710.10348    |
| `pad`        | zeros, nothing rescaled      | as `exact`                  | changed  | the naive way               |
| `random`     | fresh weights                | fresh weights               | changed  | a model from scratch        |

`exact` is the default, for any sizes, and the one to train on with: new units are random on their input side and zero
on their output side, so gradients reach them within two steps and no two are alike. `tile` and `split`
start every new unit from a trained one. Copies that are read alike learn alike: those of `tile` stay alike unless
`noise` or dropout tells them apart. Under Adam uneven shares alone part them slowly, since it takes the size off a
gradient, so `split` adds noise of its own; noise adds up to zero over the copies of a unit. A residual stream can
only hold whole copies, since a norm weighs every channel alike; `split` fills the remainder as `exact` does. `stack`
and `interleave` give up the function for new layers that work from the start. `pad` and `random` are what the others
are compared with.

A method of one's own is a function or two:

    def mirrored(old, new):
        return [UnitOrigin(unit) if unit < old else UnitOrigin(None) for unit in reversed(range(new))]

    register_method("mirrored", summary="new units in front of the old, in reverse", width=mirrored)
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Literal

DepthPosition = Literal["append", "spread"] | Sequence[int]
NewLayers = Literal["copy", "fresh"]


@dataclass(frozen=True)
class UnitOrigin:
    """Where a unit of the child comes from.

    Attributes:
        source: The parent's unit; None if the unit is new.
        share: The share of the parent's unit that readers take from this copy; the shares of its copies add up to 1.
    """

    source: int | None = None
    share: float = 1.0


@dataclass(frozen=True)
class LayerOrigin:
    """Where a layer of the child comes from.

    Attributes:
        source: The parent's layer whose weights it copies; None if they are fresh.
        heir: It stands for that layer: Fisher information, subspace and Adam's moments go to it and to no other copy.
        silent: Its output projections are zero, so that it adds nothing at first.
    """

    source: int | None
    heir: bool = True
    silent: bool = False


@dataclass(frozen=True, kw_only=True)
class GrowthOptions:
    """What a method leaves open; `plan_growth` says what each field means."""

    depth_position: DepthPosition = "append"
    new_layers: NewLayers = "copy"
    init_std: float | None = None
    noise: float | None = None
    vocab_multiple: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.depth_position, str) and self.depth_position not in {"append", "spread"}:
            raise ValueError(
                f"depth_position={self.depth_position!r}: expected 'append', 'spread' or a list of the parent's layers"
            )
        if self.new_layers not in {"copy", "fresh"}:
            raise ValueError(f"new_layers={self.new_layers!r}: expected 'copy' or 'fresh'")
        if self.init_std is not None and self.init_std < 0:
            raise ValueError(f"init_std={self.init_std}: expected a number ≥ 0, or None for initializer_range")
        if self.noise is not None and self.noise < 0:
            raise ValueError(f"noise={self.noise}: expected a number ≥ 0, or None for the method's own")
        if self.vocab_multiple < 1:
            raise ValueError(f"vocab_multiple={self.vocab_multiple}: expected a number ≥ 1")


WidthRule = Callable[[int, int], Sequence[UnitOrigin]]
"""(parent's units, child's units) → one origin per unit of the child."""

DepthRule = Callable[[int, int, GrowthOptions], Sequence[LayerOrigin]]
"""(parent's layers, child's layers, options) → one origin per layer of the child."""


def append_units(old: int, new: int) -> list[UnitOrigin]:
    """Keep the parent's units and add new ones behind them.

    >>> [unit.source for unit in append_units(2, 3)]
    [0, 1, None]
    """
    return [UnitOrigin(unit if unit < old else None) for unit in range(new)]


def tile_units(old: int, new: int) -> list[UnitOrigin]:
    """Repeat all the parent's units a whole number of times, every copy read by the same share.

    >>> [(unit.source, unit.share) for unit in tile_units(1, 2)]
    [(0, 0.5), (0, 0.5)]
    """
    if new % old:
        raise ValueError(
            f"method 'tile' grows by whole multiples: {old} → {new} is none; take {new - new % old} or"
            f" {new - new % old + old}, or the method 'exact' or 'split'"
        )
    return [UnitOrigin(unit % old, old / new) for unit in range(new)]


def split_units(old: int, new: int) -> list[UnitOrigin]:
    """Repeat the parent's units in turn, the copies of each read by shares in the ratio 1 : 2 : 3 and so on.

    >>> [(unit.source, round(unit.share, 2)) for unit in split_units(2, 3)]
    [(0, 0.33), (1, 1.0), (0, 0.67)]
    """
    copies = [new // old + (unit < new % old) for unit in range(old)]
    return [
        UnitOrigin(unit % old, (unit // old + 1) / (copies[unit % old] * (copies[unit % old] + 1) / 2))
        for unit in range(new)
    ]


def insert_layers(old: int, new: int, options: GrowthOptions) -> list[LayerOrigin]:
    """Keep the parent's layers in order and insert silent ones among them.

    A copied layer takes the weights of the layer it follows; layers appended behind the last take those of the last
    layers in order, so that none is a copy of its neighbour.

    >>> [layer.source for layer in insert_layers(3, 5, GrowthOptions(depth_position="spread"))]
    [0, 0, 1, 2, 2]
    """
    added = new - old
    if options.depth_position == "append":
        first = max(0, old - added)
        inserted = {old - 1: [first + index % old for index in range(added)]}
    else:
        after = _positions(old, added, options.depth_position)
        inserted = {layer: [max(layer, 0)] * count for layer, count in Counter(after).items()}
    layers: list[LayerOrigin] = []
    for layer in range(-1, old):
        if layer >= 0:
            layers.append(LayerOrigin(layer))
        layers += [LayerOrigin(source, heir=False, silent=True) for source in inserted.get(layer, [])]
    if options.new_layers == "fresh":
        layers = [layer if layer.heir else replace(layer, source=None) for layer in layers]
    return layers


def _positions(old: int, added: int, position: DepthPosition) -> list[int]:
    if isinstance(position, str):  # "spread": the i-th new layer follows the last of the i-th equal part
        return [(index + 1) * old // added - 1 if added <= old else index * old // added for index in range(added)]
    after = list(position)
    if len(after) != added or any(not -1 <= layer < old for layer in after):
        raise ValueError(
            f"depth_position={after}: expected {added} of the parent's layers −1 … {old - 1}, one per new layer"
        )
    return after


def stack_layers(old: int, new: int, options: GrowthOptions) -> list[LayerOrigin]:
    """Repeat the parent's whole stack on top of itself; a remainder repeats its first layers.

    >>> [layer.source for layer in stack_layers(2, 4, GrowthOptions())]
    [0, 1, 0, 1]
    """
    _refuse_choice(options)
    return [LayerOrigin(layer % old, heir=layer < old) for layer in range(new)]


def interleave_layers(old: int, new: int, options: GrowthOptions) -> list[LayerOrigin]:
    """Repeat each of the parent's layers in place, as evenly as the numbers allow.

    >>> [layer.source for layer in interleave_layers(2, 4, GrowthOptions())]
    [0, 0, 1, 1]
    """
    _refuse_choice(options)
    sources = [layer * old // new for layer in range(new)]
    return [LayerOrigin(source, heir=index == sources.index(source)) for index, source in enumerate(sources)]


def _refuse_choice(options: GrowthOptions) -> None:
    if options.depth_position != "append" or options.new_layers != "copy":
        raise ValueError(
            f"depth_position={options.depth_position!r} and new_layers={options.new_layers!r} are for methods that"
            " insert silent layers; 'stack' and 'interleave' repeat layers in their own order, leave them out"
        )


@dataclass(frozen=True)
class Method:
    """A way to grow; `register_method` says what each field means."""

    name: str
    summary: str
    _: KW_ONLY
    width: WidthRule = append_units
    depth: DepthRule = insert_layers
    keeps_width: bool = True
    keeps_depth: bool = True
    rescales: bool = True
    inherits: bool = True
    noise: float = 0.0


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("exact", "new units and layers that are silent at first; the function is kept"),
        Method("tile", "whole multiples by copying every unit (HyperCloning)", width=tile_units),
        Method("split", "any width by copies read in uneven shares (Net2Net, LEMON)", width=split_units, noise=0.1),
        Method("stack", "the whole stack repeated on itself (G_stack)", depth=stack_layers, keeps_depth=False),
        Method("interleave", "every layer repeated in place", depth=interleave_layers, keeps_depth=False),
        Method("pad", "zeros around the old weights, nothing rescaled", rescales=False, keeps_width=False),
        Method("random", "fresh weights, as from scratch", inherits=False, keeps_width=False, keeps_depth=False),
    )
}
"""Every method, by name."""


def register_method(
    name: str,
    *,
    summary: str,
    width: WidthRule = append_units,
    depth: DepthRule = insert_layers,
    keeps_width: bool = True,
    keeps_depth: bool = True,
    rescales: bool = True,
    inherits: bool = True,
    noise: float = 0.0,
) -> Method:
    """Make a method known under a name.

    Args:
        name: The name to pass as `method`.
        summary: One line on what it does and where it comes from.
        width: What the units of a wider axis inherit from; it is asked about residual channels, heads and MLP units.
            Of the residual channels only whole sets of copies are used, since a norm weighs every channel alike.
        depth: What the layers inherit from.
        keeps_width: Growing in width keeps the function.
        keeps_depth: Growing in depth keeps the function.
        rescales: Rescale norms, scores and readers as exactness asks.
        inherits: Take weights from the parent at all.
        noise: Symmetry-breaking noise among copies, unless the options name another.

    Returns:
        The method.

    Raises:
        ValueError: The name is taken.
    """
    if name in METHODS:
        raise ValueError(f"a growth method {name!r} exists already; choose another name")
    METHODS[name] = Method(
        name,
        summary,
        width=width,
        depth=depth,
        keeps_width=keeps_width,
        keeps_depth=keeps_depth,
        rescales=rescales,
        inherits=inherits,
        noise=noise,
    )
    return METHODS[name]


def method_named(name: str) -> Method:
    """Return a method by its name, or raise a ValueError that lists them."""
    if name not in METHODS:
        raise ValueError(f"growth method {name!r} is not known; choose one of {', '.join(METHODS)}")
    return METHODS[name]
