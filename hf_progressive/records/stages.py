"""What a study says of the stages of a trunk: the smaller sizes through which one constant-rate run passes."""

from dataclasses import dataclass

from hf_progressive.records.typed import Amount, Count, Record


@dataclass(frozen=True, kw_only=True)
class TrunkStage(Record):
    """A size through which a trunk passes before it grows into the rung that is measured."""

    name: str
    """The stage."""

    until: Amount
    """The share of the measured rung's tokens at which it grows."""

    parameters: Count
    """Distinct parameters."""

    flops_per_token: Amount
    """Training FLOPs per token."""

    learning_rate: Amount | None = None
    """Peak learning rate; None where the record does not say."""
