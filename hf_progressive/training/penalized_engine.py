"""DeepSpeed's engine with Φ between the backward and the optimizer's step."""

from collections.abc import Callable
from typing import Any

from accelerate.utils.deepspeed import DeepSpeedEngineWrapper  # `accelerate.utils` has it only beside DeepSpeed
from torch import Tensor


class PenalizedEngine(DeepSpeedEngineWrapper):
    """Accelerate's wrapper, whose backward takes the optimizer's step, with Φ added before it."""

    def __init__(self, engine: Any, add_penalty_gradient: Callable[[], None]) -> None:
        super().__init__(engine)
        self._add_penalty_gradient = add_penalty_gradient

    def backward(self, loss: Tensor, sync_gradients: bool = True, **kwargs: Any) -> None:
        self.engine.set_gradient_accumulation_boundary(is_boundary=sync_gradients)
        self.engine.backward(loss, **kwargs)
        if sync_gradients:
            self._add_penalty_gradient()
            self.engine.step()
