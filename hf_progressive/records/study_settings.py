"""What `study.json` holds of a study's configuration: typed what a report says of it, in `others` the rest."""

from dataclasses import dataclass

from hf_progressive.records.typed import Amount, Count, Record


@dataclass(frozen=True, kw_only=True)
class DataSettings(Record):
    """What a report says of the configuration's `data`."""

    source: str
    """The corpus."""


@dataclass(frozen=True, kw_only=True)
class ModelSettings(Record):
    """What a report says of the configuration's `model`."""

    context: Count
    """Tokens of a block."""


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(Record):
    """What a report says of the configuration's `training`."""

    tokens_per_parameter: Amount
    """Tokens of a full budget per parameter."""

    batch_tokens: Count
    """Tokens of a batch."""

    learning_rate: Amount
    """Peak learning rate from scratch."""

    warmup_fraction: Amount
    """Share of the steps in which the rate rises."""

    decay_fraction: Amount
    """Share of the steps in which it falls."""


@dataclass(frozen=True, kw_only=True)
class LadderSettings(Record):
    """What a report says of the configuration's `ladder`."""

    data: DataSettings
    """Its data."""

    model: ModelSettings
    """Its models."""

    training: TrainingSettings
    """Its training."""


@dataclass(frozen=True, kw_only=True)
class StudySettings(Record):
    """The study's configuration: what a report says of it, and in `others` the rest."""

    seeds: tuple[int, ...]
    """The seeds."""

    cold_fractions: tuple[Amount, ...]
    """Lengths of the baselines, as shares of the full budget."""

    child_fractions: tuple[Amount, ...]
    """Lengths of the children."""

    ladder: LadderSettings
    """The ladder."""
