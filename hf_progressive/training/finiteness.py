"""Whether a run's figures are finite: noted where they are computed, read when the host waits for them anyway."""

import math
from collections.abc import Iterable

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

LOSS, PENALTY, GRADIENT, WEIGHTS = "the loss", "Φ", "the gradient", "a weight"
_FIGURES = (LOSS, PENALTY, GRADIENT, WEIGHTS)

_LEAST_SCALE = 2.0**-14  # the smallest normal number of float16


def scaled_to_nothing(scaler: torch.amp.GradScaler | None) -> bool:
    """Tell whether a loss scaler has halved its scale at so many steps that it will halve it at all; the host waits.

    It skips each of them, so that such a run would end with the weights that it had.
    """
    return scaler is not None and scaler.get_scale() < _LEAST_SCALE


class FiniteWatch:
    """What became NaN or infinite since the last reading, and when, by small kernels and without waiting for them.

    What spoils one process of the accelerator spoils all.

    >>> watch = FiniteWatch(Accelerator())
    >>> watch.note(LOSS, torch.tensor(2.0), step=1); watch.read()
    >>> for step, value in enumerate([2.0, float("inf"), 2.0, float("nan")], start=2):
    ...     watch.note(LOSS, torch.tensor(value), step=step)
    >>> watch.read()
    ('the loss', 3)
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._noted: Tensor | None = None  # (4,): the step of a figure's first bad value, infinity before it

    def note(self, figure: str, value: Tensor, *, step: int) -> None:
        """Take a step's value of `LOSS`, `PENALTY`, `GRADIENT` or `WEIGHTS` in; of several, their mean."""
        value = value.detach()
        if isinstance(value, DTensor):
            value = value.full_tensor()
        if value.ndim:
            value = value.mean()
        if self._noted is None:
            self._noted = self._nothing()
        noted = self._noted[_FIGURES.index(figure)]
        noted.clamp_(max=torch.where(value.to(noted.device).isfinite(), math.inf, float(step)))

    def note_weights(self, parameters: Iterable[nn.Parameter], *, step: int) -> None:
        """Take in, of a model's weights after a step, those that this process holds."""
        held = [p.detach() for p in parameters if p.is_floating_point()]
        held = [p.to_local() if isinstance(p, DTensor) else p for p in held]
        held = [p for p in held if p.numel()]
        if held:
            self.note(WEIGHTS, nn.utils.get_total_norm(held, norm_type=float("inf")), step=step)

    def read(self) -> tuple[str, int] | None:
        """Wait for what was noted, on every process, and begin anew; return what was not finite first, and when."""
        noted = self._nothing() if self._noted is None else self._noted
        self._noted = None
        steps = self._accelerator.gather(noted).view(-1, len(_FIGURES)).amin(0).tolist()
        first = min(steps)
        return None if math.isinf(first) else (_FIGURES[steps.index(first)], int(first))

    def _nothing(self) -> Tensor:
        # Float32, since MPS has no float64: exact up to step 2²⁴.
        return torch.full((len(_FIGURES),), math.inf, device=self._accelerator.device)
