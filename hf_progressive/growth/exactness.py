"""The mathematics of exact growth: from the sizes of parent and child to the factors on every axis.

**The residual stream.** The child's D' channels hold k whole copies of the parent's D, and new channels. A norm that
subtracts the mean (LayerNorm) sees the same mean if every new channel carries the mean of the old; one that does not
(RMSNorm), if it carries zero. The centred sum of squares is then k times the parent's, over D' channels instead of D:

    variance' = ρ² · variance,   ρ² = k·D/D'.

With ε' = ρ²·ε, the normalised value of an old channel is 1/ρ of the parent's, and a gain multiplied by ρ restores it.
New channels are normalised to zero, so whatever reads them may be random. A norm without gain cannot restore
anything: there whatever writes the stream is multiplied by 1/ρ instead, ρ becomes 1 and ε stays.

With new channels of a scale of their own, s times that of the old ones, ρ² = (k·D + s²·(D' − k·D))/D' does the same in
the mean over what the channels hold: the old ones keep their size behind the norm, the new ones have s times it.

**Copies.** A unit copied k times is read with shares c₁ … c_k that add up to 1.

**Tied embeddings** are written into the stream and read by the output head with one and the same factor w, so the
last norm's gain and bias carry the head's share: c/w.

**Attention.** Scores are q·k/√d. When head_dim grows from d to d', queries are multiplied by √(d'/d); new dimensions
hold zero keys against random queries. Under RoPE pair i turns at θ^(−2i/d), which is pair m·i's rate in a head of
m·d dimensions: an integer multiple is exact, anything else is not. Query and key norms with the same ε as the stream's
see ε' = ρ²·ε, so queries and keys are multiplied by ρ. Query head h reads key/value head h // (heads / kv_heads): the
parent's groups are kept together, their key/value heads copied where a group must be divided.

**Vocabulary.** The logits of the parent's tokens stay. New tokens have logits of their own, from rows near the mean of
the old: a row near zero would mean a logit near zero, which in a trained model may be far above every other.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from hf_progressive.growth.axis import Axis, Fill, Segment
from hf_progressive.growth.experts import expert_axis
from hf_progressive.growth.family_table import AxisName, Family, Sizes, axis_lengths
from hf_progressive.growth.methods import Method
from hf_progressive.growth.units import UnitOrigin

_STEADY_ROTATIONS = ("default", "linear", "llama3")  # rates depend on i/head_dim alone

Head = tuple[int | None, float]
"""A head's source (None if new) and the share that readers take from it."""


def grow_axes(
    family: Family, source: Any, target: Any, method: Method, *, new_scale: float = 0.0
) -> tuple[dict[AxisName, Axis], float]:
    """Work out every axis of the child by name, and the factor of the norms' epsilon.

    `new_scale` is the scale of what new residual channels hold, relative to the old ones.
    """
    old, new = family.sizes(source), family.sizes(target)
    if not method.inherits:
        lengths = axis_lengths(old)
        return {name: Axis.of(lengths[name], [Segment(size)]) for name, size in axis_lengths(new).items()}, 1.0
    if family.rotary:
        _check_rotation(family, source, old, new)
    axes, eps_factor = _stream_axes(
        family, method, old.width, new.width, tied=target.tie_word_embeddings, new_scale=new_scale
    )
    query_scale = key_scale = math.sqrt(eps_factor) if family.normed_queries else 1.0
    scaled = family.scaled_scores  # by √head_dim: always, never, or if the field it names is true
    if method.rescales and (getattr(source, scaled) if isinstance(scaled, str) else scaled):
        query_scale *= math.sqrt(new.head_dim / old.head_dim)
    axes |= _attention_axes(family, method, old, new, query_scale, key_scale)
    axes["mlp"] = _unit_axis(old.mlp, _width(method, "MLP width", old.mlp, new.mlp)).filled("fresh", "zero")
    if family.has_experts:
        axes |= _expert_axes(family, method, target, old, new)
    axes["vocab"] = _appended(old.vocab, new.vocab).filled("near_mean", "near_mean")
    axes["positions"] = _appended(old.positions, new.positions)
    if not method.rescales:
        axes = {name: axis.filled("zero", "zero") for name, axis in axes.items()}
    for name in ("gain", "final_gain"):
        axes[name] = axes[name].filled("zero" if method.zero_gains else "mean")
    return axes, eps_factor


