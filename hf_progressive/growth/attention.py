"""The axes of attention: how heads are kept, divided, copied and added, and what norms of queries and keys ask for.

**Norms over each head's dimensions** (Qwen3, Gemma 3) with the same ε as the stream's see ε' = ρ²·ε, so queries and
keys are multiplied by ρ. They fix head_dim.

**Norms over all heads at once** (OLMo 2) see another mean square too. Let k whole copies of the parent's H query
heads stand among H' heads, the queries of new heads be zero, and σ² = k·H/H'. Then the mean square is σ² times the
parent's; queries × ρ/σ make that ρ², as that of ε' is, and gains × σ take off the 1/σ that the norm leaves on. A new
head's scores are 0: it reads the mean of the values, through output columns that are zero at first. Its gains are
drawn around the mean, or two new heads of one key/value head would stay alike for ever. New key heads would have to be
zero for the same reason, and a zero key against zero queries has no gradient on either side: key/value heads are
copied whole, or stay as they are.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from hf_progressive.growth.axis import Axis, Fill, Segment
from hf_progressive.growth.family_table import AxisName, Family, Sizes
from hf_progressive.growth.methods import Method
from hf_progressive.growth.positions import check_positions, has_slopes, turned_dims

Head = tuple[int | None, float]
"""A head's source (None if new) and the share that readers take from it."""


def attention_axes(
    family: Family, method: Method, source: Any, target: Any, query_scale: float, key_scale: float
) -> dict[AxisName, Axis]:
    """Work out the axes of queries, keys, values and what attention hands on, the former scaled by what is given."""
    old, new = family.sizes(source), family.sizes(target)
    check_positions(family, source, old, new)
    if family.normed_queries and old.head_dim != new.head_dim:
        over = "all heads" if family.normed_queries == "all_heads" else "head_dim"
        raise ValueError(
            f"head_dim {old.head_dim} → {new.head_dim} is not exact for {family.model_type}: its query and key norms"
            f" average over {over}; keep head_dim={old.head_dim} and grow the number of heads"
        )
    queries, keys = _heads(method, old, new)
    if has_slopes(family, source) and any(head not in (None, place) for place, (head, _) in enumerate(queries)):
        raise ValueError(
            f"{old.heads} → {new.heads} heads would move heads to slopes of others with {family.alibi}=True; append"
            " them, with the method 'exact'"
        )
    new_queries: Fill = "fresh"
    gain = 1.0
    if family.normed_queries == "all_heads" and method.rescales:
        gain, new_queries = _share_of_old(family, old, new, queries, keys), "zero"
    plain = [*range(old.head_dim), *[None] * (new.head_dim - old.head_dim)]
    turned = turned_dims(family, source, old.head_dim, new.head_dim)
    query = _head_axis(queries, old.heads, old.head_dim, turned, new_heads=new_queries)
    key = _head_axis(keys, old.kv_heads, old.head_dim, turned, new_dims="zero")
    query_scale /= gain
    return {
        "query": query.scaled(query_scale, 1 / query_scale),
        "key": key.scaled(key_scale, 1 / key_scale),
        "value": _head_axis(keys, old.kv_heads, old.head_dim, plain),
        "context": _head_axis(queries, old.heads, old.head_dim, plain).filled("fresh", "zero"),
        "head_dim": Axis.unchanged(old.head_dim),  # of query and key norms, which fix it
        "query_gain": _head_axis(queries, old.heads, old.head_dim, plain).scaled(gain, 1 / gain).filled("varied_mean"),
        "key_gain": _head_axis(keys, old.kv_heads, old.head_dim, plain),
    }


def _share_of_old(family: Family, old: Sizes, new: Sizes, queries: Sequence[Head], keys: Sequence[Head]) -> float:
    # σ of a norm over all query heads; heads that it, or that over the keys, does not allow are a ValueError.
    copies = Counter(head for head, _ in queries if head is not None)
    key_copies = Counter(head for head, _ in keys)
    name = family.size_fields["kv_heads"]
    if None in key_copies or len({*key_copies.values()}) > 1:
        raise ValueError(
            f"{old.kv_heads} → {new.kv_heads} key/value heads are not exact for {family.model_type}: its key norm"
            f" averages over all heads, which whole copies of all of them alone leave as it is; keep"
            f" {name}={old.kv_heads} and grow {family.size_fields['heads']} by multiples of it, or take"
            f" {name}={2 * old.kv_heads} and the method 'tile'"
        )
    if len({*copies.values()}) > 1:
        raise ValueError(
            f"{old.heads} → {new.heads} heads are not exact for {family.model_type}: its query norm averages over all"
            " heads, and some would count twice; take a whole multiple, or the method 'exact'"
        )
    return math.sqrt(copies.total() / new.heads)


def _head_axis(
    heads: Sequence[Head],
    old_heads: int,
    old_dim: int,
    dims: Sequence[int | None],
    *,
    new_dims: Fill = "fresh",
    new_heads: Fill = "fresh",
) -> Axis:
    segments = []
    for head, share in heads:
        for dim in dims:
            if head is None:
                segments.append(Segment(1, written_as=new_heads))
            elif dim is None:
                segments.append(Segment(1, written_as=new_dims))
            else:
                segments.append(Segment(1, source=head * old_dim + dim, read=share))
    return Axis.of(old_heads * old_dim, segments)


def _heads(method: Method, old: Sizes, new: Sizes) -> tuple[list[Head], list[Head]]:
    # Query heads, and key/value heads. A key/value head serves `before` query heads in the parent and `after` in the
    # child; if that is fewer, each of the parent's groups is divided, and its key/value head copied for every part.
    before, after = old.heads // old.kv_heads, new.heads // new.kv_heads
    parts = -(-before // after)
    if old.kv_heads * parts > new.kv_heads:
        raise ValueError(
            f"{new.heads} heads over {new.kv_heads} key/value heads cannot hold the parent's {old.kv_heads} groups of"
            f" {before}: groups of {after} need {old.kv_heads * parts} key/value heads"
        )
    queries: list[Head] = []
    keys: list[Head] = []
    for place in method.units("key/value heads", old.kv_heads * parts, new.kv_heads):
        if place.source is None:
            queries += [(None, 1.0)] * after
            keys.append((None, 1.0))
            continue
        group, part = divmod(place.source, parts)
        first = group * before + part * after
        members = min(after, before - part * after)
        within = method.units("heads per key/value head", members, after)
        served = [(None, 1.0) if u.source is None else (first + u.source, place.share * u.share) for u in within]
        queries += served
        keys.append((group, sum(share for head, share in served if head is not None) / before))
    return queries, keys
