"""Φ bound to a prepared model: its value, its terms, and its gradient once per optimizer step.

Beyond the shards of W₀, Ω and U, `add_gradient` needs about six chunks of memory (`arithmetic.CHUNK_ELEMENTS`), or six
shards of the largest matrix where an engine divides it under γ; `value` needs one more gradient while its backward
runs. On an accelerator `add_gradient` takes few kernels: `grouped`. Processes exchange sums in one place, `_summed`.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.autograd.function import once_differentiable

from hf_progressive.distributed.working_dtype import working_dtype
from hf_progressive.penalty.arithmetic import CHUNK_ELEMENTS, Restraint
from hf_progressive.penalty.grouped import PART_ELEMENTS, GroupedGradient
from hf_progressive.penalty.shards import ParameterShard


@dataclasses.dataclass(frozen=True, kw_only=True)
class PenaltyStep:
    """What Φ was, and did to the gradient, at one optimizer step."""

    ewc: Tensor
    """λ·½ Σ Ω_ii ΔW_i², a scalar."""
    subspace: Tensor
    """γ·‖(I − UUᵀ)ΔW‖_F², a scalar."""
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
        task = self.task_gradient_norm
        return torch.where(task > 0, self.gradient_norm / task.clamp_min(torch.finfo(task.dtype).tiny), 0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoundParameter:
    """A parameter's shard, and what restrains it."""

    shard: ParameterShard
    restraint: Restraint


