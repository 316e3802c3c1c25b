"""How attention knows of positions, and what that asks of heads: rotations (RoPE), slopes (ALiBi).

**Rotations.** Of a head's dimensions the first r are turned in pairs, all of them in most families; pair i turns at
θ^(−2i/r), which is pair m·i's rate where m·r are turned. An integer multiple is exact, anything else is not. Rates
that depend on the longest context (`dynamic`) ask for the parent's. Those of `yarn` with a factor and of `longrope`
depend on the original one; the factor of longrope's scores, which follows from the ratio of the two, is written out.

**Slopes.** A head of n has a slope by its number: those of the first p = 2^⌊log₂ n⌋ heads are a geometric series to
2^−8, those of the others lie between. New heads behind the old leave these theirs up to 2p − 1. Slopes are divided by
√head_dim, which therefore stays.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hf_progressive.growth.family_table import Family, Sizes

_STEADY_ROTATIONS = ("default", "linear", "llama3")  # rates depend on i/head_dim alone


def has_slopes(family: Family, config: Any) -> bool:
    """Tell whether a model's heads have slopes in place of rotations."""
    return bool(family.alibi and getattr(config, family.alibi))


def check_positions(family: Family, source: Any, old: Sizes, new: Sizes) -> None:
    """Raise a ValueError if positions would enter otherwise in a model of the new sizes."""
    if has_slopes(family, source):
        _check_slopes(family, old, new)
    elif family.rotary:
        for rope in _rotations(source):
            _check_rotation(family, rope, old, new)


def check_listed_rates(family: Family, source: Any, values: Mapping[str, Any]) -> None:
    """Raise a ValueError if longrope lists a factor for every pair of a head that the child's values make another."""
    if not family.rotary or has_slopes(family, source):
        return
    if all(rope["rope_type"] != "longrope" for rope in _rotations(source)):
        return
    names, old = family.size_fields, family.sizes(source).head_dim
    width, heads = values[names["width"]], values[names["heads"]]
    head_dim = values.get(names.get("head_dim", "")) or (width / heads if type(width) is type(heads) is int else old)
    if head_dim != old:
        raise ValueError(f"rope_type 'longrope' turns at rates that depend on head_dim; keep head_dim={old}")


def turned_dims(family: Family, source: Any, old: int, new: int) -> list[int | None]:
    """List one head's query and key dimensions: the parent's for each of the child's, None if it is new.

    `old` and `new` are the numbers of its dimensions.
    """
    if old == new or not family.rotary or has_slopes(family, source):
        return [*range(old), *[None] * (new - old)]
    turned, after = (_turned(family, _rotations(source)[0], size) for size in (old, new))
    step, half = after // turned, turned // 2
    dims: list[int | None] = [None] * new
    dims[0 : after // 2 : step] = range(half)
    dims[after // 2 : after : step] = range(half, turned)
    dims[after : after + old - turned] = range(turned, old)
    return dims


def keep_rotation(source: Any, target: Any) -> None:
    """Write the factor of longrope's scores out in a child of another longest context, whose own would be another."""
    if source.max_position_embeddings == target.max_position_embeddings:
        return
    rotations = getattr(target, "rope_parameters", None) or {}
    for name, rope in [(None, rotations)] if "rope_type" in rotations else list(rotations.items()):
        if not rope or rope["rope_type"] != "longrope" or rope.get("attention_factor") or rope.get("factor"):
            continue
        original = rope["original_max_position_embeddings"]
        ratio = source.max_position_embeddings / original
        factor = math.sqrt(1 + math.log(ratio) / math.log(original)) if ratio > 1 else 1.0
        kept = {**rope, "attention_factor": factor}
        target.rope_parameters = kept if name is None else {**target.rope_parameters, name: kept}


def _rotations(config: Any) -> Sequence[dict[str, Any]]:
    # One for all layers, or one for each type of layer.
    rotations = config.rope_parameters
    return [rotations] if "rope_type" in rotations else [rope for rope in rotations.values() if rope]


def _turned(family: Family, rope: dict[str, Any], head_dim: int) -> int:
    return int(head_dim * rope.get("partial_rotary_factor", 1.0)) if family.partial_rotary else head_dim


def _check_rotation(family: Family, rope: dict[str, Any], old: Sizes, new: Sizes) -> None:
    kind = rope["rope_type"]
    if kind not in _STEADY_ROTATIONS and old.head_dim != new.head_dim:
        raise ValueError(f"rope_type {kind!r} turns at rates that depend on head_dim; keep head_dim={old.head_dim}")
    if kind not in _STEADY_ROTATIONS and old.positions != new.positions and not _turns_by_original_length(rope):
        raise ValueError(
            f"rope_type {kind!r} turns at rates that depend on the context length; keep"
            f" {family.size_fields['positions']}={old.positions}"
        )
    if old.head_dim == new.head_dim:
        return
    if family.normed_queries:
        return  # refused for a reason of its own
    turned, after = _turned(family, rope, old.head_dim), _turned(family, rope, new.head_dim)
    fits = turned % 2 == 0 and after % 2 == 0 and turned > 0 and after % turned == 0
    if not fits or new.head_dim - after < old.head_dim - turned:
        width, heads = family.size_fields["width"], family.size_fields["heads"]
        fitting = new.width // old.head_dim
        derived = new.heads * new.head_dim == new.width
        sizes = f" ({heads}={fitting} at {width}={fitting * old.head_dim})" if derived else ""
        raise ValueError(
            f"head_dim {old.head_dim} → {new.head_dim} is not exact under RoPE: the rotation rates θ^(−2i/head_dim) of"
            f" the parent are among the child's for whole multiples only; take"
            f" {-(-new.head_dim // old.head_dim) * old.head_dim}, or keep {old.head_dim} and grow the number of heads"
            f"{sizes}"
        )


def _turns_by_original_length(rope: Mapping[str, Any]) -> bool:
    # These two depend on the original length, which they state, and on the present one by a factor that is left out:
    # yarn's changes rates, that of longrope's scores is written out.
    return rope["rope_type"] == "longrope" or (rope["rope_type"] == "yarn" and rope.get("factor") is not None)


def _check_slopes(family: Family, old: Sizes, new: Sizes) -> None:
    heads = family.size_fields["heads"]
    if old.head_dim != new.head_dim:
        raise ValueError(
            f"head_dim {old.head_dim} → {new.head_dim} is not exact for {family.model_type} with {family.alibi}=True,"
            f" whose slopes are divided by √head_dim; keep {old.head_dim} and grow the number of heads"
        )
    if int(math.log2(old.heads)) != int(math.log2(new.heads)):
        most = 2 ** (int(math.log2(old.heads)) + 1) - 1
        raise ValueError(
            f"{heads} {old.heads} → {new.heads} is not exact with {family.alibi}=True: the slopes of the old heads"
            f" would be others; take {heads}={most} at the most"
        )
