"""The inheritance penalty Φ: what holds a child near its parent, as a closed form.

    Φ(W) = λ·½ Σ_i Ω_ii ΔW_i² + γ·‖(I − U Uᵀ) ΔW‖_F²,    ΔW = W − W₀

W₀ is the anchor, the parent's weights in the child's coordinates; Ω the diagonal of the parent's Fisher information
(elastic weight consolidation, Kirkpatrick et al. 2017, arXiv 1612.00796, eq. 3); U an orthonormal basis of a subspace
of each weight matrix's *output* side, ΔW being taken as (out, in). Tr((I − P) ΔW ΔWᵀ (I − P)ᵀ) with P = U Uᵀ is that
same Frobenius norm.

Φ is quadratic, so nothing needs a graph: value and gradient, λ Ω ⊙ ΔW + 2γ (ΔW − U (Uᵀ ΔW)), are formed together,
chunk by chunk, in at least float32 whatever the parameters' dtype. Beyond W₀, Ω and U, `add_gradient` needs about six
chunks of memory (`CHUNK_ELEMENTS`), `value` one more gradient while its backward runs.
"""

import dataclasses
import difflib
import hashlib
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

CHUNK_ELEMENTS = {"cpu": 1 << 17}
"""Elements worked on at once, by device type: what fits a core's cache on a CPU."""
_CHUNK_ELEMENTS_ELSEWHERE = 1 << 24  # an accelerator wants few, large kernels

_ORTHONORMALITY_LIMIT = 1e-3
_NAMES_SHOWN = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class PenaltyStep:
    """What Φ was, and did to the gradient, at one optimizer step."""

    ewc: Tensor
    """λ·½ Σ Ω_ii ΔW_i², a scalar."""
    subspace: Tensor
    """γ·‖(I − UUᵀ)ΔW‖_F², a scalar."""
    gradient_norm: Tensor
    """Euclidean norm of Φ's gradient over the trainable parameters."""
    task_gradient_norm: Tensor
    """Norm of the gradient found there, over the parameters Φ speaks of."""

    @property
    def value(self) -> Tensor:
        """Φ, the sum of its two terms."""
        return self.ewc + self.subspace

    @property
    def gradient_ratio(self) -> Tensor:
        """Norm of Φ's gradient over that of the task; 0 where the task has none."""
        task = self.task_gradient_norm
        return torch.where(task > 0, self.gradient_norm / task.clamp_min(torch.finfo(task.dtype).tiny), 0.0)


