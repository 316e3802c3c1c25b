"""Muon for the matrices inside the layers and AdamW for everything else, as one optimizer.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) replaces the averaged gradient B of a matrix by
a matrix with the same singular vectors and with singular values near 1, found by five Newton-Schulz iterations

    X₀ = B / ‖B‖_F,      X_{k+1} = a·X_k + (b·A + c·A²)·X_k,      A = X_k·X_kᵀ,                                     (1)

    W ← W − η·w·W − η·0.2·√max(rows, columns) · X₅.                                                                (2)

The last factor gives a step the root mean square that AdamW's steps have (Liu et al., arXiv 2502.16982, section 2.2),
so that one learning rate η and one weight decay w serve both. Coefficients, momentum and scale are those of
`torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"`. What differs: matrices that one weight stores side by side
count one by one, equal shapes are taken together, sharded matrices are gathered for (1), and bfloat16 is used where it
is fast, which is on GPUs.

A step costs 20·m²·n + 10·m³ FLOPs for a matrix of m × n, m ≤ n, whatever its batch.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate
from torch.optim.adamw import adamw
from torch.optim.optimizer import Optimizer
from transformers import Trainer

from hf_progressive.config import TrainingConfig
from hf_progressive.distributed.working_dtype import working_dtype
from hf_progressive.growth.hidden_matrices import Parts, hidden_matrices

NEEDS_MATRICES = (
    "Muon needs whole matrices, and DeepSpeed and FSDP 1 hand flattened ones to the optimizer; launch with FSDP 2"
    " (fsdp_version: 2) or DDP, or train with AdamW"
)
"""Why a launch cannot train with Muon."""

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of equation 1
_ITERATIONS = 5
_EPS = 1e-7
_MOMENTUM = 0.95  # Nesterov's
_ADAMW_RMS = 0.2  # of AdamW's steps, over the learning rate
_ENTRIES_AT_ONCE = 2**25


def newton_schulz(matrices: Tensor) -> Tensor:
    """Bring the singular values of each of some matrices near 1, by equation 1; zeros stay zeros.

    Args:
        matrices: (n, rows, columns).

    Returns:
        The same shape and dtype. Singular values of at least 2e-3 of the norm end between .68 and 1.21.
    """
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    wide = matrices.mT if tall else matrices
    x: Tensor = wide / wide.norm(dim=(-2, -1), keepdim=True).clamp(min=_EPS)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class MuonWithAdamW(Optimizer):
    """Muon for some parameters, AdamW for the others.

    The groups of AdamW come first, so that the rate that a schedule reports is AdamW's; the last group is Muon's, with
    `use_muon` true. Muon keeps a `momentum_buffer` per matrix, AdamW what `torch.optim.AdamW` keeps. FSDP2's sharded
    parameters stay so, with their state; each process gathers one batch of matrices after the other and computes (1)
    for all of them. Parameters that are flattened, as by FSDP1 and DeepSpeed ZeRO, cannot be trained.

    Args:
        groups: AdamW's parameter groups.
        matrices: What Muon trains, each with two dimensions, and how each divides into matrices.
        lr: AdamW's learning rate.
        muon_lr: Muon's learning rate, which equation 2 scales.
        weight_decay: Muon's decoupled weight decay, multiplied by `muon_lr`.
        betas: AdamW's decay rates.
        eps: AdamW's ε.
        fused: Whether AdamW runs as one kernel; None lets PyTorch choose.

    Raises:
        ValueError: A matrix has not two dimensions, or its parts are not its length.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        matrices: Sequence[tuple[nn.Parameter, Parts | None]],
        *,
        lr: float,
        muon_lr: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        fused: bool | None = None,
    ) -> None:
        for parameter, parts in matrices:
            shape = tuple(parameter.shape)
            if len(shape) != 2 or (parts is not None and sum(parts.lengths) != shape[parts.dimension]):
                raise ValueError(f"Muon trains matrices; a parameter of shape {shape} with {parts} is none")
        # Not in the state: a grown checkpoint's matrices divide as its own model says.
        self._parts = [parts for _, parts in matrices]
        adam = {"lr": lr, "betas": betas, "eps": eps, "fused": fused, "use_muon": False}
        muon = {"lr": muon_lr, "momentum": _MOMENTUM, "weight_decay": weight_decay, "use_muon": True}
        of_muon = {**muon, "params": [parameter for parameter, _ in matrices]}
        super().__init__([*({**adam, **group} for group in groups), of_muon], {"weight_decay": 0.0})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take a step; parameters without a gradient stay."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if not group["use_muon"]:
                self._step_of_adamw(group)
                continue
            for batch, parts in _batches(group["params"], self._parts):
                self._step_of_muon(group, batch, parts)
        return loss

    def _step_of_adamw(self, group: dict[str, Any]) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        states = [self._adam_state(parameter, group) for parameter in parameters]
        adamw(
            parameters,
            [parameter.grad for parameter in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=group["fused"],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _adam_state(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            # Where PyTorch's own AdamW has it: with the kernel that reads it.
            device = parameter.device if group["fused"] else "cpu"
            state["step"] = torch.zeros((), dtype=torch.float32, device=device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        return state

    def _step_of_muon(self, group: dict[str, Any], batch: list[nn.Parameter], parts: Parts | None) -> None:
        weights, gradients = [_local(p) for p in batch], [_local(p.grad) for p in batch]
        for parameter in batch:
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        averages = [_local(self.state[parameter]["momentum_buffer"]) for parameter in batch]
        torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, averages, group["momentum"])  # Nesterov's
        steps = _scaled_steps([_gathered(update, p) for update, p in zip(ahead, batch, strict=True)], parts)
        own = [_own_shard(step.to(p.dtype), p) for step, p in zip(steps, batch, strict=True)]
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(weights, own, alpha=-group["lr"])


def muon_optimizer(model: nn.Module, trainer: Trainer, muon_lr: float) -> MuonWithAdamW:
    """Build the optimizer of a trainer's model: AdamW's groups and options are those that Trainer would take."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    matrices = {name: parts for name, parts in hidden_matrices(model).items() if name in named}
    decayed = set(trainer.get_decay_parameter_names(model))
    others = [name for name in named if name not in matrices]
    _, options = trainer.get_optimizer_cls_and_kwargs(trainer.args, model)
    return MuonWithAdamW(
        [
            {"params": [named[name] for name in others if name in decayed], "weight_decay": trainer.args.weight_decay},
            {"params": [named[name] for name in others if name not in decayed], "weight_decay": 0.0},
        ],
        [(named[name], parts) for name, parts in matrices.items()],
        muon_lr=muon_lr,
        weight_decay=trainer.args.weight_decay,
        **{name: options[name] for name in ("lr", "betas", "eps", "fused") if name in options},
    )


def muon_peak(training: TrainingConfig, peak: float) -> float | None:
    """Return Muon's peak rate in a run whose AdamW has the given one; None without Muon.

    >>> muon_peak(TrainingConfig(optimizer="muon", learning_rate=1e-3, muon_learning_rate=5e-3), 2e-3)
    0.01
    """
    if training.optimizer != "muon":
        return None
    return peak * ((training.muon_learning_rate or training.learning_rate) / training.learning_rate)


def _batches(
    parameters: Sequence[nn.Parameter], parts: Sequence[Parts | None]
) -> Iterator[tuple[list[nn.Parameter], Parts | None]]:
    # Matrices that are alike, as many as are taken at once.
    alike: dict[Any, list[nn.Parameter]] = {}
    for parameter, divided in zip(parameters, parts, strict=True):
        if parameter.grad is not None:
            key = (tuple(parameter.shape), divided, parameter.dtype, parameter.device)
            alike.setdefault(key, []).append(parameter)
    for (shape, divided, _, _), members in alike.items():
        most = max(1, _ENTRIES_AT_ONCE // math.prod(shape))
        for first in range(0, len(members), most):
            yield members[first : first + most], divided


def _scaled_steps(updates: list[Tensor], parts: Parts | None) -> Tensor:
    # (n, rows, columns): the second step of equation 2 over η, of n whole matrices.
    stacked = torch.stack(updates)
    pieces = [stacked] if parts is None else _divided(stacked, parts)
    accurate = working_dtype(stacked.dtype)
    steps = [newton_schulz(p).to(accurate).mul_(_ADAMW_RMS * math.sqrt(max(p.shape[1:]))) for p in pieces]
    return steps[0] if parts is None else _joined(steps, parts)


def _divided(stacked: Tensor, parts: Parts) -> list[Tensor]:
    dim = 1 + parts.dimension
    before, after = stacked.shape[:dim], stacked.shape[dim + 1 :]
    grouped = stacked.reshape(*before, parts.groups, -1, *after)
    pieces = torch.split(grouped, [length // parts.groups for length in parts.lengths], dim + 1)
    return [piece.flatten(dim, dim + 1) for piece in pieces]


def _joined(steps: list[Tensor], parts: Parts) -> Tensor:
    dim = 1 + parts.dimension
    before, after = steps[0].shape[:dim], steps[0].shape[dim + 1 :]
    return torch.cat([s.reshape(*before, parts.groups, -1, *after) for s in steps], dim + 1).flatten(dim, dim + 1)


def _local(tensor: Any) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _gathered(update: Tensor, parameter: Tensor) -> Tensor:
    # The whole of it, in the dtype of the products.
    update = update.to(_dtype_of_products(update.dtype, update.device.type))
    if not isinstance(parameter, DTensor):
        return update
    mesh, placements = parameter.device_mesh, parameter.placements
    shape, stride = parameter.shape, parameter.stride()
    return DTensor.from_local(update, mesh, placements, run_check=False, shape=shape, stride=stride).full_tensor()


def _own_shard(step: Tensor, parameter: Tensor) -> Tensor:
    if not isinstance(parameter, DTensor):
        return step
    mesh = parameter.device_mesh
    whole = DTensor.from_local(step, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return whole.redistribute(placements=parameter.placements).to_local()


@cache
def _dtype_of_products(dtype: torch.dtype, device: str) -> torch.dtype:
    if device == "cuda" and dtype != torch.float64 and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return working_dtype(dtype)