def _expert_axes(family: Family, method: Method, target: Any, old: Sizes, new: Sizes) -> dict[AxisName, Axis]:
    of_expert = _unit_axis(old.expert_mlp, _width(method, "width of an expert", old.expert_mlp, new.expert_mlp))
    of_shared = _unit_axis(old.shared_mlp, _width(method, "the shared expert's", old.shared_mlp, new.shared_mlp))
    return {
        "experts": expert_axis(family, target, old, new),
        "expert_mlp": of_expert.filled("fresh", "zero"),
        "shared_mlp": of_shared.filled("fresh", "zero"),
        "one": Axis.unchanged(1),
    }


def _appended(old: int, new: int) -> Axis:
    return Axis.of(old, [Segment(old, source=0), Segment(new - old)])


def _stream_axes(
    family: Family, method: Method, old: int, new: int, *, tied: bool, new_scale: float
) -> tuple[dict[AxisName, Axis], float]:
    if tied and family.norm == "weightless_rms" and old != new:
        raise ValueError(
            f"width {old} → {new} is not exact for {family.model_type} with tied embeddings: no gain can absorb the"
            " head's share; set tie_word_embeddings=False in the target"
        )
    units, copies = _whole_copies(_width(method, "width", old, new), old)
    shared = _unit_axis(old, units)  # written as it is, each copy read by its share
    added = new - copies * old
    rho = math.sqrt((copies * old + new_scale**2 * added) / new) if method.rescales else 1.0
    if family.norm == "weightless_rms":
        carried, gain, handed, eps_factor = 1 / rho, 1.0, 1 / rho, 1.0
    else:
        carried, gain, handed, eps_factor = 1.0, rho, 1.0, rho**2
    embedded = carried
    if family.scaled_embedding and method.rescales:
        embedded *= _embedding_scale(old) / _embedding_scale(new)
    silent: Fill = "mean" if family.norm == "layer" else "zero"
    axes: dict[AxisName, Axis] = {
        "embedding": shared.scaled(embedded, 1 / embedded).filled(silent),
        "residual": shared.scaled(carried, 1 / carried).filled(silent),
        "gain": shared.scaled(gain, 1 / gain),
        "shift": shared.filled("zero"),
        "normed": shared.scaled(handed, 1 / handed),
        "final_gain": shared.scaled(gain, 1 / gain),
        "final_shift": shared.filled("zero"),
        "final": shared.scaled(handed, 1 / handed),
    }
    if tied:
        # The head reads with the embedding's weights: the last norm hands it its share, over their factor.
        for name in ("final_gain", "final_shift"):
            segments = [_handed_by_share(segment, embedded) for segment in axes[name].segments]
            axes[name] = Axis.of(old, segments)
    return axes, eps_factor


def _handed_by_share(segment: Segment, factor: float) -> Segment:
    share = segment.write * segment.read
    return replace(segment, write=segment.write * share / factor, read=segment.read * factor / share)


def _embedding_scale(width: int) -> float:
    # As the stock class holds it: rounded to float32.
    return torch.tensor(width**0.5, dtype=torch.float32).item()


def _width(method: Method, what: str, old: int, new: int) -> Sequence[UnitOrigin]:
    if old == new:
        return [UnitOrigin(unit) for unit in range(old)]
    try:
        units = method.width(old, new)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None
    shares = [0.0] * old
    for unit in units:
        if unit.source is not None:
            shares[unit.source] += unit.share
    if len(units) != new or not all(math.isclose(share, 1.0, rel_tol=1e-9) for share in shares):
        raise ValueError(
            f"{what}: the method {method.name!r} gives {len(units)} units of {new}, and shares of the {old} old ones"
            f" that add up to {min(shares):g} … {max(shares):g}; they must add up to 1"
        )
    return units