class InheritancePenalty:
    """Φ for a model, from plain mappings of tensors.

    Mappings are read one tensor at a time and may be lazy. Names are those of `model.named_parameters()`; of tied
    parameters one name is enough. A parameter that has no entry in `fisher` takes no part in the λ term, one that has
    none in `subspace` none in the γ term. With all-ones `fisher` the λ term is L2-SP (Li et al. 2018, arXiv
    1802.01483).

    Args:
        anchor: W₀: name → tensor of the parameter's shape. It must hold every name of the other two.
        fisher: Ω: name → tensor of the parameter's shape, entries ≥ 0.
        subspace: U: name → (out, r), orthonormal columns, r from 0 (everything restrained) to out. The output side of
            a Linear weight (out, in) is its dimension 0, that of a Conv1D (in, out) or an Embedding (vocab, out) its
            dimension 1; other matrices are taken as (out, in).
        ewc_lambda: λ ≥ 0.
        gamma: γ ≥ 0.

    Raises:
        ValueError: λ or γ is negative, or has no Fisher or subspace to act on, or a name has no anchor.

    >>> model = nn.Linear(2, 2, bias=False)
    >>> _ = model.weight.data.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    >>> anchor, fisher = {"weight": torch.zeros(2, 2)}, {"weight": torch.ones(2, 2)}
    >>> first_output = {"weight": torch.tensor([[1.0], [0.0]])}
    >>> penalty = InheritancePenalty(anchor, fisher, first_output, ewc_lambda=2.0, gamma=1.0)
    >>> value = penalty.value(model); value.backward()
    >>> value.item(), model.weight.grad.tolist()  # 30 + (3² + 4²)
    (55.0, [[2.0, 4.0], [12.0, 16.0]])
    """

    def __init__(
        self,
        anchor: Mapping[str, Tensor],
        fisher: Mapping[str, Tensor] | None = None,
        subspace: Mapping[str, Tensor] | None = None,
        *,
        ewc_lambda: float = 0.0,
        gamma: float = 0.0,
    ) -> None:
        for symbol, value, tensors, source in (
            ("ewc_lambda", ewc_lambda, fisher, "fisher=estimate_fisher(...)"),
            ("gamma", gamma, subspace, "subspace=learn_subspace(...)"),
        ):
            if not 0.0 <= value < float("inf"):
                raise ValueError(f"{symbol} is {value}; it must be a finite number of at least 0")
            if value > 0.0 and not tensors:
                raise ValueError(f"{symbol} is {value} but there is nothing for it to act on; pass {source}")
        self.ewc_lambda = ewc_lambda
        self.gamma = gamma
        self._anchor, self._fisher, self._subspace = anchor, fisher or {}, subspace or {}
        for kind, tensors in (("fisher", self._fisher), ("subspace", self._subspace)):
            _require_known(kind, tensors, anchor, "the anchor")
        self._restraints: list[_Restraint] = []
        self._bound_model: weakref.ref[nn.Module] | None = None

    def validate(self, model: nn.Module) -> None:
        """Check every name and shape against a model, and bring the tensors to its devices.

        Args:
            model: The model the names belong to.

        Raises:
            ValueError: A name or shape does not fit, a Fisher entry is negative, a basis is not orthonormal, or an
                anchor is the model's own parameter.
        """
        self._bind(model)

    def value(self, model: nn.Module, *, factor: float = 1.0) -> Tensor:
        """Return Φ with a gradient with respect to the model's parameters.

        Args:
            model: The model the names belong to.
            factor: A schedule's factor on both λ and γ.

        Returns:
            A scalar. Its backward recomputes ΔW, so the parameters must not change before it.

        Raises:
            ValueError: A name or shape does not fit the model.
        """
        restraints, parameters = self._bind(model), dict(model.named_parameters())
        involved = [parameters[restraint.name] for restraint in restraints]
        value: Tensor = _differentiable_value(restraints, self.ewc_lambda * factor, self.gamma * factor, *involved)
        return value

    def terms(self, model: nn.Module, *, factor: float = 1.0) -> dict[str, Tensor]:
        """Return the two weighted terms of Φ; they sum to its value.

        Args:
            model: The model the names belong to.
            factor: A schedule's factor on both λ and γ.

        Returns:
            `ewc`, λ·½ Σ Ω_ii ΔW_i², and `subspace`, γ·‖(I − UUᵀ)ΔW‖_F²: scalars without gradient.

        Raises:
            ValueError: A name or shape does not fit the model.
        """
        sums = self._sums(model, factor, add_gradient=False)
        return {"ewc": sums[0], "subspace": sums[1]}

    def add_gradient(self, model: nn.Module, *, factor: float = 1.0, gradient_scale: float = 1.0) -> PenaltyStep:
        """Add Φ's gradient to the `.grad` of the model's trainable parameters.

        Called once between the last backward and the optimizer's step, it is the same as having added Φ to the loss.

        Args:
            model: The model the names belong to.
            factor: A schedule's factor on both λ and γ.
            gradient_scale: By what the gradients found are multiplied, where a loss scaler is at work.

        Returns:
            The terms and the two gradient norms, without the gradient scale.

        Raises:
            ValueError: A name or shape does not fit the model.
        """
        ewc, subspace, penalty_square, task_square = self._sums(
            model, factor, add_gradient=True, gradient_scale=gradient_scale
        )
        return PenaltyStep(
            ewc=ewc, subspace=subspace, gradient_norm=penalty_square.sqrt(), task_gradient_norm=task_square.sqrt()
        )

    def fingerprint(self) -> dict[str, str]:
        """Return SHA-256 digests of the anchor, the Fisher and the subspace, to tell one penalty from another.

        Returns:
            `anchor`, `fisher`, `subspace` → 64 hexadecimal digits, over names, dtypes, shapes and bytes.
        """
        return {
            "anchor": _digest(self._anchor),
            "fisher": _digest(self._fisher),
            "subspace": _digest(self._subspace),
        }

    @torch.no_grad()
    def _sums(self, model: nn.Module, factor: float, *, add_gradient: bool, gradient_scale: float = 1.0) -> Tensor:
        # ewc, subspace, ‖∇Φ‖² and ‖task gradient‖², as one (4,) tensor
        restraints, parameters = self._bind(model), dict(model.named_parameters())
        first = next(iter(parameters.values()))
        total = torch.zeros(4, dtype=_working_dtype(first.dtype), device=first.device)
        for restraint in restraints:
            parameter = parameters[restraint.name]
            gradient = None
            if add_gradient and parameter.requires_grad:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                gradient = parameter.grad
            sums = restraint.apply(
                parameter, gradient, self.ewc_lambda * factor, self.gamma * factor, gradient_scale=gradient_scale
            )
            total += sums.to(total)
        return total

    def _bind(self, model: nn.Module) -> "list[_Restraint]":
        # Every name and shape is checked against a model once, and the tensors are brought to its devices.
        if self._bound_model is not None and self._bound_model() is model:
            return self._restraints
        named = dict(model.named_parameters(remove_duplicate=False))
        _require_known("the anchor", self._anchor, named, "the model")
        first_name: dict[int, str] = {}
        for name, parameter in model.named_parameters():
            first_name.setdefault(id(parameter), name)
        restraints: dict[str, _Restraint] = {}
        for name in self._anchor:
            canonical = first_name[id(named[name])]
            if canonical in restraints or (name != canonical and canonical in self._anchor):
                continue  # a second name of a tied parameter
            restraints[canonical] = self._restraint(model, name, canonical, named[name])
        self._restraints = list(restraints.values())
        self._bound_model = weakref.ref(model)
        return self._restraints

    def _restraint(self, model: nn.Module, name: str, canonical: str, parameter: nn.Parameter) -> "_Restraint":
        anchor, fisher, basis = self._anchor[name], self._fisher.get(name), self._subspace.get(name)
        shape = tuple(parameter.shape)
        for kind, tensor in (("anchor", anchor), ("fisher", fisher)):
            if tensor is not None and tuple(tensor.shape) != shape:
                raise ValueError(
                    f"{kind}[{name!r}] has shape {tuple(tensor.shape)}, the model's parameter {shape}; "
                    "it must be given in the child's coordinates"
                )
        if anchor.data_ptr() == parameter.data_ptr() and anchor.numel():
            raise ValueError(
                f"anchor[{name!r}] is the model's own parameter, so it would move with it; "
                "pass a copy: {name: p.detach().clone() for name, p in model.named_parameters()}"
            )
        if fisher is not None and not bool((fisher >= 0).all()):
            raise ValueError(f"fisher[{name!r}] has negative or NaN entries; a diagonal Fisher is at least 0")
        output_dimension = _output_dimension(model, canonical)
        if basis is not None:
            _check_basis(name, basis, shape, output_dimension)
        place = parameter.device
        return _Restraint(
            name=canonical,
            anchor=anchor.detach().to(place),
            fisher=None if fisher is None else fisher.detach().to(place),
            basis=None if basis is None else basis.detach().to(place, _working_dtype(parameter.dtype)),
            output_dimension=output_dimension,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Restraint:
    """Φ on one parameter."""

    name: str
    anchor: Tensor  # as the parameter
    fisher: Tensor | None  # as the parameter
    basis: Tensor | None  # (out, r)
    output_dimension: int

    def apply(
        self,
        weight: Tensor,
        gradient: Tensor | None,
        ewc_lambda: float,
        gamma: float,
        *,
        gradient_scale: float | Tensor = 1.0,
    ) -> Tensor:
        # Adds gradient_scale·∇Φ to `gradient`; returns ewc, subspace, ‖∇Φ‖² and ‖gradient / scale‖² as (4,).
        fisher = self.fisher if ewc_lambda > 0.0 else None
        basis = self.basis if gamma > 0.0 else None
        dtype = _working_dtype(weight.dtype)
        total = torch.zeros(4, dtype=dtype, device=weight.device)
        with torch.autocast(weight.device.type, enabled=False):  # Φ keeps its own precision
            for chunk in self._chunks(weight, by_rows=basis is not None):
                delta = chunk(weight).to(dtype) - chunk(self.anchor).to(dtype)  # (n,), or (n, out) with a basis
                slope = torch.zeros_like(delta)
                if fisher is not None:
                    slope += chunk(fisher).to(dtype) * delta * ewc_lambda
                    total[0] += 0.5 * (slope * delta).sum()
                if basis is not None:
                    residual = delta.addmm(delta @ basis, basis.T, alpha=-1.0)  # ΔWᵀ(I − UUᵀ): (n, out)
                    total[1] += gamma * residual.square().sum()
                    slope.add_(residual, alpha=2.0 * gamma)
                total[2] += slope.square().sum()
                if gradient is not None:
                    found = chunk(gradient)
                    total[3] += (found.to(dtype) / gradient_scale).square().sum()
                    found.add_((slope * gradient_scale).to(found.dtype))
        return total

    def _chunks(self, weight: Tensor, *, by_rows: bool) -> "Iterator[_Chunk]":
        size = CHUNK_ELEMENTS.get(weight.device.type, _CHUNK_ELEMENTS_ELSEWHERE)
        if not by_rows:
            for start in range(0, weight.numel(), size):
                yield _Chunk(start, start + size, output_dimension=None)
            return
        inputs, outputs = weight.shape if self.output_dimension == 1 else reversed(weight.shape)
        step = max(1, size // outputs)
        for start in range(0, inputs, step):
            yield _Chunk(start, start + step, output_dimension=self.output_dimension)


@dataclasses.dataclass(frozen=True)
class _Chunk:
    """A piece of a parameter: flat, or whole output columns laid out as rows (n, out)."""

    start: int
    stop: int
    output_dimension: int | None

    def __call__(self, tensor: Tensor) -> Tensor:
        if self.output_dimension is None:
            return tensor.view(-1)[self.start : self.stop]
        oriented = tensor if self.output_dimension == 1 else tensor.T  # (in, out)
        return oriented[self.start : self.stop]


class _Value(torch.autograd.Function):
    """Φ as a scalar whose backward forms the gradient anew, so that no graph is kept."""

    @staticmethod
    def forward(
        ctx: Any, restraints: "list[_Restraint]", ewc_lambda: float, gamma: float, *parameters: Tensor
    ) -> Tensor:
        ctx.restraints, ctx.ewc_lambda, ctx.gamma = restraints, ewc_lambda, gamma
        ctx.save_for_backward(*parameters)
        sums = [r.apply(p, None, ewc_lambda, gamma) for r, p in zip(restraints, parameters, strict=True)]
        return torch.stack([s[:2].sum().to(sums[0]) for s in sums]).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        gradients: list[Tensor | None] = []
        for restraint, parameter, needed in zip(
            ctx.restraints, ctx.saved_tensors, ctx.needs_input_grad[3:], strict=True
        ):
            gradient = torch.zeros_like(parameter) if needed else None
            if gradient is not None:
                scale = grad_output.to(gradient.device)
                restraint.apply(parameter, gradient, ctx.ewc_lambda, ctx.gamma, gradient_scale=scale)
            gradients.append(gradient)
        return None, None, None, *gradients


_differentiable_value: Callable[..., Any] = _Value.apply


def _working_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _output_dimension(model: nn.Module, name: str) -> int:
    """Return the dimension of a weight that runs over its module's outputs."""
    owner = model.get_submodule(name.rpartition(".")[0])
    return 1 if isinstance(owner, Conv1D | nn.Embedding) else 0


def _check_basis(name: str, basis: Tensor, shape: tuple[int, ...], output_dimension: int) -> None:
    if len(shape) != 2:
        raise ValueError(f"subspace[{name!r}]: the parameter has shape {shape}; only matrices have an output subspace")
    outputs = shape[output_dimension]
    if basis.ndim != 2 or basis.shape[0] != outputs or basis.shape[1] > outputs:
        raise ValueError(
            f"subspace[{name!r}] has shape {tuple(basis.shape)}; expected ({outputs}, r), r ≤ {outputs}: a basis of "
            f"the output side, dimension {output_dimension} of the {shape} weight"
        )
    basis = basis.detach().to(_working_dtype(basis.dtype))
    error = (basis.T @ basis - torch.eye(basis.shape[1]).to(basis)).abs().max().item() if basis.shape[1] else 0.0
    if not error <= _ORTHONORMALITY_LIMIT:
        raise ValueError(
            f"subspace[{name!r}]: its columns are not orthonormal, max |UᵀU − I| = {error:.2g} > "
            f"{_ORTHONORMALITY_LIMIT}; pass torch.linalg.qr(U).Q"
        )


def _require_known(kind: str, names: Mapping[str, Tensor], known: Mapping[str, object], where: str) -> None:
    unknown = [name for name in names if name not in known]
    if not unknown:
        return
    shown = []
    for name in unknown[:_NAMES_SHOWN]:
        nearest = difflib.get_close_matches(name, list(known), n=1)
        shown.append(f"{name} (nearest: {nearest[0]})" if nearest else name)
    more = f" and {len(unknown) - _NAMES_SHOWN} more" if len(unknown) > _NAMES_SHOWN else ""
    raise ValueError(f"{kind} names parameters that {where} does not have: {', '.join(shown)}{more}")


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
