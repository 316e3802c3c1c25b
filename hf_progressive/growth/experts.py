"""Mixtures of experts: how many experts a child may have, what tells copies apart, and how their tensors divide.

A layer's mixture sends every token to the K experts of E that its router weighs highest, and adds up what they make by
those weights: y = Σ_e w_e · f_e(x), w the K largest entries of softmax(R·x), divided by their sum in families that
renormalise. The router R and the experts read the normed input, so new channels of the stream, which are normalised to
zero, reach neither.

**More experts.** m copies of every expert *and* of its row in the router have equal logits; the m·K largest of the m·E
are all copies of the parent's K, each with 1/m of the weight, renormalised or not: the sum is the parent's. K must
grow with E. Any other number changes the function: softmax gives a token to as many copies as there are, and these
routers have no bias that could hide a new expert. Gradients divide among the copies, 1/m each.

**A dense MLP** is one expert without a router, whose rows are drawn. Under renormalisation the weights of any K of its
E copies add up to 1, whatever the router says. Without, they do only for K = E.
"""

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_progressive.growth.axis import Axis, Segment
from hf_progressive.growth.family_table import Family, Sizes, WeightRule

NOISE_AMONG_COPIES = 0.1
"""Noise on the output matrices of copied experts, as a share of their RMS, where no option names another: copies that
are chosen together and are alike would stay alike."""


def expert_axis(family: Family, target: Any, old: Sizes, new: Sizes, *, from_dense: bool) -> Axis:
    """Return the axis of the experts; a number of them, or of those chosen, that is not exact is a ValueError."""
    experts, chosen = (family.size_fields[name] for name in ("experts", "chosen"))
    if new.chosen > new.experts:
        raise ValueError(f"{chosen}={new.chosen} of {new.experts} experts; a token is sent to as many at most")
    copies, rest = divmod(new.experts, old.experts) if old.experts else (0, 0)
    if copies == 0:
        return Axis.of(old.experts, [Segment(new.experts)])
    told = f"{experts} {old.experts} → {new.experts} with {chosen} {old.chosen} → {new.chosen} is not exact"
    if from_dense and old.experts == 1 and not chooses_by_share(family, target):
        if new.chosen != new.experts:
            raise ValueError(
                f"{told}: without renormalisation the weights of {new.chosen} of {new.experts} equal experts do not"
                f" add up to 1; {_remedy(family, new.experts)}"
            )
    elif rest:
        raise ValueError(
            f"{told}: experts grow by whole copies of all of them, since softmax gives more to those with more copies"
            f" and the router has no bias that could hide a new one; take {experts}={old.experts * (copies + 1)}"
        )
    elif not from_dense and new.chosen != copies * old.chosen:
        raise ValueError(
            f"{told}: the copies of an expert share its weight, so all of them must be chosen; take"
            f" {chosen}={copies * old.chosen}"
        )
    return Axis.of(old.experts, [Segment(old.experts, source=0, read=1 / copies)] * copies)


def chooses_by_share(family: Family, config: Any) -> bool:
    """Tell whether the weights of the chosen experts are divided by their sum."""
    normed = family.normed_choice
    return bool(getattr(config, normed)) if isinstance(normed, str) else normed


def _remedy(family: Family, experts: int) -> str:
    normed = f"set {family.normed_choice}=true, or " if isinstance(family.normed_choice, str) else ""
    return f"{normed}{family.size_fields['chosen']}={experts}"


@dataclass(frozen=True)
class Dropped:
    """The hidden units of a layer's experts that are drawn anew (Drop-Upcycling, arXiv 2502.19261, section 3).

    Of every expert another set of units, the same in its gate, up and down matrices. The draw depends on the layer,
    the expert and the number of units alone: a plan made again from its record is the same plan.

    Attributes:
        share: Their share of the units.
        layer: The layer.
        units: The parent's hidden units.
        dim: The dimension along which a tensor of all experts has them.
        offsets: Where each of its parts begins along that dimension.

    >>> Dropped(0.5, layer=0, units=4, dim=1, offsets=(0, 4)).of_expert(0)
    [1, 3, 5, 7]
    """

    share: float
    layer: int
    units: int
    dim: int
    offsets: tuple[int, ...] = (0,)

    def of_expert(self, expert: int) -> list[int]:
        """List an expert's units along the dimension, part after part."""
        numbers = random.Random(f"{self.layer} {expert} {self.units}")
        drawn = sorted(numbers.sample(range(self.units), round(self.share * self.units)))
        return [offset + unit for offset in self.offsets for unit in drawn]

    def mark(self, mask: Tensor, first: int, value: bool) -> None:
        """Set the entries of the units in a mask of consecutive experts, the `first` of them and so on."""
        for index, rows in enumerate(mask):
            rows.index_fill_(self.dim - 1, torch.tensor(self.of_expert(first + index), dtype=torch.long), value)


def dropped_units(rule: WeightRule, layer: int, share: float, units: int, child_units: int) -> Dropped:
    """Describe the units that are drawn anew in a tensor of all experts.

    Args:
        rule: The tensor's line in the family's table.
        layer: The child's layer.
        share: The share of the units.
        units: The parent's hidden units.
        child_units: Those of each of the child's experts.
    """
    if rule.leaves_expert:
        return Dropped(share, layer, units, dim=2)
    offsets = tuple(part * child_units for part in range(len(rule.published)))
    return Dropped(share, layer, units, dim=1, offsets=offsets)


@dataclass(frozen=True)
class Alteration:
    """What tells one matrix of an expert from that which it is copied from, in the parent's coordinates.

    Attributes:
        expert: The child's expert.
        noise: Standard deviation of noise, as a share of the matrix's RMS.
        balanced: Which of how many copies it is, if the noise adds up to zero over them.
        dropped: The units drawn anew, along a dimension of the one matrix.
        seeded_by: Name that seeds the noise of all copies, if it adds up to zero.
    """

    expert: int
    noise: float = 0.0
    balanced: tuple[int, int] | None = None
    dropped: Dropped | None = None
    seeded_by: str = ""

    def apply(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        """Return the altered matrix, of the dtype of `weight`, which is left as it is."""
        altered = weight.clone()
        if self.dropped is not None:
            units = torch.tensor(self.dropped.of_expert(self.expert), dtype=torch.long)
            old = weight.index_select(self.dropped.dim, units)
            if old.numel() > 1:
                drawn = torch.empty_like(old).normal_(old.mean().item(), old.std().item(), generator=generator)
                altered.index_copy_(self.dropped.dim, units, drawn)
        if self.noise:
            index, count = self.balanced or (0, 1)
            deviation = self.noise * weight.square().mean().sqrt().item()
            total = torch.zeros_like(weight)
            for copy in range(count):
                drawn = torch.empty_like(weight).normal_(0.0, deviation, generator=generator)
                total += drawn
                if copy == index:
                    altered += drawn
            if self.balanced is not None:
                altered -= total / count
        return altered
