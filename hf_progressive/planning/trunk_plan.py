"""How a trunk passes through the rungs of a ladder: the steps of each on it, their schedule, and the branches."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hf_progressive.config import LadderConfig
from hf_progressive.planning.sizing import RungSize
from hf_progressive.training.callbacks import evenly_spaced


@dataclass(frozen=True, kw_only=True)
class TrunkPart:
    """One rung's part of the trunk, and its member.

    The rate rises over `warmup_steps`, stays, and falls over `decay_steps`: of a member by decay after the part's
    steps, on a branch whose weights no other rung gets; of the last rung over the last ones of its own.
    """

    until: float
    """The share of the last rung's tokens at which the part ends."""

    steps: int
    """Optimizer steps on the trunk."""

    warmup_steps: int
    """Steps over which the rate rises: the first rung's warm-up, or the re-warm after the growth."""

    decay_steps: int
    """Steps over which the rate falls."""

    member: Literal["decay", "average", "none", "end"]
    """How the rung becomes a finished model; `end` for the last, which is the trunk's own end."""

    averaged_steps: tuple[int, ...] = ()
    """Steps after which the weights are taken that a member by average is of."""

    @property
    def branch_steps(self) -> int:
        """Steps of the branch, beyond those on the trunk."""
        return self.decay_steps if self.member == "decay" else 0


def trunk_parts(config: LadderConfig, sizes: Sequence[RungSize]) -> list[TrunkPart]:
    """Divide the last rung's budget among the rungs of a trunk, by tokens, rounded to whole steps of each.

    A rung of which no step is left, or too few for its average, is a ValueError.
    """
    trunk, whole = config.trunk, sizes[-1].tokens
    parts: list[TrunkPart] = []
    passed = 0  # tokens that the trunk has read
    for rung, size in zip(config.rungs, sizes, strict=True):
        training, is_last = config.training_of(rung.name), rung is config.rungs[-1]
        until = 1.0 if is_last or rung.until is None else rung.until
        steps = math.floor((until * whole - passed) / size.batch_tokens + 0.5)
        if steps < 1:
            raise ValueError(
                f"rungs: {rung.name} trains from {min(passed / whole, until):.3g} to {until:g} of the last rung's"
                f" tokens, less than a step of {size.batch_tokens:,}; set until further apart, or raise"
                f" training.tokens_per_parameter"
            )
        passed += steps * size.batch_tokens
        budget = whole / size.batch_tokens  # the last rung's, in steps of this one
        rising = trunk.rewarm_fraction if parts else training.warmup_fraction
        warmup = min(math.ceil(rising * budget), steps)
        decay = 0
        averaged: tuple[int, ...] = ()
        if is_last:
            decay = min(math.ceil(training.decay_fraction * budget), steps - warmup)
        elif trunk.member == "decay":
            decay = max(1, math.ceil(trunk.member_decay_fraction * passed / size.batch_tokens))
        elif trunk.member == "average":
            averaged = _last_ones(rung.name, steps, trunk.average_over, trunk.average_of)
        parts.append(
            TrunkPart(
                until=until,
                steps=steps,
                warmup_steps=warmup,
                decay_steps=decay,
                member="end" if is_last else trunk.member,
                averaged_steps=averaged,
            )
        )
    return parts


def _last_ones(name: str, steps: int, share: float, count: int) -> tuple[int, ...]:
    # Evenly spaced over the last share of the steps, the last one included.
    window = math.ceil(share * steps)
    if window < count:
        raise ValueError(
            f"trunk.average_of: {count} weights, but the last {share:g} of the trunk's {steps} steps in {name} are"
            f" {window}; lower it, or raise trunk.average_over to {min(1.0, math.ceil(100 * count / steps) / 100):g}"
        )
    return tuple(sorted(steps - window + step for step in evenly_spaced(window, count)))
