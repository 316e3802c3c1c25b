"""The inheritance penalty Φ: what holds a child near its parent, as a closed form.

    Φ(W) = λ·½ Σ_i Ω_ii ΔW_i² + γ·‖(I − U Uᵀ) ΔW‖_F²,    ΔW = W − W₀

W₀ is the anchor, the parent's weights in the child's coordinates; Ω the diagonal of the parent's Fisher information
(elastic weight consolidation, Kirkpatrick et al. 2017, arXiv 1612.00796, eq. 3); U an orthonormal basis of a subspace
of each weight matrix's *output* side, ΔW being taken as (out, in). Tr((I − P) ΔW ΔWᵀ (I − P)ᵀ) with P = U Uᵀ is that
same Frobenius norm.

Φ is quadratic, so nothing needs a graph: value and gradient, λ Ω ⊙ ΔW + 2γ (ΔW − U (Uᵀ ΔW)), are formed together,
chunk by chunk, in at least float32 whatever the parameters' dtype (`arithmetic`).
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hf_progressive.distributed.working_dtype import working_dtype
from hf_progressive.penalty.arithmetic import Restraint
from hf_progressive.penalty.bound import BoundParameter, BoundPenalty, PenaltyStep
from hf_progressive.penalty.shards import ParameterShard, gather_layouts, rows_held, shard_of, shared_rows
from hf_progressive.penalty.validation import canonical_names, check_fit, output_dimension, require_known


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class InheritancePenalty:
    """Φ as it is specified: plain mappings of tensors, and the weights of its two terms.

    Mappings are read one tensor at a time and may be lazy. Names are those of `model.named_parameters()`; of tied
    parameters one name is enough. A parameter that has no entry in `fisher` takes no part in the λ term, one that has
    none in `subspace` none in the γ term. With all-ones `fisher` the λ term is L2-SP (Li et al. 2018, arXiv
    1802.01483).

    `bind` makes from it what computes: it reads and checks every tensor. `value`, `terms` and `add_gradient` bind for
    the one call; whoever calls them in a loop should bind once. Where DeepSpeed ZeRO or FSDP2 divides the model among
    processes, what is bound holds the shards of W₀ and Ω that belong to the process's own weights. To keep no full
    copy anywhere, pass mappings that read from files.

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

    anchor: Mapping[str, Tensor]
    fisher: Mapping[str, Tensor] | None = None
    subspace: Mapping[str, Tensor] | None = None
    _: dataclasses.KW_ONLY
    ewc_lambda: float = 0.0
    gamma: float = 0.0
    storage_dtype: torch.dtype | None = None
    storage_device: torch.device | str | None = None

    def __post_init__(self) -> None:
        for symbol, value, tensors, source in (
            ("ewc_lambda", self.ewc_lambda, self.fisher, "fisher=estimate_fisher(...)"),
            ("gamma", self.gamma, self.subspace, "subspace=learn_subspace(...)"),
        ):
            if not 0.0 <= value < float("inf"):
                raise ValueError(f"{symbol} is {value}; it must be a finite number of at least 0")
            if value > 0.0 and not tensors:
                raise ValueError(f"{symbol} is {value} but there is nothing for it to act on; pass {source}")
        for kind in ("fisher", "subspace"):
            require_known(kind, self.tensors[kind], self.anchor, "the anchor")

    @property
    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """The mappings: `anchor`, `fisher` and `subspace` → name → tensor, empty where nothing was given."""
        return {"anchor": self.anchor, "fisher": self.fisher or {}, "subspace": self.subspace or {}}

    @property
    def restrained_names(self) -> set[str]:
        """The parameters on which a term acts."""
        terms = ((self.ewc_lambda, self.fisher), (self.gamma, self.subspace))
        return {name for weight, tensors in terms if weight > 0.0 for name in tensors or {}}

    def bind(self, model: nn.Module) -> BoundPenalty:
        """Take this process's shards of W₀, Ω and U for a model, once every tensor is checked against it.

        Args:
            model: The model as its engine has prepared it. Where it is divided, every process must call.

        Returns:
            Φ for this model.

        Raises:
            ValueError: As from `validate`, or the model is divided in a way Φ does not follow.
        """
        parameters = dict(model.named_parameters())
        names = canonical_names(model, self.anchor)
        shards = {name: shard_of(parameters[name]) for name in names}
        layouts = gather_layouts(shards)
        bound = {
            name: self._bound(names[name], shard, output_dimension(model, name), layouts.get(name, []))
            for name, shard in shards.items()
        }
        return BoundPenalty(model, bound, ewc_lambda=self.ewc_lambda, gamma=self.gamma)

    def validate(self, model: nn.Module) -> None:
        """Check every tensor against a model, as `bind` does.

        Args:
            model: The model the names belong to.

        Raises:
            ValueError: A name or shape does not fit, a Fisher entry is negative, a basis is not orthonormal, or an
                anchor is the model's own parameter.
        """
        parameters = dict(model.named_parameters())
        for canonical, name in canonical_names(model, self.anchor).items():
            for kind in self.tensors:
                self._read(kind, name, parameters[canonical], output_dimension(model, canonical))

    def value(self, model: nn.Module, *, factor: float = 1.0) -> Tensor:
        """Bind Φ to a model and return its value, with a gradient with respect to the parameters.

        Args:
            model: The model the names belong to, not divided among processes.
            factor: A schedule's factor on both λ and γ.

        Returns:
            A scalar. Its backward recomputes ΔW, so the parameters must not change before it.

        Raises:
            ValueError: A tensor does not fit the model, or an engine has divided it.
        """
        return self.bind(model).value(factor=factor)

    def terms(self, model: nn.Module, *, factor: float = 1.0) -> dict[str, Tensor]:
        """Bind Φ to a model and return its two weighted terms, which sum to its value.

        Args:
            model: The model the names belong to. Where it is divided, every process must call.
            factor: A schedule's factor on both λ and γ.

        Returns:
            `ewc`, λ·½ Σ Ω_ii ΔW_i², and `subspace`, γ·‖(I − UUᵀ)ΔW‖_F²: scalars without gradient.

        Raises:
            ValueError: A tensor does not fit the model.
        """
        return self.bind(model).terms(factor=factor)

    def add_gradient(self, model: nn.Module, *, factor: float = 1.0, gradient_scale: float = 1.0) -> PenaltyStep:
        """Bind Φ to a model and add its gradient to that of the trainable parameters.

        Called once between the last backward and the optimizer's step, it is the same as having added Φ to the loss.
        The gradients must be those the optimizer will see: averaged over processes. In a loop, `bound =
        penalty.bind(model)` before it and `bound.add_gradient()` in each step read the tensors once.

        Args:
            model: The model the names belong to. Where it is divided, every process must call.
            factor: A schedule's factor on both λ and γ.
            gradient_scale: By what the gradients found are multiplied, where a loss scaler is at work.

        Returns:
            The terms and the two gradient norms, without the gradient scale; the same on every process. All zero,
            the task's norm too, where λ and γ are zero: then no gradient is read.

        Raises:
            ValueError: A tensor does not fit the model.
        """
        return self.bind(model).add_gradient(factor=factor, gradient_scale=gradient_scale)

    def fingerprint(self) -> dict[str, str]:
        """Return SHA-256 digests of the anchor, the Fisher and the subspace, to tell one penalty from another.

        Returns:
            `anchor`, `fisher`, `subspace` → 64 hexadecimal digits, over names, dtypes, shapes and bytes.
        """
        return {kind: _digest(tensors) for kind, tensors in self.tensors.items()}

    def _read(self, kind: str, name: str, parameter: nn.Parameter, output: int) -> Tensor | None:
        tensor = self.tensors[kind].get(name)
        if tensor is not None:
            check_fit(kind, name, tensor, parameter, output)
        return tensor

    def _bound(
        self, name: str, shard: ParameterShard, output: int, layout: Sequence[tuple[int, int]]
    ) -> BoundParameter:
        place = shard.weights()

        def held(kind: str) -> Tensor | None:
            tensor = self._read(kind, name, shard.parameter, output)
            if tensor is None:
                return None
            part = tensor.detach().reshape(-1)[shard.start : shard.start + shard.length]
            part = part.to(self.storage_device or place.device, self.storage_dtype)
            return part if shard.is_whole else part.clone()  # a view would keep the whole alive

        anchor, fisher = held("anchor"), held("fisher")
        assert anchor is not None
        basis = self._read("subspace", name, shard.parameter, output)
        cut: tuple[int, ...] = ()
        if basis is not None:
            basis = basis.detach().to(place.device, working_dtype(place.dtype))
            if not shard.is_whole and output == 0:
                basis = basis[rows_held(shard.start, shard.length, shard.shape[1])].clone()
            elif not shard.is_whole:
                cut = shared_rows(layout, shard.shape[1])
        restraint = Restraint(
            shape=shard.shape,
            anchor=anchor,
            fisher=fisher,
            basis=basis,
            output_dimension=output,
            start=shard.start,
            is_whole=shard.is_whole,
            shared_rows=cut,
        )
        return BoundParameter(shard=shard, restraint=restraint)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
