"""`study.json`: what a study found, from what, and what it cost.

FLOPs are those a model would cost alone, unless the class says otherwise.
"""

import os
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from hf_progressive.config.renamed import with_current_names
from hf_progressive.records.last_model import LastModelCost
from hf_progressive.records.stages import StageMember, TrunkStage
from hf_progressive.records.study_outcome import FamilyOutcome, PenaltyEffect, RecipeStep, StepOutcome
from hf_progressive.records.study_settings import StudySettings
from hf_progressive.records.typed import FORMAT, Amount, Count, Record


@dataclass(frozen=True, kw_only=True)
class FinishedRun(Record):
    """One finished model."""

    fraction: Amount
    """Share of the full budget that it trained for."""

    task: str
    """The task that trained it."""

    steps: Count
    """Optimizer steps."""

    tokens: Count
    """Tokens trained on."""

    flops: Amount
    """Of its training and of the estimates that its Φ rests on."""

    estimates_flops: Amount
    """Those of the estimates alone."""

    bits_per_byte: Amount
    """Final validation bits per byte."""

    loss: float
    """Final validation loss, in nats per token."""

    learning_rate: Amount
    """Peak learning rate."""

    branched_at: Count
    """The step of the longest run from which it went on; 0 for one that was trained from its beginning."""

    epochs: tuple[Count, ...]
    """First and last epoch of the corpus that it read, from 0."""

    repeats_from_token: Count | None
    """The token from which on it read what it or an ancestor had read; None if all was new."""

    seconds: Amount
    """Seconds of computing."""


@dataclass(frozen=True, kw_only=True)
class FailedRun(Record):
    """A model whose training failed."""

    fraction: Amount
    """Share of the full budget that it was to train for."""

    task: str
    """The task."""

    failed: str
    """Why."""


@dataclass(frozen=True, kw_only=True)
class Runs(Record):
    """The models of one rung and seed: baselines, or one recipe's children."""

    rung: str
    """The rung."""

    seed: int
    """The seed."""

    points: tuple[FinishedRun | FailedRun, ...]
    """One for each length that is done."""

    @property
    def finished(self) -> list[FinishedRun]:
        """Those that did not fail."""
        return [point for point in self.points if isinstance(point, FinishedRun)]


@dataclass(frozen=True, kw_only=True)
class SweptRate(Record):
    """A training run of the sweep of learning rates."""

    kind: Literal["cold", "child"]
    """A baseline's or a child's rate."""

    rung: str
    """The rung."""

    learning_rate: Amount
    """The peak that was tried."""

    point: FinishedRun | FailedRun | None
    """What came of it; None where it is not done."""

    recipe: str | None = None
    """The child's recipe; None for a baseline, and for the headline's."""

    seed: Count | None = None
    """The seed; None is the study's first."""


@dataclass(frozen=True, kw_only=True)
class Headline(Record):
    """What the recipe that the study is about achieved."""

    recipe: str
    """The recipe."""

    overrides: dict[str, Any]
    """What it changes in the ladder's configuration."""

    parent_fraction: Amount
    """Share of the full budget for which a grown model trains to be a parent."""

    rungs: tuple[StepOutcome, ...]
    """Its steps."""

    family: FamilyOutcome
    """What its family costs."""

    phi_effect: PenaltyEffect
    """Φ against its absence, in all recipes."""

    last_model_cost: LastModelCost | None = None
    """Of its last rung; None where a seed did not match, and in older records (see `StudyRecord.last_model_cost`)."""


@dataclass(frozen=True, kw_only=True)
class RecipeRecord(Record):
    """What one recipe achieved, and its models."""

    name: str
    """The recipe."""

    overrides: dict[str, Any]
    """What it changes in the ladder's configuration."""

    parent_fraction: Amount
    """Share of the full budget for which a grown model trains to be a parent."""

    parent_recipe: str | None
    """The recipe whose models it grows; None for its own."""

    carry_moments: bool
    """Whether Adam's moments are grown too."""

    rungs: tuple[RecipeStep, ...]
    """Its steps."""

    family: FamilyOutcome
    """What its family costs."""

    points: tuple[Runs, ...]
    """Its models."""

    trunk: tuple[TrunkStage, ...] = ()
    """The smaller stages of its trunk, from the first; none of a chain."""

    members: tuple[StageMember, ...] = ()
    """What its stages are worth as finished models, where that is measured."""


@dataclass(frozen=True, kw_only=True)
class StudyModel(Record):
    """A rung, at its full budget from scratch."""

    name: str
    """The rung."""

    parameters: Count
    """Distinct parameters."""

    scaling_parameters: Count
    """Those that nanochat's scaling counts."""

    cold_steps: Count
    """Optimizer steps."""

    cold_tokens: Count
    """Tokens."""

    cold_flops: Amount
    """FLOPs."""

    flops_per_token: Amount
    """Training FLOPs per token."""

    c_parent_over_c_cold: Amount | None
    """The budget of the rung before over this one's, in FLOPs; None for the first."""