class BoundPenalty:
    """Φ for one model as its engine has prepared it; `InheritancePenalty.bind` makes it.

    It holds this process's shards of W₀ and Ω, and of U what they need, by the names of `model.named_parameters()`.
    The model's parameters must stay the same objects on the same devices. Where the model is divided, every process
    must call every method that computes.
    """

    def __init__(
        self, model: nn.Module, parameters: Mapping[str, BoundParameter], *, ewc_lambda: float, gamma: float
    ) -> None:
        self.ewc_lambda, self.gamma = ewc_lambda, gamma
        self._model, self._parameters = model, dict(parameters)
        self._devices = {name: bound.shard.parameter.device for name, bound in parameters.items()}
        self._whole = [bound for bound in parameters.values() if bound.shard.is_whole]
        self._divided = [bound for bound in parameters.values() if not bound.shard.is_whole]

    def value(self, *, factor: float = 1.0) -> Tensor:
        """Return Φ with a gradient with respect to the parameters; see `InheritancePenalty.value`."""
        self._require_same_parameters()
        if self._divided:
            raise ValueError("value() needs whole parameters; for a model that an engine divides use add_gradient()")
        restraints = [bound.restraint for bound in self._whole]
        parameters = [bound.shard.parameter for bound in self._whole]
        value: Tensor = _value(restraints, self.ewc_lambda * factor, self.gamma * factor, *parameters)
        return value

    def terms(self, *, factor: float = 1.0) -> dict[str, Tensor]:
        """Return the two weighted terms of Φ; see `InheritancePenalty.terms`."""
        sums = self._sums(factor, gradient_scale=None)
        return {"ewc": sums[0], "subspace": sums[1]}

    def add_gradient(self, *, factor: float = 1.0, gradient_scale: float = 1.0) -> PenaltyStep:
        """Add Φ's gradient to that of the trainable parameters; see `InheritancePenalty.add_gradient`."""
        if factor * self.ewc_lambda == 0.0 and factor * self.gamma == 0.0:
            first = next(self._model.parameters())
            zero = torch.zeros((), dtype=working_dtype(first.dtype), device=first.device)
            return PenaltyStep(ewc=zero, subspace=zero, gradient_norm=zero, task_gradient_norm=zero)
        ewc, subspace, penalty_square, task_square = self._sums(factor, gradient_scale=gradient_scale)
        return PenaltyStep(
            ewc=ewc, subspace=subspace, gradient_norm=penalty_square.sqrt(), task_gradient_norm=task_square.sqrt()
        )

    def held_bytes(self) -> int:
        """Return what this process holds of W₀, Ω and U, in bytes."""
        restraints = (bound.restraint for bound in self._parameters.values())
        tensors = (t for r in restraints for t in (r.anchor, r.fisher, r.basis) if t is not None)
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)

    def _require_same_parameters(self) -> None:
        parameters = dict(self._model.named_parameters())
        for name, bound in self._parameters.items():
            now = parameters.get(name)
            if now is not bound.shard.parameter or now.device != self._devices[name]:
                raise ValueError(f"{name} was replaced or moved since Φ was bound to the model; bind it again")

    @torch.no_grad()
    def _sums(self, factor: float, *, gradient_scale: float | None) -> Tensor:
        # ewc, subspace, ‖∇Φ‖² and ‖task gradient‖² as one (4,) tensor; no scale: leave the gradients alone
        self._require_same_parameters()
        total = self._local_sums(self._whole, factor, gradient_scale)
        if self._divided:
            across = self._summed(self._local_sums(self._divided, factor, gradient_scale))
            total = total.to(across) + across
        return total

    def _local_sums(self, bounds: Collection[BoundParameter], factor: float, gradient_scale: float | None) -> Tensor:
        ewc_lambda, gamma = self.ewc_lambda * factor, self.gamma * factor
        grouped = GroupedGradient(ewc_lambda, gamma, gradient_scale or 1.0)
        sums: list[Tensor] = []
        waiting: list[ParameterShard] = []  # gradients that are not yet complete

        def finish() -> None:
            total = grouped.finish()
            if total is not None:
                sums.append(total)
            for shard in waiting:
                shard.store_gradient()
            waiting.clear()

        for bound in bounds:
            shard, restraint, projection = bound.shard, bound.restraint, None
            weights = shard.weights()
            if gamma > 0.0 and restraint.basis is not None and not shard.is_whole:
                projection = self._summed(restraint.projection(weights))
            if gradient_scale is None or not shard.parameter.requires_grad:
                sums.append(restraint.apply(weights, None, ewc_lambda, gamma, projection=projection))
            elif weights.device.type in CHUNK_ELEMENTS or projection is not None:
                scale, gradient = gradient_scale, shard.gradient()
                sums.append(
                    restraint.apply(weights, gradient, ewc_lambda, gamma, gradient_scale=scale, projection=projection)
                )
                shard.store_gradient()
            else:
                with torch.autocast(weights.device.type, enabled=False):  # Φ keeps its own precision
                    grouped.add(restraint, weights, shard.gradient())
                waiting.append(shard)
                if sum(each.length for each in waiting) > PART_ELEMENTS:
                    finish()
        finish()
        return _total(sums)

    def _summed(self, local: Tensor) -> Tensor:
        # over the processes that hold the other shards, in place
        if local.numel():  # as empty on all of them
            dist.all_reduce(local, group=self._divided[0].shard.group)
        return local


def _total(sums: Sequence[Tensor]) -> Tensor:
    # of (4,) each, on any device: where the first is
    return torch.stack([each.to(sums[0]) for each in sums]).sum(0) if sums else torch.zeros(4)


class _Value(torch.autograd.Function):
    """Φ as a scalar whose backward forms the gradient anew, so that no graph is kept."""

    @staticmethod
    def forward(ctx: Any, restraints: list[Restraint], ewc_lambda: float, gamma: float, *parameters: Tensor) -> Tensor:
        ctx.restraints, ctx.ewc_lambda, ctx.gamma = restraints, ewc_lambda, gamma
        ctx.save_for_backward(*parameters)
        pairs = zip(restraints, parameters, strict=True)
        return _total([r.apply(p.view(-1), None, ewc_lambda, gamma) for r, p in pairs])[:2].sum()

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


_value: Callable[..., Any] = _Value.apply
