"""What a family costs: all of it from scratch, all of it inherited, and its last member alone."""

from collections.abc import Mapping
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


@dataclass(frozen=True, kw_only=True)
class FamilyCost:
    """FLOPs of a family of rungs, counted in ways that must not be mistaken for one another."""

    rungs: tuple[RungRecord, ...]
    """Its finished rungs, from the smallest; at least one."""

    def __post_init__(self) -> None:
        if not self.rungs:
            raise ValueError("rungs: there are none to add up; finish one")

    @property
    def all_cold(self) -> float:
        """Every rung trained from scratch on its full budget."""
        return sum(rung.cold_cost for rung in self.rungs)

    @property
    def inherited_as_trained(self) -> float:
        """What was spent: the first rung from scratch, the others as trained, Fisher and subspace included."""
        return sum(rung.flops.spent for rung in self.rungs)

    @property
    def inherited_to_match(self) -> float | None:
        """As trained, which the last rung's match rests on, but that one only to it; None unless all grown matched."""
        *before, last = self.rungs
        if last.flops_to_match is None or any(rung.flops_to_match is None for rung in before if rung.grown):
            return None
        return sum(rung.flops.spent for rung in before) + last.flops_to_match

    @property
    def last_alone(self) -> float:
        """The last rung alone, trained from scratch on its full budget."""
        return self.rungs[-1].cold_cost

    @property
    def saving(self) -> float | None:
        """Share of `all_cold` that the family did not need to match it; None unless all matched and all is known."""
        if self.inherited_to_match is None or self.unknown:
            return None
        return 1 - self.inherited_to_match / self.all_cold

    @property
    def names(self) -> tuple[str, ...]:
        """The rungs that are counted."""
        return tuple(rung.name for rung in self.rungs)

    @property
    def unknown(self) -> tuple[str, ...]:
        """Rungs from elsewhere of which it is not known what went into them; it is missing in the sums."""
        return tuple(rung.name for rung in self.rungs if rung.origin is not None and not rung.lineage_complete)

    @property
    def cold_is_bound(self) -> bool:
        """Whether `all_cold` lacks a rung of which the budget is not known."""
        return not self.rungs[0].cold_is_known

    @property
    def planned_cold(self) -> tuple[str, ...]:
        """Rungs without a baseline, whose share in `all_cold` (and `last_alone`) is a plan."""
        return tuple(rung.name for rung in self.rungs if rung.cold_is_planned)

    @property
    def eta(self) -> Mapping[str, float | None]:
        """Transfer efficiency of each grown rung; None where it did not match, or has no baseline."""
        return {rung.name: rung.eta for rung in self.rungs if rung.grown}

    @property
    def counts(self) -> tuple[Count, Count, Count, Count]:
        """All cold, all inherited as trained, the same with the last rung to its match, and the last alone, cold.

        A sum without what is not known of a first rung that was trained elsewhere is a lower bound.
        """
        cold = tuple(
            Part(name=rung.name, flops=rung.cold_cost, kind="planned" if rung.cold_is_planned else "cold")
            for rung in self.rungs
        )
        trained = tuple(
            Part(
                name=rung.name,
                flops=rung.flops.spent,
                kind="inherited" if rung.grown or rung.cold_is_planned else "cold",
            )
            for rung in self.rungs
        )
        last, at_least = self.rungs[-1], not all(rung.lineage_complete for rung in self.rungs)
        to_match: tuple[Part, ...] = ()
        if self.inherited_to_match is not None and last.flops_to_match is not None:
            to_match = (*trained[:-1], Part(name=last.name, flops=last.flops_to_match, kind="inherited"))
        return (
            Count(title="every rung cold", parts=cold, at_least=self.cold_is_bound),
            Count(title="every rung inherited, as trained", parts=trained, at_least=at_least),
            Count(title="every rung inherited, the last to its match", parts=to_match, at_least=at_least),
            Count(title=f"{last.name} alone, cold", parts=cold[-1:]),
        )
