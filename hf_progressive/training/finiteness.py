"""Whether a run's figures are finite: noted where they are computed, read when the host waits for them anyway."""

from collections.abc import Iterable

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

LOSS, PENALTY, GRADIENT, WEIGHTS = "the loss", "Φ", "the gradient", "a weight"
_FIGURES = (LOSS, PENALTY, GRADIENT, WEIGHTS)


class FiniteWatch:
    """What became NaN or infinite since the last reading, by one small kernel a figure and without waiting for it.

    What spoils one process of the accelerator spoils all.

    >>> watch = FiniteWatch(Accelerator())
    >>> watch.note(LOSS, torch.tensor(2.0)); watch.read()
    >>> watch.note(LOSS, torch.tensor(float("inf"))); watch.note(LOSS, torch.tensor(2.0)); watch.read()
    'the loss'
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._noted: Tensor | None = None  # (4,): 0, or NaN from a figure's first bad value on

    def note(self, figure: str, value: Tensor) -> None:
        """Take a value of `LOSS`, `PENALTY`, `GRADIENT` or `WEIGHTS` in; of several, their mean."""
        value = value.detach()
        if isinstance(value, DTensor):
            value = value.full_tensor()
        if value.ndim:
            value = value.mean()
        if self._noted is None:
            self._noted = torch.zeros(len(_FIGURES), device=self._accelerator.device)
        self._noted[_FIGURES.index(figure)].add_(value.to(self._noted.device), alpha=0)  # 0 · ∞ is NaN

    def note_weights(self, parameters: Iterable[nn.Parameter]) -> None:
        """Take in, of a model's weights, those that this process holds."""
        held = [p.detach() for p in parameters if p.is_floating_point()]
        held = [p.to_local() if isinstance(p, DTensor) else p for p in held]
        held = [p for p in held if p.numel()]
        if held:
            self.note(WEIGHTS, nn.utils.get_total_norm(held, norm_type=float("inf")))

    def read(self) -> str | None:
        """Wait for what was noted, on every process, and begin anew; return the first figure that was not finite."""
        noted = torch.zeros(len(_FIGURES), device=self._accelerator.device) if self._noted is None else self._noted
        self._noted = None
        sums = self._accelerator.reduce(noted, reduction="sum").tolist()
        return next((figure for figure, total in zip(_FIGURES, sums, strict=True) if total != 0.0), None)
