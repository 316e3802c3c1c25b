"""What a trunk does where it grows, and how its rungs become finished models."""

from dataclasses import dataclass
from typing import Annotated, Literal

from hf_progressive.config.checks import require_in_range
from hf_progressive.config.ranges import Fraction, PositiveFraction, Range


@dataclass(frozen=True, kw_only=True)
class TrunkConfig:
    """One constant-rate training run through all rungs, with branches for the smaller ones."""

    rewarm_fraction: Fraction = 0.01
    """Share of the last rung's steps over which the learning rate rises again after a growth."""

    rewarm: Literal["all", "new"] = "all"
    """Whose rate rises again: every entry's, or that of the entries alone which the parent had not."""

    moments: Literal["fresh", "grown"] = "fresh"
    """The optimizer's state after a growth: from 0, or mapped as gradients map."""

    member: Literal["decay", "average", "none"] = "decay"
    """How a rung below the last becomes a finished model: a branch with a decay, the average of the trunk's last
    weights, which costs no training, or not at all."""

    member_decay_fraction: PositiveFraction = 0.1
    """Length of a member's decay, as a share of the trunk's steps until there."""

    average_over: PositiveFraction = 0.1
    """Last share of a rung's steps on the trunk whose weights a member's average is of."""

    average_of: Annotated[int, Range(2, 100)] = 5
    """Weights in a member's average, evenly spaced, the trunk's last ones included."""

    def __post_init__(self) -> None:
        require_in_range(self)
