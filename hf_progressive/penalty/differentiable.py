"""Φ as a value with a gradient."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hf_progressive.penalty.restraint import Restraint


def total_of(sums: Sequence[Tensor]) -> Tensor:
    """Add up sums of several parameters.

    Args:
        sums: Each (4,), on any device.

    Returns:
        (4,), where the first is; zeros where there are none.
    """
    return torch.stack([each.to(sums[0]) for each in sums]).sum(0) if sums else torch.zeros(4)


class _Value(torch.autograd.Function):
    """Φ as a scalar whose backward forms the gradient anew, so that no graph is kept."""

    @staticmethod
    def forward(ctx: Any, restraints: list[Restraint], ewc_lambda: float, gamma: float, *parameters: Tensor) -> Tensor:
        ctx.restraints, ctx.ewc_lambda, ctx.gamma = restraints, ewc_lambda, gamma
        ctx.save_for_backward(*parameters)
        pairs = zip(restraints, parameters, strict=True)
        return total_of([r.apply(p.view(-1), None, ewc_lambda, gamma) for r, p in pairs])[:2].sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        gradients: list[Tensor | None] = []
        for restraint, parameter, needed in zip(
            ctx.restraints, ctx.saved_tensors, ctx.needs_input_grad[3:], strict=True
        ):
            gradient = torch.zeros_like(parameter) if needed else None
            if gradient is not None:
                scale = grad_output.to(parameter.device)
                restraint.apply(parameter.view(-1), gradient.view(-1), ctx.ewc_lambda, ctx.gamma, gradient_scale=scale)
            gradients.append(gradient)
        return None, None, None, *gradients


differentiable_value: Callable[..., Any] = _Value.apply
