"""Φ's figures between two logs of a run: summed where they are computed, read once."""

import torch
from torch import Tensor

from hf_progressive.penalty.bound import PenaltyStep


class StepLog:
    """Means of Φ's terms and gradient ratio over optimizer steps, and λ and γ as last applied.

    Sums stay on their device, so that adding to them does not wait for it. The figures are the same on every process.

    >>> log = StepLog()
    >>> for ewc in (1.0, 3.0):
    ...     figures = {"ewc": ewc, "subspace": 0.5, "gradient_norm": 1.0, "task_gradient_norm": 4.0}
    ...     log.add(PenaltyStep(**{key: torch.tensor(x) for key, x in figures.items()}), ewc_lambda=2.0, gamma=0.1)
    >>> log.drain()
    {'phi/ewc': 2.0, 'phi/subspace': 0.5, 'phi/grad_ratio': 0.25, 'phi/lambda': 2.0, 'phi/gamma': 0.1}
    >>> log.drain()
    {}
    """

    def __init__(self) -> None:
        self.last_value = torch.zeros(())
        """Φ at the last step added."""
        self._sums: Tensor | None = None  # ewc, subspace, gradient ratio
        self._steps = 0
        self._ewc_lambda = self._gamma = 0.0

    def add(self, step: PenaltyStep, *, ewc_lambda: float, gamma: float) -> None:
        """Add one optimizer step, with λ and γ as scheduled."""
        figures = torch.stack([step.ewc, step.subspace, step.gradient_ratio])
        self._sums = figures if self._sums is None else self._sums + figures
        self._steps += 1
        self._ewc_lambda, self._gamma = ewc_lambda, gamma
        self.last_value = step.value

    def drain(self) -> dict[str, float]:
        """Return the means over the steps since the last call, and λ and γ; nothing if there was no step."""
        if self._sums is None:
            return {}
        ewc, subspace, ratio = (self._sums / self._steps).tolist()
        self._sums, self._steps = None, 0
        return {
            "phi/ewc": ewc,
            "phi/subspace": subspace,
            "phi/grad_ratio": ratio,
            "phi/lambda": self._ewc_lambda,
            "phi/gamma": self._gamma,
        }
