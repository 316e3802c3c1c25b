"""What a family costs: all of it from scratch, all of it inherited, and its last member alone."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from hf_progressive.records.matching import last_model_cost
from hf_progressive.records.rung import RungRecord
from hf_progressive.records.typed import Amount, Record


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
class FamilyTotals(Record):
    """What a family of rungs costs, in FLOPs and shares; None for what is not known (yet)."""

    last_model: str
    """The last finished rung."""

    last_model_cost: Amount | None
    """All that went into its weights, itself up to its match, over its baseline's FLOPs."""

    family_cost: Amount | None
    """`inherited_to_match` / `all_cold`."""

    all_cold: Amount
    """Every rung trained from scratch on its full budget, as planned where there is no baseline."""

    inherited_as_trained: Amount
    """What was spent on the rungs, baselines apart."""

    inherited_to_match: Amount | None
    """The same with the last rung up to its match only; None unless all grown rungs matched."""

    last_alone: Amount
    """The last rung from scratch on its full budget."""

    last_grown: Amount | None
    """The last rung up to its match, and all that it inherits."""

    eta: dict[str, float | None]
    """Transfer efficiency of each grown rung."""

    eta_ceiling: dict[str, float | None]
    """The most that each could be."""


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
    def family_cost(self) -> float | None:
        """`inherited_to_match` over `all_cold`; None unless all matched and all is known."""
        return None if self.saving is None else 1 - self.saving

    @property
    def last_grown(self) -> float | None:
        """The last rung up to its match, with all that went into the weights that it began with; None if not known.

        In a chain it is `inherited_to_match`; in a trunk the others' decays, which it does not inherit, are left out.
        """
        last = self.rungs[-1]
        if last.flops_to_match is None or not last.lineage_complete or not last.flops.inherited:
            return None
        return last.flops.inherited + last.flops_to_match

    @property
    def last_as_trained(self) -> float | None:
        """All that went into the last rung's weights where it did not match; None if it did, or not all is known."""
        last = self.rungs[-1]
        if last.cold is None or last.flops_to_match is not None or not last.lineage_complete:
            return None
        return last.flops.lineage

    @property
    def last_model_cost(self) -> float | None:
        """`last_grown` over `last_alone`: below 1 it is cheaper to grow the last rung than to train it."""
        last = self.rungs[-1]
        if self.last_grown is None or last.flops_to_match is None:
            return None
        return last_model_cost(
            child_flops=last.flops_to_match, cold_flops=self.last_alone, lineage_flops=last.flops.inherited
        )

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
    def eta_ceiling(self) -> Mapping[str, float | None]:
        """What each η would be, had the rung matched without any FLOPs of its own; None where there is no η."""
        return {
            rung.name: None if rung.eta is None or not rung.flops.inherited else rung.cold_cost / rung.flops.inherited
            for rung in self.rungs
            if rung.grown
        }

    def totals(self) -> FamilyTotals:
        """Return the sums as `ladder.json` has them."""
        return FamilyTotals(
            last_model=self.names[-1],
            last_model_cost=self.last_model_cost,
            family_cost=self.family_cost,
            all_cold=self.all_cold,
            inherited_as_trained=self.inherited_as_trained,
            inherited_to_match=self.inherited_to_match,
            last_alone=self.last_alone,
            last_grown=self.last_grown,
            eta=dict(self.eta),
            eta_ceiling=dict(self.eta_ceiling),
        )

    @property
    def counts(self) -> tuple[Count, ...]:
        """All cold, all inherited as trained, the same with the last rung to its match, and the last alone, both ways.

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
                kind="inherited" if rung.grown or (rung.origin is not None and rung.cold_is_planned) else "cold",
            )
            for rung in self.rungs
        )
        last, at_least = self.rungs[-1], not all(rung.lineage_complete for rung in self.rungs)
        to_match: tuple[Part, ...] = ()
        if self.inherited_to_match is not None and last.flops_to_match is not None:
            to_match = (*trained[:-1], Part(name=last.name, flops=last.flops_to_match, kind="inherited"))
        grown: tuple[Part, ...] = ()
        if self.last_grown is not None and last.flops_to_match is not None:
            before = (rung.flops.spent - rung.flops.branch for rung in self.rungs[:-1])
            stems = tuple(replace(part, flops=flops) for part, flops in zip(trained[:-1], before, strict=True))
            grown = (*stems, Part(name=last.name, flops=last.flops_to_match, kind="inherited"))
        return (
            Count(title="every rung cold", parts=cold, at_least=self.cold_is_bound),
            Count(title="every rung inherited, as trained", parts=trained, at_least=at_least),
            Count(title="every rung inherited, the last to its match", parts=to_match, at_least=at_least),
            Count(title=f"{last.name} alone, cold", parts=cold[-1:]),
            Count(title=f"{last.name} alone, inherited, to its match", parts=grown),
        )
