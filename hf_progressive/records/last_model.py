"""What the last model of a family costs, everything that it inherits included, over what it costs from scratch.

(C_lineage + C_child) / C_scratch, at equal bits per byte. C_lineage is all that went into the child's initial weights,
ancestors and estimates included; of a trunk it is the trunk up to the growth, without the decays of its members.
Equal bits per byte is read in one of two ways: where baselines were finished at several budgets, on their own curve at
what the child ended with; where there is one, on the child's curve at what that one ended with.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hf_progressive.records.equivalent import equivalent_budget
from hf_progressive.records.interval import mean_interval
from hf_progressive.records.matching import Measured, last_model_cost, transfer_efficiency
from hf_progressive.records.typed import Amount, Count, Record


@dataclass(frozen=True, kw_only=True)
class SeedCost(Record):
    """One seed's last-model cost, and the FLOPs that it is made of."""

    seed: int
    """The seed."""

    value: Amount
    """(c_lineage + c_child) / c_scratch."""

    c_lineage: Amount
    """FLOPs of all that went into the child's initial weights."""

    c_child: Amount
    """FLOPs of the child's own training and estimates, up to where it is compared."""

    c_scratch: Amount
    """FLOPs of the budget from scratch that has the same bits per byte."""

    bits_per_byte: Amount
    """At which the two are compared."""

    at_most: bool = False
    """Whether `value` is an upper bound: the child was as good at its smallest budget already."""

    extrapolated: bool = False
    """Whether `c_scratch` lies outside the budgets at which baselines were finished."""

    @property
    def eta(self) -> float:
        """Transfer efficiency at these bits per byte: (c_scratch − c_child) / c_lineage."""
        return transfer_efficiency(child_flops=self.c_child, cold_flops=self.c_scratch, lineage_flops=self.c_lineage)

    @property
    def eta_ceiling(self) -> float:
        """What η would be, had the child cost nothing of its own: c_scratch / c_lineage."""
        return self.c_scratch / self.c_lineage


@dataclass(frozen=True, kw_only=True)
class LastModelCost(Record):
    """The last-model cost over the seeds: its mean, and a 95 % interval by Student's t."""

    value: Amount
    """The mean."""

    low: float | None
    """Lower end of its interval; None of one seed, and where a seed's cost is an upper bound."""

    high: float | None
    """Upper end; None of one seed."""

    seeds: Count
    """Seeds that are complete."""

    at_most: bool = False
    """Whether `value` is an upper bound, because a seed's is."""

    extrapolated: Count = 0
    """Seeds whose equivalent budget lies outside the finished baselines."""

    by_seed: tuple[SeedCost, ...] = ()
    """The seeds."""


def cost_on_baselines(
    *, seed: int, lineage_flops: float, child: Measured, baselines: Sequence[Measured]
) -> SeedCost | None:
    """Compare a finished child with the budget from scratch that is worth it on the baselines' own curve.

    The baselines are finished at two budgets or more. None where their curve, beyond its end, does not fall.
    """
    found = equivalent_budget(baselines, child.bits_per_byte)
    if found is None:
        return None
    return SeedCost(
        seed=seed,
        value=last_model_cost(child_flops=child.flops, cold_flops=found.flops, lineage_flops=lineage_flops),
        c_lineage=lineage_flops,
        c_child=child.flops,
        c_scratch=found.flops,
        bits_per_byte=child.bits_per_byte,
        extrapolated=found.extrapolated,
    )


def cost_at_match(
    *, seed: int, lineage_flops: float, match_flops: float, baseline: Measured, at_most: bool = False
) -> SeedCost:
    """Compare a child, where it came down to its one baseline, with that baseline's budget."""
    return SeedCost(
        seed=seed,
        value=last_model_cost(child_flops=match_flops, cold_flops=baseline.flops, lineage_flops=lineage_flops),
        c_lineage=lineage_flops,
        c_child=match_flops,
        c_scratch=baseline.flops,
        bits_per_byte=baseline.bits_per_byte,
        at_most=at_most,
    )


def over_seeds(costs: Sequence[SeedCost]) -> LastModelCost:
    """Return the mean of the seeds' costs, each of which compares a child with baselines of its own seed."""
    mean = mean_cost([cost.value for cost in costs], at_most=any(cost.at_most for cost in costs))
    return replace(mean, extrapolated=sum(cost.extrapolated for cost in costs), by_seed=tuple(costs))


def mean_cost(values: Sequence[float], *, at_most: bool = False) -> LastModelCost:
    """Return the mean of some seeds' costs; of upper bounds the interval has no lower end."""
    interval = mean_interval(values)
    low = None if at_most else interval.low
    return LastModelCost(value=interval.mean, low=low, high=interval.high, seeds=len(values), at_most=at_most)
