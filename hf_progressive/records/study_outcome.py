"""What a study's recipes achieved, as `study.json` has it: on a step, for the family, and by Φ.

Intervals are 95 %, by Student's t; an end is None where one seed alone says nothing of its spread, and where the
values are bounds themselves.
"""

from dataclasses import dataclass, fields
from statistics import fmean
from typing import Literal

from hf_progressive.records.last_model import LastModelCost, mean_cost
from hf_progressive.records.matching import last_model_cost
from hf_progressive.records.typed import Amount, Count, Record


@dataclass(frozen=True, kw_only=True)
class MeanGap(Record):
    """A mean over the seeds, in bits per byte."""

    mean: float
    """The mean."""

    low: float | None
    """Lower end of its interval."""

    high: float | None
    """Upper end."""


@dataclass(frozen=True, kw_only=True)
class StepOutcome(Record):
    """What growing saved on one step, over the seeds that are complete."""

    parent: str
    """The rung that was grown."""

    child: str
    """The rung that it became."""

    c_parent_over_c_cold: Amount
    """The parent's full budget over the child's, in FLOPs."""

    saving: float | None
    """1 − C_child / C_cold; None where a seed did not match."""

    saving_low: float | None
    """Lower end of its interval."""

    saving_high: float | None
    """Upper end."""

    eta: float | None
    """Transfer efficiency; None where a seed did not match."""

    eta_low: float | None
    """Lower end of its interval."""

    eta_high: float | None
    """Upper end."""

    at_least: bool
    """Whether saving and η are lower bounds: a seed matched at its smallest budget already."""

    matched: Count
    """Seeds that matched their baselines."""

    gap_bits_per_byte: float
    """Mean of the longest child's bits per byte less its baseline's."""

    gap_as_trained: MeanGap
    """The same of the child as it is trained to be a parent."""

    seeds: Count
    """Seeds that are complete."""

    last_model_cost: LastModelCost | None = None
    """What the child costs with all that it inherits, over what it costs from scratch; None where a seed has none, and
    in older records."""


@dataclass(frozen=True, kw_only=True)
class SeedOutcome(Record):
    """One seed's part of a step."""

    seed: int
    """The seed."""

    c_child: Amount | None
    """FLOPs to match; None where it did not."""

    reached: Literal["between", "at_most", "no"]
    """Between two finished children; at the smallest one already; or not."""

    gap_bits_per_byte: float
    """The longest child's bits per byte less its baseline's."""

    c_parent: Amount
    """FLOPs of all that went into the parent."""

    saving: float | None
    """1 − C_child / C_cold."""

    eta: float | None
    """Transfer efficiency."""


@dataclass(frozen=True, kw_only=True)
class Advantage(Record):
    """What growing saved against the baseline of one length."""

    cold_fraction: Amount
    """The baseline's share of the full budget."""

    matched: Count
    """Seeds that matched it."""

    saving: float | None
    """Mean share of its FLOPs that the child did not need, over these."""

    at_least: bool
    """Whether it is a lower bound."""


@dataclass(frozen=True, kw_only=True)
class ShareCost(Record):
    """The last-model cost of trunks of one length."""

    fraction: Amount
    """Share of the full budget's tokens that the trunk and its end train on."""

    last_model_cost: LastModelCost
    """The cost."""


