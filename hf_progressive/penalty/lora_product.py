"""½λ Σ Ω (s·B·A)² bound to a prepared model: value and gradient to A and B, at most one layer's product at a time.

With ΔW = Σ_k s_k B_k A_k over a layer's active adapters and G = λ Ω ⊙ ΔW, the gradient is s_k G A_kᵀ to B_k and
s_k B_kᵀ G to A_k. ΔW and G are formed for some rows at a time.

Adapters are small. Where an engine divides them, their weights are put together by one sum over the processes, every
process computes the whole gradient, and adds the part that its own shards have.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch import distributed as dist

from hf_progressive.distributed.working_dtype import working_dtype
from hf_progressive.penalty.arithmetic import chunk_elements
from hf_progressive.penalty.shards import ParameterShard, shard_of
from hf_progressive.penalty.step import PenaltyStep


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapter:
    """One active adapter of a layer."""

    down: nn.Parameter
    """A: (r, in), of a convolution (r, in, ...)."""
    up: nn.Parameter
    """B: (out, r), of a convolution (out, r, 1, ...)."""
    scale: float
    """s: alpha / r, or alpha / √r."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptedWeight:
    """A weight of the base model to which adapters add, with its Ω."""

    fisher: Tensor
    """(out, in)."""
    adapters: tuple[Adapter, ...]

    def factors(self) -> list[nn.Parameter]:
        """List A and B of every adapter."""
        return [factor for adapter in self.adapters for factor in (adapter.down, adapter.up)]


class BoundLoraPenalty:
    """Φ on the products of a model's adapters, as its engine has prepared it; `LoraPenalty.bind` makes it.

    Where the adapters are divided, every process must call every method that computes.
    """

    gamma = 0.0

    def __init__(self, weights: Sequence[AdaptedWeight], *, ewc_lambda: float) -> None:
        self.ewc_lambda = ewc_lambda
        self._weights = weights
        factors = {id(factor): factor for weight in weights for factor in weight.factors()}
        self._shards = {key: shard_of(factor) for key, factor in factors.items()}

    def terms(self, *, factor: float = 1.0) -> dict[str, Tensor]:
        """Return `ewc`, λ·½ Σ Ω (s·B·A)², and `subspace`, which is 0."""
        ewc = self._value_and_gradients(self.ewc_lambda * factor)[0]
        return {"ewc": ewc, "subspace": torch.zeros_like(ewc)}

    @torch.no_grad()
    def add_gradient(self, *, factor: float = 1.0, gradient_scale: float = 1.0) -> PenaltyStep:
        """Add Φ's gradient to that of the trainable A and B; see `InheritancePenalty.add_gradient`."""
        if factor * self.ewc_lambda == 0.0:
            first = next(iter(self._shards.values())).parameter
            zero = torch.zeros((), dtype=working_dtype(first.dtype), device=first.device)
            return PenaltyStep(ewc=zero, subspace=zero, gradient_norm=zero, task_gradient_norm=zero)
        ewc, gradients = self._value_and_gradients(self.ewc_lambda * factor)
        penalty_square, task_square, divided_square = (torch.zeros_like(ewc) for _ in range(3))
        group = None
        for key, slope in gradients.items():
            shard = self._shards[key]
            if not shard.parameter.requires_grad:
                continue
            penalty_square += slope.square().sum()
            found = shard.gradient()
            square = (found.to(slope.dtype) / gradient_scale).square().sum()
            if shard.is_whole:
                task_square += square
            else:
                divided_square, group = divided_square + square, shard.group
            part = slope.reshape(-1)[shard.start : shard.start + shard.length]
            found.add_((part * gradient_scale).to(found.dtype))
            shard.store_gradient()
        if group is not None:
            dist.all_reduce(divided_square, group=group)
        return PenaltyStep(
            ewc=ewc,
            subspace=torch.zeros_like(ewc),
            gradient_norm=penalty_square.sqrt(),
            task_gradient_norm=(task_square + divided_square).sqrt(),
        )

    def held_bytes(self) -> int:
        """Return what this process holds of Ω, in bytes."""
        return sum(weight.fisher.untyped_storage().nbytes() for weight in self._weights)

    @torch.no_grad()
    def _value_and_gradients(self, ewc_lambda: float) -> tuple[Tensor, dict[int, Tensor]]:
        # Φ, and the whole gradient of every factor by its id
        whole = _whole_weights(self._shards)
        total: Tensor | None = None
        gradients: dict[int, Tensor] = {}
        for weight in self._weights:
            downs = [whole[id(adapter.down)].flatten(1) for adapter in weight.adapters]
            ups = [whole[id(adapter.up)].flatten(1) * adapter.scale for adapter in weight.adapters]
            value, *slopes = product_gradient(torch.cat(downs), torch.cat(ups, 1), weight.fisher, ewc_lambda)
            total = value if total is None else total + value
            ranks = [len(down) for down in downs]
            of_downs, of_ups = (torch.split(slope, ranks, dim) for dim, slope in enumerate(slopes))
            for adapter, of_down, of_up in zip(weight.adapters, of_downs, of_ups, strict=True):
                for factor, slope in ((adapter.down, of_down), (adapter.up, of_up * adapter.scale)):
                    held = gradients.get(id(factor))  # of factors that layers share
                    gradients[id(factor)] = slope if held is None else held + slope
        assert total is not None
        return total, gradients


def product_gradient(down: Tensor, up: Tensor, fisher: Tensor, ewc_lambda: float) -> tuple[Tensor, Tensor, Tensor]:
    """Compute λ·½ Σ Ω (B·A)² and its gradients to A (R, in) and B (out, R); Ω is (out, in).

    >>> down, up = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0]])
    >>> [each.tolist() for each in product_gradient(down, up, torch.ones(1, 2), 2.0)]  # 3² + 6²
    [45.0, [[18.0, 36.0]], [[30.0]]]
    """
    rows = max(1, chunk_elements(down.device) // down.shape[1])
    value, down_slope, up_slopes = down.new_zeros(()), torch.zeros_like(down), []
    with torch.autocast(down.device.type, enabled=False):
        for some, omega in zip(torch.split(up, rows), torch.split(fisher, rows), strict=True):
            product = some @ down  # (rows, in)
            slope = product * omega.to(product) * ewc_lambda
            value = value + 0.5 * (slope * product).sum()
            up_slopes.append(slope @ down.T)
            down_slope.addmm_(some.T, slope)
    return value, down_slope, torch.cat(up_slopes)


def _whole_weights(shards: dict[int, ParameterShard]) -> dict[int, Tensor]:
    # in at least float32; of divided ones by one sum of flat tensors that are zero but for this process's part
    whole, divided = dict[int, Tensor](), dict[int, Tensor]()
    for key, shard in shards.items():
        held = shard.weights()
        held = held.to(working_dtype(held.dtype))
        if shard.is_whole:
            whole[key] = held.view(shard.shape)
            continue
        count = torch.Size(shard.shape).numel()
        divided[key] = held.new_zeros(count)
        divided[key][shard.start : shard.start + shard.length] = held
    if divided:
        together = torch.cat(list(divided.values()))
        dist.all_reduce(together, group=next(shard.group for shard in shards.values() if not shard.is_whole))
        parts = torch.split(together, [len(each) for each in divided.values()])
        whole |= {key: part.view(shards[key].shape) for key, part in zip(divided, parts, strict=True)}
    return whole