@dataclass(frozen=True, kw_only=True)
class FailedTask(Record):
    """A task that failed."""

    task: str
    """Its name."""

    reason: str
    """Why."""


@dataclass(frozen=True, kw_only=True)
class StudyCosts(Record):
    """What the study itself spent: steps that several models share once."""

    flops: Amount
    """FLOPs of training and estimates."""

    training_flops: Amount
    """Of training."""

    estimates_flops: Amount
    """Of estimates."""

    learning_rates_flops: Amount
    """Of trying learning rates, stages and all lengths included, which `training_flops` holds too."""

    seconds: Amount
    """Seconds of computing, over all processes."""


@dataclass(frozen=True, kw_only=True)
class CorpusSummary(Record):
    """The corpus; `others` has its counts."""

    source: str
    """Where it is from."""

    vocab_size: Count
    """Tokens of the vocabulary."""


@dataclass(frozen=True, kw_only=True)
class StudyRecord(Record):
    """A study, finished or not."""

    format: Literal[1] = FORMAT
    """The layout's version."""

    name: str
    """The study's name."""

    family: str
    """The `model_type` of its models."""

    complete: bool
    """Whether all models are finished, averages among them."""

    finished: Count
    """How many are."""

    runs: Count
    """How many there are to be."""

    headline: Headline
    """The answer."""

    rungs: tuple[StudyModel, ...]
    """The ladder's rungs."""

    cold: tuple[Runs, ...]
    """The baselines."""

    recipes: tuple[RecipeRecord, ...]
    """The recipes."""

    learning_rates: tuple[SweptRate, ...]
    """The sweep of learning rates."""

    failed: tuple[FailedTask, ...]
    """Tasks that failed."""

    costs: StudyCosts
    """What the study itself spent."""

    data: CorpusSummary
    """The corpus."""

    environment: dict[str, Any] = field(default_factory=dict)
    """Versions and machine."""

    config: StudySettings
    """The study's configuration."""

    @classmethod
    def _current(cls, content: dict[str, Any]) -> dict[str, Any]:
        current: dict[str, Any] = with_current_names(content)
        if "finished" in current and "recipes" not in current:
            raise ValueError("is a ladder's record; a study's is its study.json")
        return current

    @property
    def headline_recipe(self) -> RecipeRecord:
        """The recipe that the study is about."""
        return next(recipe for recipe in self.recipes if recipe.name == self.headline.recipe)

    @property
    def trunk(self) -> tuple[TrunkStage, ...]:
        """The smaller stages of the headline recipe; none of a chain."""
        return self.headline_recipe.trunk

    @property
    def last_model_cost(self) -> LastModelCost | None:
        """The headline's last-model cost; of an older record, what its last step's parts say; None if not known."""
        last = [step for step in self.headline_recipe.rungs if step.child == self.rungs[-1].name]
        return self.headline.last_model_cost or (last[0].known_cost if last else None)

    @property
    def rates_tried(self) -> tuple[float, ...]:
        """The peak learning rates of which every side takes its best before anything else; none where it does not."""
        return tuple(self.config.others.get("learning_rates", {}).get("rates", ()))

    @property
    def seeds_of_rates(self) -> tuple[int, ...]:
        """The seeds on which they were tried."""
        return tuple(self.config.others.get("learning_rates", {}).get("seeds") or self.config.seeds[:1])

    @property
    def chooses_rates(self) -> bool:
        """Whether such rates are still being tried, so that no side is trained at its best yet."""
        return bool(self.rates_tried) and any(row.point is None for row in self.learning_rates)

    def without_outcomes(self) -> "StudyRecord":
        """Return the record without what recipes achieved: while rates are being tried, it is of none chosen."""
        effect = replace(self.headline.phi_effect, recipes=())
        return replace(
            self,
            headline=replace(self.headline, rungs=(), phi_effect=effect, last_model_cost=None),
            recipes=tuple(replace(recipe, rungs=(), members=()) for recipe in self.recipes),
        )

    def __post_init__(self) -> None:
        if not self.rungs:
            raise ValueError("rungs: there are none")
        names = [recipe.name for recipe in self.recipes]
        if self.headline.recipe not in names:
            raise ValueError(f"headline.recipe: {self.headline.recipe!r} is not among the recipes {', '.join(names)}")
        measured = {step.child for step in self.headline_recipe.rungs}
        whole = {runs.rung for runs in self.cold if any(run.fraction == 1 for run in runs.finished)}
        for step in self.headline.rungs:
            if step.child not in measured & whole:
                missing = "step in the recipe" if step.child in whole else "baseline of the whole budget"
                raise ValueError(f"headline.rungs: {step.child} has no {missing}; let the study write the record anew")


def read_study(study_dir: str | os.PathLike[str]) -> StudyRecord:
    """Read the record of a study's folder.

    Raises:
        FileNotFoundError: The folder has no `study.json`.
        ValueError: The record is damaged, of another format, or lacks a value; the message names file and value.
    """
    return StudyRecord.read(os.path.join(study_dir, "study.json"))