@dataclass(frozen=True, kw_only=True)
class RecipeStep(StepOutcome):
    """A step of a recipe, with each seed's part."""

    c_cold: Amount
    """FLOPs of the child's full budget from scratch."""

    c_parent: Amount | None
    """Mean FLOPs of all that went into the parent."""

    c_child: Amount | None
    """Mean FLOPs to match; None where a seed did not."""

    by_seed: tuple[SeedOutcome, ...]
    """The seeds."""

    advantage: tuple[Advantage, ...]
    """The saving at every length of the baseline."""

    by_share: tuple[ShareCost, ...] = ()
    """Of a trunk, the last-model cost at every length; the longest one's is the step's."""

    @property
    def known_cost(self) -> LastModelCost | None:
        """The last-model cost; of an older record, worked out of what went into each seed's parent and child."""
        if self.last_model_cost is not None:
            return self.last_model_cost
        costs = [
            last_model_cost(child_flops=seed.c_child, cold_flops=self.c_cold, lineage_flops=seed.c_parent)
            for seed in self.by_seed
            if seed.c_child is not None
        ]
        return mean_cost(costs, at_most=self.at_least) if costs and len(costs) == self.seeds else None

    @property
    def eta_ceiling(self) -> float | None:
        """What η would be, had the child cost nothing of its own: C_scratch / C_lineage."""
        if self.last_model_cost is not None and self.last_model_cost.by_seed:
            return fmean(seed.eta_ceiling for seed in self.last_model_cost.by_seed)
        return self.c_cold / self.c_parent if self.c_parent else None

    def outline(self) -> StepOutcome:
        """Return the step without its parts."""
        names = (item.name for item in fields(StepOutcome) if item.name != "others")
        return StepOutcome(**{name: getattr(self, name) for name in names})


@dataclass(frozen=True, kw_only=True)
class FamilyOutcome(Record):
    """What a whole family costs, in FLOPs.

    Of a trunk the family are its members by decay and its last model, where every seed has them all, and what they
    cost from scratch is read at their own bits per byte.
    """

    cold: Amount
    """Every model from scratch; of a trunk, no member at more than its whole budget."""

    inherited: Amount | None
    """By inheritance, the last model to its match, or the trunk with its members' decays: mean over the seeds; None
    unless all of them matched."""

    last_alone: Amount
    """The last model alone, from scratch."""

    over_last_alone: Amount | None
    """`inherited` over `last_alone`."""

    over_last_alone_low: float | None
    """Lower end of its interval."""

    over_last_alone_high: float | None
    """Upper end."""

    at_most: bool
    """Whether it is an upper bound: a last model matched at its smallest budget already."""

    seeds: Count
    """Seeds that are complete."""

    def __post_init__(self) -> None:
        if self.inherited is not None and self.over_last_alone is None:
            raise ValueError("over_last_alone: is null, although inherited is known")


@dataclass(frozen=True, kw_only=True)
class Difference(Record):
    """A recipe's bits per byte less its reference's, paired by seed; negative where Φ helps."""

    difference: float
    """The mean."""

    low: float | None
    """Lower end of its interval."""

    high: float | None
    """Upper end."""

    @property
    def ends(self) -> tuple[float, float] | None:
        """Both ends of its interval; None where one seed has none."""
        return None if self.low is None or self.high is None else (self.low, self.high)


@dataclass(frozen=True, kw_only=True)
class PenaltyPoint(Difference):
    """What Φ changed at one length, at equal total FLOPs."""

    fraction: Amount
    """Share of the full budget."""

    flops: Amount
    """FLOPs of the recipe's model."""

    seeds: Count
    """Seeds that are complete."""

    at_equal_tokens: Difference | None = None
    """The same at equal tokens, where the estimates are free; None where the reference has no model of this length."""


@dataclass(frozen=True, kw_only=True)
class PenaltyStep(Record):
    """What Φ changed on one rung."""

    rung: str
    """The rung."""

    points: tuple[PenaltyPoint, ...]
    """By length."""


@dataclass(frozen=True, kw_only=True)
class PenaltyRecipe(Record):
    """A recipe with Φ against its reference without it."""

    recipe: str
    """The recipe."""

    reference: str
    """The one without Φ."""

    ewc_lambda: Amount
    """λ."""

    gamma: Amount
    """γ."""

    schedule: str
    """How both go on over the training."""

    until: Amount
    """The share of the full budget at which they are 0."""

    rungs: tuple[PenaltyStep, ...]
    """Rungs on which something was compared."""


@dataclass(frozen=True, kw_only=True)
class PenaltyEffect(Record):
    """Φ against its absence."""

    reference: str | None
    """The study's reference."""

    recipes: tuple[PenaltyRecipe, ...]
    """Recipes with Φ."""

    @property
    def points(self) -> list[tuple[str, PenaltyPoint]]:
        """All comparisons, with their recipes' names."""
        return [(recipe.recipe, point) for recipe in self.recipes for step in recipe.rungs for point in step.points]
