"""Φ's proximal step after every step of an optimizer, whichever engine takes it.

Under Adam a gradient λΩΔW is divided by √v̂, and where v̂ ≈ Ω half of the weighting is lost; its pull also depends on
β₂ and on clipping. The proximal step stands outside of the optimizer, as AdamW's weight decay does:

    W ← argmin_W ‖W − V‖² / 2η + Φ(W)                                                                               (1)

from the optimizer's V, η being the parameter's own learning rate at that step. Φ is quadratic, so (1) has closed
forms, stable at any λ and γ. With ΔV = V − W₀ and Ω̄, the mean of Ω over all its entries above 0,

    W ← W₀ + ΔV / (1 + η·λ·Ω/Ω̄)                   for λ, entry by entry,                                           (2)
    W ← W₀ + PΔV + (I − P)ΔV / (1 + 2η·γ)         for γ on the outside; inside, P and I − P change places.          (3)

Each is exact alone. With both, (2) is taken and then (3) from where it ends: the exact step of the sum would need one
(r, r) system for each column, and differs by a part of order η²·λ·γ of ΔW. The schedule's factor multiplies λ and γ.
(1) is the proximal operator (Parikh and Boyd 2014, section 1.1); where Φ is λ/2·‖W‖², (2) is decoupled weight decay
(Loshchilov and Hutter 2019, arXiv 1711.05101) to first order in η.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hf_progressive.penalty.bound import BoundPenalty, proximal_step_of
from hf_progressive.penalty.step import ProximalStep
from hf_progressive.penalty.stepping import stepping_of


class ProximalSteps:
    """Takes Φ's proximal step within every step of an optimizer, until it is removed.

    Nothing is read from the device. A step that a loss scaler skips is followed by none.

    Args:
        bound: Φ on the prepared model, with apply="proximal".
        optimizer: A PyTorch optimizer, or what Accelerate or DeepSpeed ZeRO made of it.
        factor: Returns the schedule's factor on λ and γ at the step under way.
        note: Is told of each step and its factor.

    Raises:
        ValueError: The optimizer does not step the model's own weights, nor master weights that can be reached.
    """

    def __init__(
        self,
        bound: BoundPenalty,
        optimizer: Any,
        *,
        factor: Callable[[], float] = lambda: 1.0,
        note: Callable[[ProximalStep, float], None] = lambda step, factor: None,
    ) -> None:
        parameters = bound.parameters()
        self._bound, self._factor, self._note = bound, factor, note
        self._stepping = stepping_of(optimizer, parameters)
        stepped = self._stepping.parameters()
        self._still = [id(p) for p in parameters.values() if id(p) not in stepped]
        self._sums: Tensor | None = None  # of the parts of an optimizer's step that are done
        self._handles = [each.register_step_post_hook(self._after) for each in self._stepping.optimizers]

    def remove(self) -> None:
        """Let the optimizer step alone again."""
        for handle in self._handles:
            handle.remove()

    def _after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        factor = self._factor()
        rates, is_last = self._stepping.rates_after(optimizer)
        sums = self._bound.shrink({**rates, **(dict.fromkeys(self._still) if is_last else {})}, factor=factor)
        self._sums = sums if self._sums is None else self._sums.to(sums) + sums
        if is_last:
            self._note(proximal_step_of(self._sums, self._bound.constant(factor)), factor)
            self._sums = None
