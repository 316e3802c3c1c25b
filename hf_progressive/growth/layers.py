"""Depth rules: what the layers of a deeper model inherit from."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hf_progressive.growth.options import DepthPosition, GrowthOptions


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


def follow_layers(layers: Sequence[LayerOrigin], values: Sequence[Any]) -> list[Any]:
    """Return a list with an entry per layer of the child; a fresh layer does as the one before it."""
    followed: list[Any] = []
    for layer in layers:
        fallback = followed[-1] if followed else values[0]
        followed.append(fallback if layer.source is None else values[layer.source])
    return followed


DepthRule = Callable[[int, int, GrowthOptions], Sequence[LayerOrigin]]
"""(parent's layers, child's layers, options) → one origin per layer of the child."""


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


def insert_after_groups(old: int, new: int, options: GrowthOptions) -> list[LayerOrigin]:
    """Divide the parent's layers into as many equal groups as layers are added and put a silent copy after each.

    >>> [(layer.source, layer.silent) for layer in insert_after_groups(4, 6, GrowthOptions())]
    [(0, False), (1, False), (1, True), (2, False), (3, False), (3, True)]
    """
    if options.depth_position != "append":
        raise ValueError(
            f"depth_position={options.depth_position!r}: 'llama_pro' has its own places; leave it out, or take 'exact'"
        )
    return insert_layers(old, new, replace(options, depth_position="spread"))


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


def overlap_layers(old: int, new: int, options: GrowthOptions) -> list[LayerOrigin]:
    """Put the parent's upper layers on its lower ones, so that those in the middle stand there twice.

    >>> [layer.source for layer in overlap_layers(4, 6, GrowthOptions())]
    [0, 1, 2, 1, 2, 3]
    """
    _refuse_choice(options)
    lower = -(-new // 2)
    if new > 2 * old:
        raise ValueError(f"layers: 'solar' at most doubles them: {old} → {new}; take {2 * old}, or the method 'stack'")
    sources = [*range(lower), *range(old - (new - lower), old)]
    return [LayerOrigin(source, heir=index < lower or source >= lower) for index, source in enumerate(sources)]


def _refuse_choice(options: GrowthOptions) -> None:
    if options.depth_position != "append" or options.new_layers != "copy":
        raise ValueError(
            f"depth_position={options.depth_position!r} and new_layers={options.new_layers!r} are for methods that"
            " insert silent layers; 'stack', 'interleave' and 'solar' repeat layers in their own order, leave them out"
        )
