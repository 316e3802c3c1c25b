"""Several penalties as one: λ terms merged exactly, γ terms side by side."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from hf_progressive.config.ranges import class_of
from hf_progressive.penalty.fisher_mean import FisherMean
from hf_progressive.penalty.lazy_tensors import LazyTensors
from hf_progressive.penalty.specification import InheritancePenalty


def summed_penalty(penalties: Sequence[InheritancePenalty]) -> InheritancePenalty:
    """Return the sum; see `InheritancePenalty.sum`."""
    _require_alike(penalties)
    first = penalties[0]
    parts = [part for part in map(_WeightedFisher.of, penalties) if part is not None]
    mean = FisherMean()
    constant = sum(penalty.constant for penalty in penalties)
    constants: dict[str, float] = {}
    for penalty in penalties:
        for name, own in penalty.constants.items():
            constants[name] = constants.get(name, 0.0) + own
    for name in first.anchor:
        merged = _merged(parts, name)
        if merged is not None:
            mean.add(merged.fisher)
            constant += merged.constant
            constants[name] = constants.get(name, 0.0) + merged.constant
    restrained = dict.fromkeys(name for part in parts for name in part.penalty.tensors["fisher"])

    def anchor(name: str) -> Tensor:
        merged, own = _merged(parts, name), first.anchor[name]
        return own if merged is None else merged.anchor.to(own.dtype)

    def fisher(name: str) -> Tensor:
        merged = _merged(parts, name)
        assert merged is not None
        return merged.fisher.float() if first.anchor[name].dtype != torch.float64 else merged.fisher

    # The proximal step divides Ω̄ by its mean again, which λ undoes.
    weight = mean.value() if first.apply == "proximal" else float(bool(parts))
    return InheritancePenalty(
        LazyTensors(first.anchor, anchor),
        LazyTensors(restrained, fisher) if parts else None,
        ewc_lambda=weight,
        apply=first.apply,
        storage_dtype=first.storage_dtype,
        storage_device=first.storage_device,
        further=tuple(each for penalty in penalties for each in _subspace_terms(penalty)),
        constant=constant,
        constants=constants,
    )


@dataclasses.dataclass(frozen=True)
class _WeightedFisher:
    """A penalty with a λ term, and what its Ω is multiplied by: λ, or λ over its mean."""

    penalty: InheritancePenalty
    weight: float

    @classmethod
    def of(cls, penalty: InheritancePenalty) -> "_WeightedFisher | None":
        """Return it, or None where λ or Ω is 0."""
        weight = penalty.ewc_lambda
        if weight > 0.0 and penalty.apply == "proximal":
            mean = FisherMean()
            mean.add_all(penalty.tensors["fisher"], but=())
            weight = weight / mean.value() if mean.value() else 0.0
        return cls(penalty, weight) if weight > 0.0 else None


@dataclasses.dataclass(frozen=True)
class _Merged:
    """Ω̄, W̄ and the constant of one tensor, in float64."""

    fisher: Tensor
    anchor: Tensor
    constant: float


def _merged(parts: Sequence[_WeightedFisher], name: str) -> _Merged | None:
    # None where no penalty has an Ω for the name. W̄ moves from anchor to anchor, each weighing as much as those before
    # it: differences of anchors are formed, never of their squares. Where Ω̄ is 0, W̄ is the first of them.
    fisher = anchor = None
    constant = 0.0
    for part in parts:
        omega = part.penalty.tensors["fisher"].get(name)
        if omega is None:
            continue
        omega = omega.detach().double() * part.weight
        own = part.penalty.anchor[name].detach().double()
        if fisher is None or anchor is None:
            fisher, anchor = omega, own
            continue
        total = fisher + omega
        share = torch.where(total > 0.0, omega / total, 0.0)
        apart = own - anchor
        constant += 0.5 * float((fisher * share * apart.square()).sum())  # ½ ab/(a + b) · (distance)²
        fisher, anchor = total, anchor + share * apart
    if fisher is None or anchor is None:
        return None
    return _Merged(fisher, anchor, constant)


def _subspace_terms(penalty: InheritancePenalty) -> list[InheritancePenalty]:
    own = dataclasses.replace(penalty, fisher=None, ewc_lambda=0.0, further=(), constant=0.0, constants={})
    if own.gamma > 0.0:
        own = dataclasses.replace(own, anchor=LazyTensors(own.tensors["subspace"], own.anchor.__getitem__))
    return [*([own] if own.gamma > 0.0 else []), *penalty.further]


def _require_alike(penalties: Sequence[InheritancePenalty]) -> None:
    if not penalties:
        raise ValueError("there is no penalty to sum")
    for number, each in enumerate(penalties, start=1):
        if not isinstance(each, InheritancePenalty):
            raise ValueError(f"penalty {number} is {class_of(each)}; only InheritancePenalty can be summed")
    first = penalties[0]
    for number, other in enumerate(penalties[1:], start=2):
        for name in ("apply", "storage_dtype", "storage_device"):
            if getattr(first, name) != getattr(other, name):
                raise ValueError(
                    f"penalty 1 has {name}={getattr(first, name)!r}, penalty {number} {getattr(other, name)!r}; "
                    "only like penalties can be summed"
                )
        different = sorted(set(first.anchor) ^ set(other.anchor))
        if different:
            raise ValueError(
                f"penalties 1 and {number} do not name the same parameters: only one has {different[0]}; "
                "anchor both at all of them, by the same names"
            )
        for name in first.anchor:
            ours, theirs = (tuple(each.anchor[name].shape) for each in (first, other))
            if ours != theirs:
                raise ValueError(f"anchor[{name!r}] has shape {ours} in penalty 1, {theirs} in penalty {number}")
