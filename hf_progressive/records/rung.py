"""What is known of a run: its settings and, of each finished rung, what was trained and measured."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One point of a validation curve."""

    flops: float
    """FLOPs of the run so far; for a grown rung, those of Fisher and subspace included."""

    bits_per_byte: float
    """Validation bits per byte."""


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """The same architecture trained from nothing on its full budget."""

    bits_per_byte: float
    """Final validation bits per byte."""

    flops: float
    """Training FLOPs."""

    curve: tuple[Evaluation, ...]
    """Evaluations in the order of training."""

    evaluation_flops: float | None = None
    """FLOPs of validating while it trained, which `flops` leaves out; None in older records."""


@dataclass(frozen=True, kw_only=True)
class DataUse:
    """Which part of the corpus a rung trained on."""

    source: str
    """The corpus."""

    first_epoch: int
    """Epoch of the rung's first block, counted from 0 over all rungs."""

    repeats_from_token: int | None
    """The rung's token from which on it trained on blocks that it or an earlier rung had read; None if on none."""


@dataclass(frozen=True, kw_only=True)
class TakenFrom:
    """The model trained elsewhere that a ladder began with."""

    name: str
    """Its Hub name, or that of the rung or folder."""

    commit: str | None
    """The commit on the Hub."""

    flops: float
    """All FLOPs that went into it, as far as they are recorded."""

    is_complete: bool
    """Whether they all are."""


@dataclass(frozen=True, kw_only=True)
class CoreScore:
    """A result on CORE, or on the tasks of it that had data."""

    name: str
    """What may be claimed: "CORE", or "CORE (18 of 22 tasks)" and the like."""

    score: float
    """Mean centred accuracy."""

    standard_error: float
    """Of the score."""

    tasks: Mapping[str, tuple[float, float]]
    """Centred accuracy and its standard error, by task."""


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """How fast a rung trained, evaluations and saving left out."""

    tokens_per_second: float
    """Training tokens per second, over all processes."""

    mfu: float | None
    """Model FLOPs utilisation: the share of the devices' peak; None where that is not known."""

    device: str
    """What one process computed on, by its driver's name."""

    processes: int
    """Processes that trained together."""

    seconds: Mapping[str, float]
    """Seconds of training, of evaluation and of saving; of a run that was continued, since then."""


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One trained model of the ladder."""

    index: int
    """Place in the ladder, from 0."""

    name: str
    """The rung's name, which is its folder's too."""

    parent: str | None
    """The rung it was grown from; None for the first, which was trained from nothing or taken over."""

    origin: TakenFrom | None = None
    """The model trained elsewhere that it is; None for a rung that was trained here."""

    lineage_complete: bool = True
    """Whether all FLOPs that went into it and its ancestors are recorded."""

    layers: int | None
    """Layers; None where the configuration does not tell."""

    width: int | None
    """Width of the residual stream; None where the configuration does not tell."""

    parameters: int
    """Distinct parameters."""

    tokens: int
    """Tokens trained on."""

    tokens_per_parameter: float
    """Tokens trained on per parameter of the budget."""

    cold_tokens: int
    """Tokens of a full cold budget."""

    flops_per_token: float
    """Training FLOPs per token."""

    train_flops: float
    """FLOPs of the rung's own training."""

    fisher_flops: float
    """FLOPs of estimating the parent's Fisher information."""

    subspace_flops: float
    """FLOPs of learning the parent's subspace."""

    bits_per_byte: float
    """Final validation bits per byte."""

    curve: tuple[Evaluation, ...]
    """Evaluations in the order of training."""

    training_log: tuple[Mapping[str, float], ...]
    """Logged steps: `step` and whatever numbers the trainer logged there."""

    cold: Baseline | None
    """The baseline; None if none was trained."""

    flops_to_match: float | None
    """Own FLOPs at which the curve first reaches the baseline's final bits per byte; None if it does not."""

    gap: float | None
    """Final bits per byte less the baseline's: negative if the rung ended better."""

    saving: float | None
    """1 − flops_to_match / the baseline's FLOPs."""

    eta: float | None
    """Transfer efficiency, as `evaluation.matching.transfer_efficiency` defines it; None where it is not known what
    went into the parent."""

    parent_share: float | None
    """The parent's full cold budget over the rung's own, in FLOPs."""

    max_abs_logit_diff: float | None
    """Largest |Δlogit| between the parent and the grown, untrained rung."""

    max_abs_logit: float | None
    """Largest |logit| in that comparison."""

    phi: Mapping[str, Any] | None
    """The inheritance penalty's settings; None without one."""

    data: DataUse
    """What it trained on."""

    core: CoreScore | None = None
    """Its result on CORE; None if it was not evaluated."""

    evaluation_flops: float | None = None
    """FLOPs of validating while it trained, which `flops` leaves out; None in older records."""

    throughput: Throughput | None = None
    """How fast it trained; None where the record does not say, or where it was trained elsewhere."""

    seconds: Mapping[str, float] = field(default_factory=dict)
    """Wall-clock seconds by step of the work."""

    @property
    def grown(self) -> bool:
        """Whether the rung has a parent."""
        return self.parent is not None

    @property
    def lineage(self) -> str:
        """The rung's name, with its parent's where it has one."""
        return f"{self.parent} → {self.name}" if self.grown else self.name

    @property
    def flops(self) -> float:
        """FLOPs spent on the rung itself: training, Fisher and subspace."""
        return self.train_flops + self.fisher_flops + self.subspace_flops

    @property
    def cold_flops(self) -> float:
        """FLOPs of the full cold budget: the baseline's, the first rung's own, or else as planned; 0 if not known."""
        if self.cold is not None:
            return self.cold.flops
        return self.cold_tokens * self.flops_per_token if self.grown or self.origin else self.train_flops

    @property
    def cold_is_planned(self) -> bool:
        """Whether `cold_flops` is a plan, because no baseline was trained."""
        if self.origin is not None:
            return self.cold_is_known and not math.isclose(self.train_flops, self.cold_flops)
        return self.grown and self.cold is None

    @property
    def cold_is_known(self) -> bool:
        """Whether `cold_flops` is known; it is not of a model of which no record tells the budget."""
        return self.origin is None or self.cold_tokens > 0


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run folder's records."""

    name: str
    """The ladder's name."""

    family: str
    """The `model_type` of its models."""

    created: str | None
    """When the run began; None where the record does not say."""

    seed: int
    """The one seed of all its rungs."""

    planned: tuple[str, ...]
    """Names of all rungs, in order."""

    rungs: tuple[Rung, ...]
    """The finished rungs, in order."""

    config: Mapping[str, Any]
    """The ladder's configuration."""

    environment: Mapping[str, Any]
    """Versions and machine."""

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of the planned rungs that are not finished."""
        finished = {rung.name for rung in self.rungs}
        return tuple(name for name in self.planned if name not in finished)

    @property
    def pending_baselines(self) -> tuple[str, ...]:
        """Names of finished, grown rungs whose baseline the configuration asks for and no record holds yet."""
        asked = self.config.get("cold", "none")
        return tuple(
            rung.name
            for rung in self.rungs
            if rung.grown and rung.cold_is_planned and (asked == "all" or rung.name in asked)
        )
