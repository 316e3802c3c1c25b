"""Φ bound to a prepared model: its value, its terms, and once per optimizer step its gradient or its proximal step.

Beyond the shards of W₀, Ω and U, `add_gradient` and `proximal_step` need about six chunks of memory
(`arithmetic.CHUNK_ELEMENTS`), or six shards of the largest matrix where an engine divides it under γ; `value` needs
one more gradient while its backward runs. On an accelerator they take few kernels: `grouped`. Processes exchange sums
in one place, `_summed`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.autograd.function import once_differentiable

from hf_progressive.distributed.working_dtype import working_dtype
from hf_progressive.penalty.arithmetic import CHUNK_ELEMENTS, Restraint, total_of
from hf_progressive.penalty.grouped import PART_ELEMENTS, GroupedGradient, GroupedShrinking
from hf_progressive.penalty.shards import ParameterShard
from hf_progressive.penalty.step import PenaltyStep, ProximalStep
from hf_progressive.penalty.stepping import Rate, ZeroStepping, stepping_of


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
        self,
        model: nn.Module,
        parameters: Mapping[str, BoundParameter],
        *,
        ewc_lambda: float,
        gamma: float,
        apply: str = "gradient",
        fisher_mean: float = 1.0,
        constant: float = 0.0,
    ) -> None:
        self.ewc_lambda, self.gamma = ewc_lambda, gamma
        self._model, self._parameters, self._apply = model, dict(parameters), apply
        self._ewc_over_mean = ewc_lambda / fisher_mean if fisher_mean else 0.0
        self._constant = constant
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
        value: Tensor = _value(restraints, *self._strengths(factor), *parameters)
        return value + self._constant * factor

    def terms(self, *, factor: float = 1.0) -> dict[str, Tensor]:
        """Return the two weighted terms of Φ; see `InheritancePenalty.terms`."""
        sums = self._sums(factor, gradient_scale=None)
        return {"ewc": sums[0], "subspace": sums[1]}

    def add_gradient(self, *, factor: float = 1.0, gradient_scale: float = 1.0) -> PenaltyStep:
        """Add Φ's gradient to that of the trainable parameters; see `InheritancePenalty.add_gradient`."""
        if self._apply != "gradient":
            raise ValueError(
                'this penalty has apply="proximal": let proximal_step(optimizer) follow the optimizer\'s step'
            )
        if self._is_off(factor):
            zero = self._zero()
            return PenaltyStep(ewc=zero, subspace=zero, gradient_norm=zero, task_gradient_norm=zero)
        ewc, subspace, penalty_square, task_square = self._sums(factor, gradient_scale=gradient_scale)
        return PenaltyStep(
            ewc=ewc, subspace=subspace, gradient_norm=penalty_square.sqrt(), task_gradient_norm=task_square.sqrt()
        )

    def proximal_step(self, optimizer: Any, *, factor: float = 1.0) -> ProximalStep:
        """Take Φ's proximal step after a step of an optimizer that holds the model's own parameters.

        Each parameter's step is as long as its group's learning rate now is; parameters that the optimizer does not
        hold, or that are frozen, stay. Under DeepSpeed, or where a loss scaler may skip steps, `ProximalSteps` takes
        it at the right moment instead.

        Args:
            optimizer: A PyTorch optimizer, or Accelerate's wrapper of one.
            factor: A schedule's factor on both λ and γ.

        Returns:
            The terms, and how far the step went; the same on every process.

        Raises:
            ValueError: The penalty has apply="gradient", or the optimizer does not step the model's own parameters.
        """
        stepping = stepping_of(optimizer, self.parameters())
        rates, whole_step = stepping.rates_after(stepping.optimizers[0])
        if isinstance(stepping, ZeroStepping) or not whole_step:
            raise ValueError("DeepSpeed takes an optimizer's step in parts; use ProximalSteps(bound, optimizer)")
        sums = self.shrink({**dict.fromkeys(map(id, self.parameters().values())), **rates}, factor=factor)
        return proximal_step_of(sums, self.constant(factor))

    def shrink(self, rates: Mapping[int, Rate | None], *, factor: float = 1.0) -> Tensor:
        """Take the proximal step on some parameters, whose rates are given by the parameter's `id`.

        Where a rate is None the parameter stays, and only Φ is computed.

        Returns:
            (4,): the two terms, ‖what was moved‖² and ‖ΔW found‖², summed over these parameters and all processes.
        """
        if self._apply != "proximal":
            raise ValueError('this penalty has apply="gradient": call add_gradient() before the optimizer\'s step')
        if self._is_off(factor):
            return self._zero().expand(4)
        return self._everywhere(lambda bounds: self._shrink_local(bounds, rates, factor))

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters that Φ speaks of, by name."""
        return {name: bound.shard.parameter for name, bound in self._parameters.items()}

    def constant(self, factor: float) -> float:
        """Return the part of the λ term that is the same for all weights: 0 but for a sum of several anchors."""
        return self._constant * factor

    def held_bytes(self) -> int:
        """Return what this process holds of W₀, Ω and U, in bytes."""
        first = [bound.restraint for bound in self._parameters.values()]
        restraints = [each for restraint in first for each in (restraint, *restraint.further)]
        tensors = (t for r in restraints for t in (r.anchor, r.fisher, r.basis) if t is not None)
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)

    def _strengths(self, factor: float) -> tuple[float, float]:
        return self._ewc_over_mean * factor, self.gamma * factor

    def _is_off(self, factor: float) -> bool:
        return self._strengths(factor) == (0.0, 0.0)

    def _zero(self) -> Tensor:
        first = next(self._model.parameters())
        return torch.zeros((), dtype=working_dtype(first.dtype), device=first.device)

    def _require_same_parameters(self) -> None:
        parameters = dict(self._model.named_parameters())
        for name, bound in self._parameters.items():
            now = parameters.get(name)
            if now is not bound.shard.parameter or now.device != self._devices[name]:
                raise ValueError(f"{name} was replaced or moved since Φ was bound to the model; bind it again")

    def _sums(self, factor: float, *, gradient_scale: float | None) -> Tensor:
        # ewc, subspace, ‖∇Φ‖² and ‖task gradient‖² as one (4,) tensor; no scale: leave the gradients alone
        total = self._everywhere(lambda bounds: self._local_sums(bounds, factor, gradient_scale))
        if self._constant:
            total[0] += self.constant(factor)
        return total

    @torch.no_grad()
    def _everywhere(self, local: Callable[[Sequence[BoundParameter]], Tensor]) -> Tensor:
        self._require_same_parameters()
        total = local(self._whole)
        if self._divided:
            across = self._summed(local(self._divided))
            total = total.to(across) + across
        return total

    def _local_sums(self, bounds: Sequence[BoundParameter], factor: float, gradient_scale: float | None) -> Tensor:
        ewc_lambda, gamma = self._strengths(factor)
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
            shard, restraint = bound.shard, bound.restraint
            weights = shard.weights()
            if gradient_scale is None or not shard.parameter.requires_grad:
                sums.append(restraint.apply(weights, None, ewc_lambda, gamma, summed=self._summed))
            elif _in_chunks(weights, restraint, gamma):
                scale, gradient = gradient_scale, shard.gradient()
                sums.append(
                    restraint.apply(weights, gradient, ewc_lambda, gamma, gradient_scale=scale, summed=self._summed)
                )
                shard.store_gradient()
            else:
                with torch.autocast(weights.device.type, enabled=False):  # Φ keeps its own precision
                    grouped.add(restraint, weights, shard.gradient())
                waiting.append(shard)
                if sum(each.length for each in waiting) > PART_ELEMENTS:
                    finish()
        finish()
        return total_of(sums)

    def _shrink_local(
        self, bounds: Sequence[BoundParameter], rates: Mapping[int, Rate | None], factor: float
    ) -> Tensor:
        ewc_lambda, gamma = self._strengths(factor)
        grouped: dict[float | int, GroupedShrinking] = {}
        sums: list[Tensor] = []
        waiting: list[ParameterShard] = []  # weights that are not yet moved

        def finish() -> None:
            with_weights = (each.finish() for each in grouped.values())
            sums.extend(total for total in with_weights if total is not None)
            for shard in waiting:
                shard.store_weights()
            waiting.clear()

        for bound in bounds:
            shard, restraint = bound.shard, bound.restraint
            restrains = ewc_lambda > 0.0 and restraint.fisher is not None
            if id(shard.parameter) not in rates or not (restrains or (gamma > 0.0 and restraint.subspaces)):
                continue
            rate = rates[id(shard.parameter)]
            if rate is None or not shard.parameter.requires_grad:
                terms = restraint.apply(shard.weights(), None, ewc_lambda, gamma, summed=self._summed)
                sums.append(terms)  # with zeros for the norms
                continue
            weights = shard.weights_to_change()
            if _in_chunks(weights, restraint, gamma):
                sums.append(restraint.shrink(weights, rate, ewc_lambda, gamma, summed=self._summed))
                shard.store_weights()
                continue
            key = id(rate) if isinstance(rate, Tensor) else rate
            if key not in grouped:
                grouped[key] = GroupedShrinking(rate, ewc_lambda, gamma)
            with torch.autocast(weights.device.type, enabled=False):
                grouped[key].add(restraint, weights)
            waiting.append(shard)
            if sum(each.length for each in waiting) > PART_ELEMENTS:
                finish()
        finish()
        return total_of(sums)

    def _summed(self, local: Tensor) -> Tensor:
        # over the processes that hold the other shards, in place
        if local.numel():  # as empty on all of them
            dist.all_reduce(local, group=self._divided[0].shard.group)
        return local


def proximal_step_of(sums: Tensor, constant: float) -> ProximalStep:
    """Return the step whose sums `BoundPenalty.shrink` returned, with the constant part of the λ term."""
    ewc, subspace, moved, distance = sums.unbind()
    return ProximalStep(ewc=ewc + constant, subspace=subspace, moved_norm=moved.sqrt(), distance_norm=distance.sqrt())


def _in_chunks(weights: Tensor, restraint: Restraint, gamma: float) -> bool:
    # A CPU's way; elsewhere that of parameters which processes must form a product of, or which have several anchors.
    divided = gamma > 0.0 and bool(restraint.subspaces) and not restraint.is_whole
    return weights.device.type in CHUNK_ELEMENTS or divided or bool(restraint.further)


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


_value: Callable[..., Any] = _Value.apply
