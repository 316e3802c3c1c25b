"""What a report, a card and a run's reader take from the configuration in `ladder.json`, so that it can be checked."""

from dataclasses import dataclass, field
from typing import Literal

from hf_progressive.records.typed import Amount, Count, Record


@dataclass(frozen=True, kw_only=True)
class RungSettings(Record):
    """A rung."""

    name: str
    """Its name."""

    until: Amount | None = None
    """In a trunk, the share of the last rung's tokens at which it grows."""


@dataclass(frozen=True, kw_only=True)
class RunTraining(Record):
    """The configuration's `training`; None for what an older one does not say."""

    tokens_per_parameter: Amount | None = None
    """Tokens of a full budget per parameter."""

    inherited_fraction: Amount | None = None
    """Share of it that grown rungs train for."""

    learning_rate: Amount | None = None
    """Peak learning rate."""

    muon_learning_rate: Amount | None = None
    """Muon's."""

    inherited_learning_rate: Amount | None = None
    """Peak learning rate of grown rungs."""

    batch_tokens: Count | None = None
    """Tokens of a step."""

    decay_fraction: Amount | None = None
    """Share of the steps in which the rate falls."""


@dataclass(frozen=True, kw_only=True)
class RunGrowth(Record):
    """The configuration's `growth`."""

    method: str | None = None
    """The method."""


@dataclass(frozen=True, kw_only=True)
class RunData(Record):
    """The configuration's `data`."""

    source: str | None = None
    """The corpus."""


@dataclass(frozen=True, kw_only=True)
class RunSettings(Record):
    """A run's configuration, as far as it is read back."""

    schedule: Literal["chain", "trunk"] = "chain"
    """How rungs follow one another."""

    rungs: tuple[RungSettings, ...] = ()
    """The rungs."""

    cold: Literal["all", "none"] | tuple[str, ...] = "none"
    """Rungs that have baselines."""

    training: RunTraining = field(default_factory=RunTraining)
    """How they train."""

    growth: RunGrowth = field(default_factory=RunGrowth)
    """How they grow."""

    data: RunData = field(default_factory=RunData)
    """On what."""
