"""What a family costs: all of it cold, all of it inherited, and its last member alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from hf_progressive.records.rung import RungRecord


@dataclass(frozen=True, kw_only=True)
class Part:
    """One rung's share of a sum over the family."""

    name: str
    """The rung."""

    flops: float
    """What it adds."""

    kind: Literal["cold", "planned", "inherited"]
    """Whether it was trained from scratch, would have been, or was grown."""


@dataclass(frozen=True, kw_only=True)
class Count:
    """One way to count what a family costs."""

    title: str
    """What is counted."""

    parts: tuple[Part, ...]
    """What each rung adds; nothing where the sum is not known."""

    at_least: bool = False
    """Whether a part is not known, so that the sum is a lower bound."""

    @property
    def flops(self) -> float | None:
        """The sum; None where it is not known."""
        return sum(part.flops for part in self.parts) if self.parts else None

    @property
    def planned(self) -> bool:
        """Whether a part of the sum is a plan."""
        return any(part.kind == "planned" for part in self.parts)


def count_four_ways(rungs: Sequence[RungRecord]) -> tuple[Count, Count, Count, Count]:
    """Count what a family costs in the four ways that must not be mistaken for one another.

    Args:
        rungs: Its finished rungs, from the smallest; at least one.

    Returns:
        Every rung cold; every rung inherited, as trained; the same with the last rung to its match; the last alone,
        cold. A sum without what is not known of a first rung that was trained elsewhere is a lower bound.
    """
    cold = tuple(
        Part(name=rung.name, flops=rung.cold_cost, kind="planned" if rung.cold_is_planned else "cold")
        for rung in rungs
    )
    trained = tuple(
        Part(
            name=rung.name,
            flops=rung.flops.spent,
            kind="inherited" if rung.grown or rung.cold_is_planned else "cold",
        )
        for rung in rungs
    )
    unknown_cold, unknown_spent = not rungs[0].cold_is_known, not all(rung.lineage_complete for rung in rungs)
    # Parents count as they were trained: the last rung's match rests on all of it.
    last, matched = rungs[-1], all(rung.flops_to_match is not None for rung in rungs if rung.grown)
    to_match: tuple[Part, ...] = ()
    if last.flops_to_match is not None and matched:
        to_match = (*trained[:-1], Part(name=last.name, flops=last.flops_to_match, kind="inherited"))
    return (
        Count(title="every rung cold", parts=cold, at_least=unknown_cold),
        Count(title="every rung inherited, as trained", parts=trained, at_least=unknown_spent),
        Count(title="every rung inherited, the last to its match", parts=to_match, at_least=unknown_spent),
        Count(title=f"{rungs[-1].name} alone, cold", parts=cold[-1:]),
    )


@dataclass(frozen=True, kw_only=True)
class FamilyTotals:
    """FLOPs of a family of rungs, counted four ways that must not be mistaken for one another."""

    names: tuple[str, ...]
    """The rungs that are counted."""

    all_cold: float
    """Every rung trained from scratch on its full budget."""

    inherited_as_trained: float
    """What was spent: the first rung cold, the others as they were trained, Fisher and subspace included."""

    inherited_to_match: float | None
    """As trained, but the last rung only to where it matched its baseline; None unless every grown rung did."""

    last_alone: float
    """The last rung alone, trained from scratch on its full budget."""

    unknown: tuple[str, ...]
    """Rungs taken from elsewhere of which it is not known what went into them; it is missing in the sums."""

    cold_is_bound: bool
    """Whether `all_cold` lacks a rung of which the budget is not known."""

    planned_cold: tuple[str, ...]
    """Rungs without a baseline, whose share in `all_cold` (and `last_alone`) is a plan."""

    unmatched: tuple[str, ...]
    """Rungs that did not match their baselines."""

    eta: Mapping[str, float | None]
    """Transfer efficiency of each grown rung; None where it did not match, or has no baseline."""

    @property
    def last_is_planned(self) -> bool:
        """Whether `last_alone` is a plan."""
        return self.names[-1] in self.planned_cold

    @property
    def saving(self) -> float | None:
        """Share of `all_cold` that the family did not need to match it.

        None unless every grown rung matched and all that was spent is known.
        """
        if self.inherited_to_match is None or self.unknown:
            return None
        return 1 - self.inherited_to_match / self.all_cold


def family_totals(rungs: Sequence[RungRecord]) -> FamilyTotals:
    """Add up what a family costs.

    Args:
        rungs: Its finished rungs, from the smallest.

    Returns:
        The totals, over these rungs alone.

    Raises:
        ValueError: There is no rung.
    """
    if not rungs:
        raise ValueError("rungs: there are none to add up; finish one")
    all_cold, as_trained, to_match, last_alone = (count.flops for count in count_four_ways(rungs))
    assert all_cold is not None
    assert as_trained is not None
    assert last_alone is not None
    grown = [rung for rung in rungs if rung.grown]
    return FamilyTotals(
        names=tuple(rung.name for rung in rungs),
        all_cold=all_cold,
        inherited_as_trained=as_trained,
        inherited_to_match=to_match,
        last_alone=last_alone,
        unknown=tuple(rung.name for rung in rungs if rung.origin is not None and not rung.lineage_complete),
        cold_is_bound=not rungs[0].cold_is_known,
        planned_cold=tuple(rung.name for rung in rungs if rung.cold_is_planned),
        unmatched=tuple(rung.name for rung in grown if rung.cold is not None and rung.flops_to_match is None),
        eta={rung.name: rung.eta for rung in grown},
    )
