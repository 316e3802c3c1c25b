"""The inheritance penalty Φ: what holds a child near its parent, as a closed form.

    Φ(W) = λ·½ Σ_i Ω_ii ΔW_i² + γ·‖(I − U Uᵀ) ΔW‖_F²,    ΔW = W − W₀

W₀ is the anchor, the parent's weights in the child's coordinates; Ω the diagonal of the parent's Fisher information
(elastic weight consolidation, Kirkpatrick et al. 2017, arXiv 1612.00796, eq. 3); U an orthonormal basis of a subspace
of each weight matrix's *output* side, ΔW being taken as (out, in). Tr((I − P) ΔW ΔWᵀ (I − P)ᵀ) with P = U Uᵀ is that
same Frobenius norm.

Φ is quadratic, so nothing needs a graph: value and gradient, λ Ω ⊙ ΔW + 2γ (ΔW − U (Uᵀ ΔW)), are formed together,
chunk by chunk, in at least float32 whatever the parameters' dtype. Beyond W₀, Ω and U, `add_gradient` needs about six
chunks of memory (`restraint.CHUNK_ELEMENTS`), or six pieces of the largest matrix where an engine divides it under γ;
`value` needs one more gradient while its backward runs. On an accelerator `add_gradient` takes few kernels: `grouped`.
"""

import dataclasses
import hashlib
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from hf_progressive.distributed.working_dtype import working_dtype
from hf_progressive.penalty.differentiable import differentiable_value, total_of
from hf_progressive.penalty.grouped import PART_ELEMENTS, GroupedGradient
from hf_progressive.penalty.restraint import CHUNK_ELEMENTS, Restraint
from hf_progressive.penalty.shards import HeldPiece, held_piece, rows_held, shared_rows
from hf_progressive.penalty.validation import canonical_names, check_fit, output_dimension, require_known


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


