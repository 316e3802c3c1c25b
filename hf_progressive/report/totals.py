"""What a family costs: all of it cold, all of it inherited, and its last member alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hf_progressive.report.records import Rung


@dataclass(frozen=True, kw_only=True)
class FamilyTotals:
    """FLOPs of a family of rungs, counted four ways that must not be mistaken for one another."""

    names: tuple[str, ...]
    """The rungs that are counted."""

    all_cold: float
    """Every rung trained from nothing on its full budget."""

    inherited_as_trained: float
    """What was spent: the first rung cold, the others as they were trained, Fisher and subspace included."""

    inherited_to_match: float | None
    """The first rung cold, the others to where they matched their cold twins; None unless every grown rung did."""

    last_alone: float
    """The last rung alone, trained from nothing on its full budget."""

    planned_cold: tuple[str, ...]
    """Rungs without a cold twin, whose share in `all_cold` (and `last_alone`) is a plan."""

    unmatched: tuple[str, ...]
    """Rungs that did not match their cold twins."""

    eta: Mapping[str, float | None]
    """Transfer efficiency of each grown rung; None where it did not match, or has no cold twin."""

    @property
    def last_is_planned(self) -> bool:
        """Whether `last_alone` is a plan."""
        return self.names[-1] in self.planned_cold

    @property
    def saving(self) -> float | None:
        """Share of `all_cold` that the family did not need to match it; None unless every grown rung matched."""
        return None if self.inherited_to_match is None else 1 - self.inherited_to_match / self.all_cold


def family_totals(rungs: Sequence[Rung]) -> FamilyTotals:
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
    grown = [rung for rung in rungs if rung.grown]
    matched = [rung.flops_to_match for rung in grown if rung.flops_to_match is not None]
    trained_cold = sum(rung.flops for rung in rungs if not rung.grown)
    return FamilyTotals(
        names=tuple(rung.name for rung in rungs),
        all_cold=sum(rung.cold_flops for rung in rungs),
        inherited_as_trained=sum(rung.flops for rung in rungs),
        inherited_to_match=trained_cold + sum(matched) if len(matched) == len(grown) else None,
        last_alone=rungs[-1].cold_flops,
        planned_cold=tuple(rung.name for rung in rungs if rung.cold_is_planned),
        unmatched=tuple(rung.name for rung in grown if rung.cold is not None and rung.flops_to_match is None),
        eta={rung.name: rung.eta for rung in grown},
    )
