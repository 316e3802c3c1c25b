"""What Φ was, and did, at one optimizer step: by its gradient before the step, or by its proximal step after it."""

import dataclasses

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class PenaltyStep:
    """What Φ was, and did to the gradient, at one optimizer step."""

    ewc: Tensor
    """λ·½ Σ Ω_ii ΔW_i², a scalar."""
    subspace: Tensor
    """γ·‖(I − UUᵀ)ΔW‖_F², or γ·‖UUᵀΔW‖_F² for the inside, a scalar."""
    gradient_norm: Tensor
    """Euclidean norm of Φ's gradient over the trainable parameters it speaks of."""
    task_gradient_norm: Tensor
    """Norm of the gradient found there."""

    @property
    def value(self) -> Tensor:
        """Φ, the sum of its two terms."""
        return self.ewc + self.subspace

    @property
    def gradient_ratio(self) -> Tensor:
        """Norm of Φ's gradient over that of the task; 0 where the task has none."""
        return _ratio(self.gradient_norm, self.task_gradient_norm)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProximalStep:
    """What Φ was after an optimizer's step, and what its proximal step moved."""

    ewc: Tensor
    """λ·½ Σ (Ω_ii / mean Ω) ΔW_i² before it, a scalar."""
    subspace: Tensor
    """γ's term after λ's step and before its own, a scalar."""
    moved_norm: Tensor
    """Euclidean norm of what the step moved."""
    distance_norm: Tensor
    """Norm of ΔW before it, over the parameters that were stepped and have an Ω or a U."""

    @property
    def value(self) -> Tensor:
        """Φ, the sum of its two terms."""
        return self.ewc + self.subspace

    @property
    def moved_ratio(self) -> Tensor:
        """Share of the distance from the anchor that the step took back; 0 where there is none."""
        return _ratio(self.moved_norm, self.distance_norm)


def _ratio(norm: Tensor, other: Tensor) -> Tensor:
    return torch.where(other > 0, norm / other.clamp_min(torch.finfo(other.dtype).tiny), 0.0)
