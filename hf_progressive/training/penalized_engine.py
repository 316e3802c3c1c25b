"""DeepSpeed's engine with Φ in it: the engine takes the optimizer's step inside the backward pass."""

from collections.abc import Callable
from typing import Any

from accelerate.utils.deepspeed import DeepSpeedEngineWrapper  # `accelerate.utils` has it only beside DeepSpeed
from torch import Tensor


class PenalizedEngine(DeepSpeedEngineWrapper):
    """Accelerate's wrapper, with Φ added where its backward has averaged the gradient and not yet taken the step.

    Args:
        engine: DeepSpeed's engine.
        add_penalty_gradient: Adds Φ's gradient to the averaged one.
    """

    def __init__(self, engine: Any, add_penalty_gradient: Callable[[], None]) -> None:
        super().__init__(engine)
        self._add_penalty_gradient = add_penalty_gradient

    def backward(self, loss: Tensor, sync_gradients: bool = True, **kwargs: Any) -> None:
        """Run the backward pass; where gradients are complete, add Φ's and take the optimizer's step.

        Args:
            loss: The micro-batch's loss.
            sync_gradients: Whether this is the step's last micro-batch.
            **kwargs: As for the engine's `backward`.
        """
        self.engine.set_gradient_accumulation_boundary(is_boundary=sync_gradients)
        self.engine.backward(loss, **kwargs)
        if sync_gradients:
            self._add_penalty_gradient()
            self.engine.step()
