"""The mathematics of exact growth: from the sizes of parent and child to the factors on every axis.

**The residual stream.** The child's D' channels hold k whole copies of the parent's D, and new channels. A norm that
subtracts the mean (LayerNorm) sees the same mean if every new channel carries the mean of the old; one that does not
(RMSNorm), if it carries zero. The centred sum of squares is then k times the parent's, over D' channels instead of D:

    variance' = ρ² · variance,   ρ² = k·D/D'.

With ε' = ρ²·ε, the normalised value of an old channel is 1/ρ of the parent's, and a gain multiplied by ρ restores it.
New channels are normalised to zero, so whatever reads them may be random. A norm without gain cannot restore
anything: there whatever writes the stream is multiplied by 1/ρ instead, ρ becomes 1 and ε stays. Where the class fixes
ε (OPT), whatever writes the stream is multiplied by 1/ρ and the gains by ρ.

A norm behind attention or MLP (Gemma 2, OLMo 2) reads what they write, zero in new channels: it is rescaled like the
others, and as the norm of 0 is 0, its new channels add nothing to the stream. A new layer of such a model is silent by
gains of 0: with output projections of 0 in their place the norm's slope would be 1/√ε, and the first step would bring
an output of full size. What its projections write to new channels is drawn: zero rows under zero gains would stay so.

With new channels of a scale of their own, s times that of the old ones, ρ² = (k·D + s²·(D' − k·D))/D' does the same in
the mean over what the channels hold: the old ones keep their size behind the norm, the new ones have s times it.

**Copies.** A unit copied k times is read with shares c₁ … c_k that add up to 1.

**Tied embeddings** are written into the stream and read by the output head with one and the same factor w, so the
last norm's gain and bias carry the head's share: c/w.

**Attention.** Scores are q·k/√d. When head_dim grows from d to d', queries are multiplied by √(d'/d); new dimensions
hold zero keys against random queries. Query head h reads key/value head h // (heads / kv_heads): the parent's groups
are kept together, their key/value heads copied where a group must be divided. `hf_progressive.growth.attention` has
what norms of queries and keys ask for, `hf_progressive.growth.positions` what rotations and slopes do.

**Vocabulary.** The logits of the parent's tokens stay. New tokens have logits of their own, from rows near the mean of
the old: a row near zero would mean a logit near zero, which in a trained model may be far above every other.
`hf_progressive.growth.low_logits` starts them lower still.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from hf_progressive.growth.attention import attention_axes
from hf_progressive.growth.axis import Axis, Fill, Segment
from hf_progressive.growth.experts import expert_axis
from hf_progressive.growth.family_table import AxisName, Family, Sizes
from hf_progressive.growth.methods import Method
from hf_progressive.growth.units import UnitOrigin


def grow_axes(
    family: Family, source: Any, target: Any, method: Method, *, new_scale: float = 0.0
) -> tuple[dict[AxisName, Axis], float]:
    """Work out every axis of the child by name, and the factor of the norms' epsilon.

    `new_scale` is the scale of what new residual channels hold, relative to the old ones.
    """
    old, new = family.sizes(source), family.sizes(target)
    if not method.inherits:
        before = family.axis_lengths(source)
        return {n: Axis.of(before[n], [Segment(size)]) for n, size in family.axis_lengths(target).items()}, 1.0
    axes, eps_factor = _stream_axes(
        family, method, old.width, new.width, tied=target.tie_word_embeddings, new_scale=new_scale
    )
    query_scale = key_scale = math.sqrt(eps_factor) if family.normed_queries else 1.0
    scaled = family.scaled_scores  # by √head_dim: always, never, or if the field it names is true
    if method.rescales and (getattr(source, scaled) if isinstance(scaled, str) else scaled):
        query_scale *= math.sqrt(new.head_dim / old.head_dim)
    axes |= attention_axes(family, method, source, target, query_scale, key_scale)
    axes["mlp"] = _unit_axis(old.mlp, method.units("MLP width", old.mlp, new.mlp)).filled("fresh", "zero")
    if family.has_experts:
        axes |= _expert_axes(family, method, target, old, new)
    axes["vocab"] = _appended(old.vocab, new.vocab).filled("near_mean", "near_mean")
    axes["positions"] = _appended(old.positions + family.position_rows, new.positions + family.position_rows)
    if not method.rescales:
        axes = {name: axis.filled("zero", "zero") for name, axis in axes.items()}
    gains: list[AxisName] = ["gain", "post_gain", "final_gain"]
    gains += [] if method.rescales else ["query_gain", "key_gain"]
    for gain in gains:
        axes[gain] = axes[gain].filled("zero" if method.zero_gains else "mean")
    return axes, eps_factor


def _expert_axes(family: Family, method: Method, target: Any, old: Sizes, new: Sizes) -> dict[AxisName, Axis]:
    of_expert = _unit_axis(old.expert_mlp, method.units("width of an expert", old.expert_mlp, new.expert_mlp))
    of_shared = _unit_axis(old.shared_mlp, method.units("the shared expert's", old.shared_mlp, new.shared_mlp))
    return {
        "experts": expert_axis(family, target, old, new, from_dense=method.upcycles),
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
    units, copies = _whole_copies(method.units("width", old, new), old)
    shared = _unit_axis(old, units)  # written as it is, each copy read by its share
    added = new - copies * old
    rho = math.sqrt((copies * old + new_scale**2 * added) / new) if method.rescales else 1.0
    if family.norm == "weightless_rms":
        carried, gain, handed, eps_factor = 1 / rho, 1.0, 1 / rho, 1.0
    elif not family.eps_field:
        carried, gain, handed, eps_factor = 1 / rho, rho, 1.0, 1.0
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
        "post_gain": shared.scaled(gain * carried, 1 / (gain * carried)),
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
