"""What each step of an optimizer moved, and at which rate, also where DeepSpeed has flattened the weights.

A hook after a PyTorch optimizer's step runs only when there was one: not after a step that a loss scaler skips. Under
ZeRO it runs between the step on the float32 master weights and the copy to the model's own, once for each of the
optimizer's groups; so what is changed there is changed in both.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

Rate = float | Tensor
"""A learning rate; a tensor where the optimizer keeps one, or where a loss scaler's answer is still on the device."""


class Stepping(Protocol):
    """An optimizer as an engine has prepared it."""

    optimizers: Sequence[torch.optim.Optimizer]
    """PyTorch's optimizers, whose step it is."""

    def parameters(self) -> Collection[int]:
        """Return `id` of each parameter of the model that the optimizer steps."""

    def rates_after(self, optimizer: torch.optim.Optimizer) -> tuple[dict[int, Rate], bool]:
        """Return the rates of the parameters just stepped, by `id`, and whether that ends the optimizer's step."""


class PlainStepping(Stepping):
    """One process, DDP, FSDP2: the groups hold the model's own parameters."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizers = [optimizer]

    def parameters(self) -> Collection[int]:
        return {id(parameter) for group in self.optimizers[0].param_groups for parameter in group["params"]}

    def rates_after(self, optimizer: torch.optim.Optimizer) -> tuple[dict[int, Rate], bool]:
        rates: dict[int, Rate] = {}
        for group in optimizer.param_groups:
            rate = _rate(optimizer, group)
            rates |= {id(parameter): rate for parameter in group["params"]}
        return rates, True


class ZeroStepping(Stepping):
    """DeepSpeed ZeRO: each step moves one flat master tensor, which stands for a list of parameters."""

    def __init__(self, zero: Any) -> None:
        if getattr(zero, "swap_optimizer", False) or getattr(zero, "zenflow", False):
            raise ValueError(
                'apply="proximal" cannot reach master weights that DeepSpeed swaps to NVMe or steps by ZenFlow; '
                'use apply="gradient", or another offload'
            )
        self._zero = zero
        backup = getattr(zero, "backup_optimizer", None)  # of a part that is not offloaded
        self.optimizers = [zero.optimizer, *([] if backup is None else [backup])]

    def parameters(self) -> Collection[int]:
        return {id(parameter) for parameters, _ in self._groups() for parameter in parameters}

    def rates_after(self, optimizer: torch.optim.Optimizer) -> tuple[dict[int, Rate], bool]:
        stepped = {id(master): _rate(optimizer, g) for g in optimizer.param_groups for master in g["params"]}
        groups = self._groups()
        rates: dict[int, Rate] = {}
        for parameters, master in groups:
            if id(master) in stepped:
                rates |= {id(parameter): stepped[id(master)] for parameter in parameters}
        return rates, id(groups[-1][1]) in stepped

    def _groups(self) -> list[tuple[list[nn.Parameter], Tensor]]:
        # in the order in which the engine steps them
        zero = self._zero
        if hasattr(zero, "fp32_partitioned_groups_flat"):  # ZeRO-3
            return list(zip(zero.fp16_groups, zero.fp32_partitioned_groups_flat, strict=True))
        return list(zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True))


def stepping_of(optimizer: Any, parameters: Mapping[str, nn.Parameter]) -> Stepping:
    """Return how an optimizer, in the wrappers of its engine, steps the parameters of a model.

    Raises:
        ValueError: It steps none of the parameters that are trained: it is another model's, or its engine keeps master
            weights that cannot be reached.
    """
    while isinstance(optimizer, AcceleratedOptimizer):
        optimizer = optimizer.optimizer
    stepping: Stepping | None = None
    if hasattr(optimizer, "fp32_partitioned_groups_flat") or hasattr(optimizer, "single_partition_of_fp32_groups"):
        stepping = ZeroStepping(optimizer)
    elif isinstance(optimizer, torch.optim.Optimizer):
        stepping = PlainStepping(optimizer)
    trained = {id(parameter) for parameter in parameters.values() if parameter.requires_grad}
    if stepping is None or (trained and trained.isdisjoint(stepping.parameters())):
        raise ValueError(
            f"apply=\"proximal\": {type(optimizer).__name__} does not step the model's own weights, nor ZeRO's master "
            'weights; use apply="gradient"'
        )
    return stepping


def _rate(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> Rate:
    rate: Rate = group["lr"]
    # Fused optimizers ask the loss scaler on the device whether to step, and their step returns either way
    # (`_step_supports_amp_scaling`, https://docs.pytorch.org/docs/stable/amp.html).
    overflowed = getattr(optimizer, "found_inf", None)
    return rate if overflowed is None else rate * (1.0 - overflowed)