class InheritancePenalty:
    """Φ for a model, from plain mappings of tensors.

    Mappings are read one tensor at a time and may be lazy. Names are those of `model.named_parameters()`; of tied
    parameters one name is enough. A parameter that has no entry in `fisher` takes no part in the λ term, one that has
    none in `subspace` none in the γ term. With all-ones `fisher` the λ term is L2-SP (Li et al. 2018, arXiv
    1802.01483).

    Where DeepSpeed ZeRO or FSDP2 divides the model among processes, each keeps the pieces of W₀ and Ω that belong to
    its own weights, and the mappings are let go. To keep no full copy anywhere, pass mappings that read from files.

    Args:
        anchor: W₀: name → tensor of the parameter's shape. It must hold every name of the other two.
        fisher: Ω: name → tensor of the parameter's shape, entries ≥ 0.
        subspace: U: name → (out, r), orthonormal columns, r from 0 (everything restrained) to out. The output side of
            a Linear weight (out, in) is its dimension 0, that of a Conv1D (in, out) or an Embedding (vocab, out) its
            dimension 1; other matrices are taken as (out, in).
        ewc_lambda: λ ≥ 0.
        gamma: γ ≥ 0.
        storage_dtype: What W₀ and Ω are kept in; None keeps theirs. bfloat16 halves them, and is exact for W₀ where
            the parent's weights are bfloat16; otherwise ΔW carries W₀'s rounding, 2⁻⁹ of the weight.
        storage_device: Where W₀ and Ω are kept, such as "cpu"; chunks go to the parameter's device as they are needed.
            None keeps them beside the parameters.

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
        storage_dtype: torch.dtype | None = None,
        storage_device: torch.device | str | None = None,
    ) -> None:
        for symbol, value, tensors, source in (
            ("ewc_lambda", ewc_lambda, fisher, "fisher=estimate_fisher(...)"),
            ("gamma", gamma, subspace, "subspace=learn_subspace(...)"),
        ):
            if not 0.0 <= value < float("inf"):
                raise ValueError(f"{symbol} is {value}; it must be a finite number of at least 0")
            if value > 0.0 and not tensors:
                raise ValueError(f"{symbol} is {value} but there is nothing for it to act on; pass {source}")
        for kind, tensors in (("fisher", fisher or {}), ("subspace", subspace or {})):
            require_known(kind, tensors, anchor, "the anchor")
        self.ewc_lambda = ewc_lambda
        self.gamma = gamma
        self._anchor, self._fisher, self._subspace = anchor, fisher or {}, subspace or {}
        self._storage_dtype, self._storage_device = storage_dtype, storage_device
        self._validated: weakref.ref[nn.Module] | None = None
        self._bound: weakref.ref[nn.Module] | None = None
        self._restraints: dict[str, Restraint] = {}  # by the name model.named_parameters() has
        self._places: list[tuple[int, int, torch.device]] = []
        self._group: dist.ProcessGroup | None = None
        self._let_go = False  # the mappings, once pieces of them are all this process needs
        self._fingerprint: dict[str, str] = {}  # theirs, from then on

    def value(self, model: nn.Module, *, factor: float = 1.0) -> Tensor:
        """Return Φ with a gradient with respect to the model's parameters.

        Args:
            model: The model the names belong to, not divided among processes.
            factor: A schedule's factor on both λ and γ.

        Returns:
            A scalar. Its backward recomputes ΔW, so the parameters must not change before it.

        Raises:
            ValueError: A name or shape does not fit the model, or an engine has divided it.
        """
        pieces = self._bind(model)
        if not all(piece.is_whole for piece in pieces.values()):
            raise ValueError("value() needs whole parameters; for a model that an engine divides use add_gradient()")
        parameters = [piece.parameter for piece in pieces.values()]
        restraints = list(self._restraints.values())
        value: Tensor = differentiable_value(restraints, self.ewc_lambda * factor, self.gamma * factor, *parameters)
        return value

    def terms(self, model: nn.Module, *, factor: float = 1.0) -> dict[str, Tensor]:
        """Return the two weighted terms of Φ; they sum to its value.

        Args:
            model: The model the names belong to. Where it is divided, every process must call.
            factor: A schedule's factor on both λ and γ.

        Returns:
            `ewc`, λ·½ Σ Ω_ii ΔW_i², and `subspace`, γ·‖(I − UUᵀ)ΔW‖_F²: scalars without gradient.

        Raises:
            ValueError: A name or shape does not fit the model.
        """
        sums = self._sums(model, factor, gradient_scale=None)
        return {"ewc": sums[0], "subspace": sums[1]}

    def add_gradient(self, model: nn.Module, *, factor: float = 1.0, gradient_scale: float = 1.0) -> PenaltyStep:
        """Add Φ's gradient to that of the model's trainable parameters.

        Called once between the last backward and the optimizer's step, it is the same as having added Φ to the loss.
        The gradients must be those the optimizer will see: averaged over processes.

        Args:
            model: The model the names belong to. Where it is divided, every process must call.
            factor: A schedule's factor on both λ and γ.
            gradient_scale: By what the gradients found are multiplied, where a loss scaler is at work.

        Returns:
            The terms and the two gradient norms, without the gradient scale; the same on every process. All zero,
            the task's norm too, where λ and γ are zero: then nothing is read.

        Raises:
            ValueError: A name or shape does not fit the model.
        """
        if factor * self.ewc_lambda == 0.0 and factor * self.gamma == 0.0:
            first = next(model.parameters())
            zero = torch.zeros((), dtype=working_dtype(first.dtype), device=first.device)
            return PenaltyStep(ewc=zero, subspace=zero, gradient_norm=zero, task_gradient_norm=zero)
        ewc, subspace, penalty_square, task_square = self._sums(model, factor, gradient_scale=gradient_scale)
        return PenaltyStep(
            ewc=ewc, subspace=subspace, gradient_norm=penalty_square.sqrt(), task_gradient_norm=task_square.sqrt()
        )

    def fingerprint(self) -> dict[str, str]:
        """Return SHA-256 digests of the anchor, the Fisher and the subspace, to tell one penalty from another.

        Returns:
            `anchor`, `fisher`, `subspace` → 64 hexadecimal digits, over names, dtypes, shapes and bytes.
        """
        if self._let_go:
            return dict(self._fingerprint)
        return {kind: _digest(tensors) for kind, tensors in self.mappings().items()}

    def mappings(self) -> dict[str, Mapping[str, Tensor]]:
        """Return the mappings the penalty was built from.

        Returns:
            `anchor`, `fisher` and `subspace` → name → tensor.

        Raises:
            ValueError: An engine has divided them, and they were let go.
        """
        if self._let_go:
            raise ValueError("W₀, Ω and U are divided among processes; take the mappings before training begins")
        return {"anchor": self._anchor, "fisher": self._fisher, "subspace": self._subspace}

    def held_bytes(self) -> int:
        """Return what this process holds of W₀, Ω and U since the penalty was first used, in bytes.

        Returns:
            A number of bytes, 0 before the first use.
        """
        tensors = (t for r in self._restraints.values() for t in (r.anchor, r.fisher, r.basis) if t is not None)
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)

    def validate(self, model: nn.Module) -> None:
        """Check every name and shape against a model.

        Args:
            model: The model the names belong to.

        Raises:
            ValueError: A name or shape does not fit, a Fisher entry is negative, a basis is not orthonormal, or an
                anchor is the model's own parameter.
        """
        if self._validated is not None and self._validated() is model:
            return
        check_fit(model, self._anchor, self._fisher, self._subspace)
        self._validated = weakref.ref(model)

    def bind(self, model: nn.Module) -> None:
        """Take this process's pieces of W₀, Ω and U, as the first use would.

        Args:
            model: The model as its engine has prepared it. Where it is divided, every process must call.

        Raises:
            ValueError: A name or shape does not fit the model, or the mappings were let go for another.
        """
        self._bind(model)

    @torch.no_grad()
    def _sums(self, model: nn.Module, factor: float, *, gradient_scale: float | None) -> Tensor:
        # ewc, subspace, ‖∇Φ‖² and ‖task gradient‖² as one (4,) tensor; no scale: leave the gradients alone
        ewc_lambda, gamma = self.ewc_lambda * factor, self.gamma * factor
        sums: dict[bool, list[Tensor]] = {True: [], False: []}  # by whether the piece is the whole
        grouped = {whole: GroupedGradient(ewc_lambda, gamma, gradient_scale or 1.0) for whole in sums}
        waiting: list[tuple[HeldPiece, Tensor]] = []  # gradients that are not yet complete
        for name, piece in self._bind(model).items():
            weights, restraint = piece.weights(), self._restraints[name]
            if gradient_scale is None or not piece.parameter.requires_grad:
                sums[piece.is_whole].append(restraint.apply(weights, None, ewc_lambda, gamma))
                continue
            gradient = piece.gradient()
            if weights.device.type not in CHUNK_ELEMENTS and (
                piece.is_whole or gamma == 0.0 or restraint.basis is None
            ):
                with torch.autocast(weights.device.type, enabled=False):  # Φ keeps its own precision
                    grouped[piece.is_whole].add(restraint, weights, gradient)
                waiting.append((piece, gradient))
                if sum(len(each) for _, each in waiting) > PART_ELEMENTS:
                    _finish(grouped, sums, waiting)
                continue
            sums[piece.is_whole].append(
                restraint.apply(weights, gradient, ewc_lambda, gamma, gradient_scale=gradient_scale)
            )
            piece.store_gradient(gradient)
        _finish(grouped, sums, waiting)
        total = total_of(sums[True])
        if sums[False]:
            across = total_of(sums[False])
            dist.all_reduce(across, group=self._group)
            total = total.to(across) + across
        return total

    def _bind(self, model: nn.Module) -> dict[str, HeldPiece]:
        if self._bound is not None and self._bound() is model:
            pieces = _pieces(model, self._restraints)
            if self._places == _places(pieces):
                return pieces
        if self._let_go:
            raise ValueError("W₀ and Ω were divided among processes for another model; build a penalty for this one")
        self.validate(model)
        names = canonical_names(model, self._anchor)
        pieces = _pieces(model, names)
        layouts = _gather_layouts(pieces)
        if layouts:
            self._fingerprint = self.fingerprint()
        self._restraints = {
            name: self._restraint(names[name], piece, output_dimension(model, name), layouts.get(name, []))
            for name, piece in pieces.items()
        }
        self._places = _places(pieces)
        self._group = next((piece.group for piece in pieces.values() if piece.group is not None), None)
        self._bound = weakref.ref(model)
        if layouts:
            self._anchor, self._fisher, self._subspace, self._let_go = {}, {}, {}, True
        return pieces

    def _restraint(self, name: str, piece: HeldPiece, output: int, layout: Sequence[tuple[int, int]]) -> Restraint:
        place = piece.weights()

        def held(tensor: Tensor) -> Tensor:
            part = tensor.detach().reshape(-1)[piece.start : piece.start + piece.length]
            part = part.to(self._storage_device or place.device, self._storage_dtype)
            return part if piece.is_whole else part.clone()  # a view would keep the whole alive

        fisher, basis = self._fisher.get(name), self._subspace.get(name)
        cut: list[int] = []
        if basis is not None:
            basis = basis.detach().to(place.device, working_dtype(place.dtype))
            if not piece.is_whole and output == 0:
                basis = basis[rows_held(piece.start, piece.length, piece.shape[1])].clone()
            elif not piece.is_whole:
                cut = shared_rows(layout, piece.shape[1])
        return Restraint(
            name=name,
            shape=piece.shape,
            start=piece.start,
            anchor=held(self._anchor[name]),
            fisher=None if fisher is None else held(fisher),
            basis=basis,
            output_dimension=output,
            group=piece.group,
            shared_rows=tuple(cut),
        )


def _pieces(model: nn.Module, names: Iterable[str]) -> dict[str, HeldPiece]:
    parameters = dict(model.named_parameters())
    return {name: held_piece(parameters[name]) for name in names}


def _places(pieces: Mapping[str, HeldPiece]) -> list[tuple[int, int, torch.device]]:
    # what must be as it was for the tensors taken to be still the right ones, in the right place
    return [(piece.start, piece.length, piece.parameter.device) for piece in pieces.values()]


def _gather_layouts(pieces: Mapping[str, HeldPiece]) -> dict[str, list[tuple[int, int]]]:
    # start and length of every process's piece of each divided parameter; empty where nothing is divided
    divided = {name: (piece.start, piece.length) for name, piece in pieces.items() if not piece.is_whole}
    if not divided:
        return {}
    group = next(piece.group for piece in pieces.values() if not piece.is_whole)
    everyones: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyones, divided, group=group)
    return {name: [layout[name] for layout in everyones] for name in divided}


def _finish(
    grouped: Mapping[bool, GroupedGradient],
    sums: Mapping[bool, list[Tensor]],
    waiting: list[tuple[HeldPiece, Tensor]],
) -> None:
    for whole, group in grouped.items():
        total = group.finish()
        if total is not None:
            sums[whole].append(total)
    for piece, gradient in waiting:
        piece.store_gradient(gradient)
    waiting.clear()


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