def _whole_copies(units: Sequence[UnitOrigin], old: int) -> tuple[list[UnitOrigin], int]:
    # Keep as many copies of every unit as the rarest one has, and make the rest new.
    counts = Counter(unit.source for unit in units if unit.source is not None)
    copies = min(counts[unit] for unit in range(old))
    seen: Counter[int] = Counter()
    totals: dict[int, float] = defaultdict(float)
    kept = []
    for unit in units:
        if unit.source is not None and seen[unit.source] < copies:
            seen[unit.source] += 1
            totals[unit.source] += unit.share
            kept.append(unit)
        else:
            kept.append(UnitOrigin(None))
    return [u if u.source is None else replace(u, share=u.share / totals[u.source]) for u in kept], copies


def _unit_axis(old: int, units: Sequence[UnitOrigin]) -> Axis:
    return Axis.of(old, [Segment(1, source=u.source, read=u.share if u.source is not None else 1.0) for u in units])


def _attention_axes(
    family: Family, method: Method, old: Sizes, new: Sizes, query_scale: float, key_scale: float
) -> dict[AxisName, Axis]:
    queries, keys = _heads(method, old, new)
    plain = [*range(old.head_dim), *[None] * (new.head_dim - old.head_dim)]
    turned = _turned_dims(old.head_dim, new.head_dim) if family.rotary else plain
    query = _head_axis(queries, old.heads, old.head_dim, turned)
    key = _head_axis(keys, old.kv_heads, old.head_dim, turned, new_dims="zero")
    return {
        "query": query.scaled(query_scale, 1 / query_scale),
        "key": key.scaled(key_scale, 1 / key_scale),
        "value": _head_axis(keys, old.kv_heads, old.head_dim, plain),
        "context": _head_axis(queries, old.heads, old.head_dim, plain).filled("fresh", "zero"),
        "head_dim": Axis.unchanged(old.head_dim),  # of query and key norms, which fix it
    }


def _head_axis(
    heads: Sequence[Head], old_heads: int, old_dim: int, dims: Sequence[int | None], *, new_dims: Fill = "fresh"
) -> Axis:
    segments = []
    for head, share in heads:
        for dim in dims:
            if head is None:
                segments.append(Segment(1))
            elif dim is None:
                segments.append(Segment(1, written_as=new_dims))
            else:
                segments.append(Segment(1, source=head * old_dim + dim, read=share))
    return Axis.of(old_heads * old_dim, segments)


def _turned_dims(old: int, new: int) -> list[int | None]:
    # One head's query and key dimensions under RoPE: the parent's for each of the child's, None if it is new.
    step, half = new // old, old // 2
    dims: list[int | None] = [None] * new
    dims[0 : new // 2 : step] = range(half)
    dims[new // 2 : new : step] = range(half, old)
    return dims


def _check_rotation(family: Family, source: Any, old: Sizes, new: Sizes) -> None:
    rope = source.rope_parameters
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
        raise ValueError(
            f"head_dim {old.head_dim} → {new.head_dim} is not exact for {family.model_type}: its query and key norms"
            f" average over head_dim; keep head_dim={old.head_dim} and grow the number of heads"
        )
    if new.head_dim % old.head_dim:
        raise ValueError(
            f"head_dim {old.head_dim} → {new.head_dim} is not exact under RoPE: the rotation rates θ^(−2i/head_dim) of"
            f" the parent are among the child's for whole multiples only; take"
            f" {-(-new.head_dim // old.head_dim) * old.head_dim}, or keep {old.head_dim} and grow the number of heads"
        )


def _turns_by_original_length(rope: Mapping[str, Any]) -> bool:
    # These two depend on the original length, which they state, and on the present one where they leave a factor out.
    stated = [name for name in ("factor", "attention_factor") if rope.get(name) is not None]
    return "factor" in stated if rope["rope_type"] == "yarn" else rope["rope_type"] == "longrope" and bool(stated)


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
    for place in _width(method, "key/value heads", old.kv_heads * parts, new.kv_heads):
        if place.source is None:
            queries += [(None, 1.0)] * after
            keys.append((None, 1.0))
            continue
        group, part = divmod(place.source, parts)
        first = group * before + part * after
        members = min(after, before - part * after)
        within = _width(method, "heads per key/value head", members, after)
        served = [(None, 1.0) if u.source is None else (first + u.source, place.share * u.share) for u in within]
        queries += served
        keys.append((group, sum(share for head, share in served if head is not None) / before))
    return queries, keys
