"""What the arguments say of Φ: its schedule, and weights that a search over hyperparameters may set."""

import dataclasses
from typing import Any

from hf_progressive.penalty import InheritancePenalty, LoraPenalty


class PhiArguments:
    """The part of `ProgressiveMixin` that reads schedule and weights of Φ from the arguments, whenever asked."""

    args: Any
    penalty: InheritancePenalty | LoraPenalty | None
    _given_schedule: str | None
    _given_until: float | None

    @property
    def phi_schedule(self) -> str:
        """How λ and γ move: what the constructor was told, or what the arguments say now."""
        return str(self._given_schedule or getattr(self.args, "phi_schedule", "constant"))

    @property
    def phi_until(self) -> float:
        """Fraction of the run at which λ and γ are zero."""
        return float(getattr(self.args, "phi_until", 1.0) if self._given_until is None else self._given_until)

    @property
    def weighted_penalty(self) -> InheritancePenalty | LoraPenalty | None:
        """The penalty with the weights `phi_lambda` and `phi_gamma` of the arguments, where they give any."""
        given = {"ewc_lambda": "phi_lambda", "gamma": "phi_gamma"}
        found = {weight: getattr(self.args, name, None) for weight, name in given.items()}
        weights: dict[str, Any] = {weight: float(value) for weight, value in found.items() if value is not None}
        if not weights:
            return self.penalty
        names = " and ".join(given[weight] for weight in weights)
        if self.penalty is None:
            raise ValueError(f"{names}: there is no penalty to weigh; pass penalty=, or leave it out")
        if isinstance(self.penalty, LoraPenalty):
            if "gamma" in weights:
                raise ValueError("phi_gamma: a LoraPenalty has λ alone; set phi_lambda")
        elif self.penalty.further or self.penalty.constant:
            raise ValueError(f"{names}: a sum of penalties has a weight for each; sum them anew with other weights")
        return dataclasses.replace(self.penalty, **weights)
