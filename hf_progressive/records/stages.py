"""What records say of a trunk: a rung's part of it, and in a study the smaller sizes through which it passes."""

from dataclasses import dataclass
from typing import Literal

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


@dataclass(frozen=True, kw_only=True)
class StageMember(Record):
    """What a stage of a trunk is worth as a finished model, of one seed."""

    stage: str
    """The stage."""

    until: Amount
    """The share of the measured rung's tokens at which it is taken."""

    seed: int
    """The seed."""

    kind: Literal["decay", "average"]
    """After a decay on a branch, or as the average of the trunk's last weights."""

    bits_per_byte: Amount
    """Validation bits per byte."""

    constant_bits_per_byte: Amount
    """Those of the trunk itself there, at its constant rate."""

    flops: Amount
    """Training FLOPs of the member alone: its branch's."""

    baseline_bits_per_byte: Amount | None
    """Those of the stage's own baseline of the whole budget; None where the study has none of its size."""

    worth: Amount | None
    """The budget from scratch with the member's bits per byte, over the stage's whole one; None where unknown."""

    extrapolated: bool = False
    """Whether that lies outside the finished baselines."""

    end: str | None = None
    """The rung in which the trunk ends; None in an older record."""


@dataclass(frozen=True, kw_only=True)
class TrunkRecord(Record):
    """A rung's part of its ladder's trunk, and how its model was made of that."""

    until: Amount
    """The share of the last rung's tokens at which the part ends."""

    steps: Count
    """Optimizer steps on the trunk."""

    tokens: Count
    """Tokens read on the trunk."""

    flops: Amount
    """Training FLOPs of the part, without the member's branch."""

    member: Literal["decay", "average", "none", "end"]
    """How the model was finished: on a branch with a decay, by averaging the trunk's weights, not at all, or by the
    trunk's own decay at its end."""

    warmup_steps: Count
    """Steps over which the rate rose: the first rung's warm-up, or the re-warm after the growth."""

    decay_steps: Count
    """Steps over which the rate fell."""

    averaged_steps: tuple[Count, ...] = ()
    """Steps after which the averaged weights were taken."""
