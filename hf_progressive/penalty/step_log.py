"""Φ's figures between two logs of a run: summed where they are computed, read once."""

from typing import Any

import torch
from torch import Tensor

from hf_progressive.penalty.step import PenaltyStep, ProximalStep


class StepLog:
    """Means of Φ's terms and of one ratio over optimizer steps, and λ and γ as last applied.

    The ratio is `phi/grad_ratio`, or `phi/moved_ratio` for proximal steps.

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
        self._sums: Tensor | None = None  # ewc, subspace, ratio
        self._ratio_name = "phi/grad_ratio"
        self._steps = 0
        self._ewc_lambda = self._gamma = 0.0

    def add(self, step: PenaltyStep | ProximalStep, *, ewc_lambda: float, gamma: float) -> None:
        """Add one optimizer step, with λ and γ as scheduled."""
        if isinstance(step, ProximalStep):
            self._ratio_name, ratio = "phi/moved_ratio", step.moved_ratio
        else:
            self._ratio_name, ratio = "phi/grad_ratio", step.gradient_ratio
        figures = torch.stack([step.ewc, step.subspace, ratio])
        self._sums = figures if self._sums is None else self._sums.to(figures) + figures
        self._steps += 1
        self._ewc_lambda, self._gamma = ewc_lambda, gamma
        self.last_value = step.value

    def state(self) -> dict[str, Any]:
        """Return the sums since the last call of `drain`, as plain values; it waits for the device."""
        return {"sums": None if self._sums is None else self._sums.tolist(), "steps": self._steps}

    def go_on(self, state: dict[str, Any]) -> None:
        """Begin with the sums that `state` returned, which the next step is added to."""
        self._steps = state["steps"]
        self._sums = None if state["sums"] is None else torch.tensor(state["sums"], dtype=torch.float64)

    def drain(self) -> dict[str, float]:
        """Return the means over the steps since the last call, and λ and γ; nothing if there was no step."""
        if self._sums is None:
            return {}
        ewc, subspace, ratio = (self._sums / self._steps).tolist()
        self._sums, self._steps = None, 0
        return {
            "phi/ewc": ewc,
            "phi/subspace": subspace,
            self._ratio_name: ratio,
            "phi/lambda": self._ewc_lambda,
            "phi/gamma": self._gamma,
        }
