"""The inheritance penalty Φ: what holds a child near its parent, as a closed form.

    Φ(W) = λ·½ Σ_i Ω_ii ΔW_i² + γ·‖(I − U Uᵀ) ΔW‖_F²,    ΔW = W − W₀                                              (1)

W₀ is the anchor, the parent's weights in the child's coordinates; Ω the diagonal of the parent's Fisher information
(elastic weight consolidation, Kirkpatrick et al. 2017, arXiv 1612.00796, eq. 3); U an orthonormal basis of a subspace
of each weight matrix's *output* side, ΔW being taken as (out, in). Tr((I − P) ΔW ΔWᵀ (I − P)ᵀ) with P = U Uᵀ is that
same Frobenius norm.

That is the *outside*: what the parent could not do is restrained, and its own outputs are free to change. Methods
against forgetting hold the other side, the *inside*, ‖U Uᵀ ΔW‖_F²: the directions that matter to the old task stay,
the rest is free (OSF, arXiv 2504.07097; gradient projection memory, arXiv 2103.09762; O-LoRA, arXiv 2310.14152).

Φ is quadratic, so nothing needs a graph: value and gradient, λ Ω ⊙ ΔW + 2γ (ΔW − U (Uᵀ ΔW)), are formed together,
chunk by chunk, in at least float32 whatever the parameters' dtype (`arithmetic`). Training follows that gradient, or
takes the proximal step after the optimizer's, with Ω over its mean (`proximal`).
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from hf_progressive.distributed.working_dtype import working_dtype
from hf_progressive.penalty.arithmetic import Restraint
from hf_progressive.penalty.bound import BoundParameter, BoundPenalty
from hf_progressive.penalty.fisher_mean import FisherMean
from hf_progressive.penalty.lazy_tensors import ones_like, tensors_digest
from hf_progressive.penalty.shards import ParameterShard, gather_layouts, rows_held, shard_of, shared_rows
from hf_progressive.penalty.step import PenaltyStep
from hf_progressive.penalty.validation import (
    check_fit,
    check_storage,
    check_weight,
    given_names,
    output_dimension,
    require_anchored,
)

Application = Literal["gradient", "proximal"]
"""How training applies Φ."""
Side = Literal["outside", "inside"]
"""Which part of ΔW γ restrains."""


@dataclasses.dataclass(frozen=True, eq=False)
class InheritancePenalty:
    """Φ as it is specified: plain mappings of tensors, and the weights of its two terms.

    Mappings are read one tensor at a time and may be lazy. Names are those of `model.named_parameters()`; of tied
    parameters any one is enough. A parameter without an entry in `fisher` takes no part in the λ term, one without an
    entry in `subspace` none in the γ term. `l2_sp` builds one with Ω = 1, `sum` one of several anchors.

    `bind` makes from it what computes: it reads and checks every tensor. `value`, `terms` and `add_gradient` bind for
    the one call; in a loop bind once. Where DeepSpeed ZeRO or FSDP2 divides the model among processes, what is bound
    holds the shards of W₀ and Ω of its own weights. To keep no full copy, pass mappings that read from files.

    Args:
        anchor: W₀: name → tensor of the parameter's shape. It must hold every name of the other two.
        fisher: Ω: name → tensor of the parameter's shape, entries ≥ 0.
        subspace: U: name → (out, r), orthonormal columns, r from 0 (everything restrained) to out. The output side of
            a Linear weight (out, in) is its dimension 0, that of a Conv1D (in, out) or an Embedding (vocab, out) its
            dimension 1; other weights are taken as (out, in), a convolution's as (out, in·kernel).
        ewc_lambda: λ ≥ 0.
        gamma: γ ≥ 0.
        apply: How training applies Φ. "gradient" adds ∇Φ to the task's before the optimizer's step. "proximal" moves
            the weights towards W₀ after it, by the closed form, so that no optimizer rescales Φ; Ω is then divided by
            its mean over all its entries above 0, and one λ serves all sizes and all ways to estimate Ω. The value and
            the terms are of the Φ that training applies.
        subspace_side: "outside" restrains (I − UUᵀ)ΔW, "inside" UUᵀΔW.
        storage_dtype: What W₀ and Ω are kept in; None keeps theirs. bfloat16 halves them, and is exact for W₀ where
            the parent's weights are bfloat16; otherwise ΔW carries W₀'s rounding, 2⁻⁹ of the weight.
        storage_device: Where W₀ and Ω are kept, such as "cpu"; chunks go to the parameter's device as they are needed.
            None keeps them beside the parameters.
        further: Penalties whose γ terms are added, each with its own anchor and without λ; `sum` fills it.
        constant: What is added to the λ term, whatever the weights; `sum` fills it.
        constants: Of `constant` what each tensor adds, by name, so that one of two names of a tied parameter counts.

    Raises:
        ValueError: λ or γ is negative, or has no Fisher or subspace to act on, or a name has no anchor; or `apply` or
            `subspace_side` is unknown.

    >>> model = nn.Linear(2, 2, bias=False)
    >>> _ = model.weight.data.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    >>> anchor, fisher = {"weight": torch.zeros(2, 2)}, {"weight": torch.ones(2, 2)}
    >>> first_output = {"weight": torch.tensor([[1.0], [0.0]])}
    >>> penalty = InheritancePenalty(anchor, fisher, first_output, ewc_lambda=2.0, gamma=1.0)
    >>> value = penalty.value(model); value.backward()
    >>> value.item(), model.weight.grad.tolist()  # 30 + (3² + 4²)
    (55.0, [[2.0, 4.0], [12.0, 16.0]])
    """

    anchor: Mapping[str, Tensor] = dataclasses.field(repr=False)
    fisher: Mapping[str, Tensor] | None = dataclasses.field(default=None, repr=False)
    subspace: Mapping[str, Tensor] | None = dataclasses.field(default=None, repr=False)
    _: dataclasses.KW_ONLY
    ewc_lambda: float = 0.0
    gamma: float = 0.0
    apply: Application = "gradient"
    subspace_side: Side = "outside"
    storage_dtype: torch.dtype | None = None
    storage_device: torch.device | str | None = None
    further: tuple["InheritancePenalty", ...] = ()
    constant: float = 0.0
    constants: Mapping[str, float] = dataclasses.field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for name, choices in (("apply", get_args(Application)), ("subspace_side", get_args(Side))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(choices)}")
        for symbol, value, tensors, source in (
            ("ewc_lambda", self.ewc_lambda, self.fisher, "fisher=estimate_fisher(...)"),
            ("gamma", self.gamma, self.subspace, "subspace=learn_subspace(...)"),
        ):
            check_weight(symbol, value)
            if value > 0.0 and not tensors:
                raise ValueError(f"{symbol} is {value} but there is nothing for it to act on; pass {source}")
        check_storage(self.storage_dtype, self.storage_device)
        require_anchored(self.tensors)

    @property
    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """The mappings: `anchor`, `fisher` and `subspace` → name → tensor, empty where nothing was given."""
        return {"anchor": self.anchor, "fisher": self.fisher or {}, "subspace": self.subspace or {}}

    @property
    def restrained_names(self) -> set[str]:
        """The parameters on which a term acts."""
        terms = ((self.ewc_lambda, self.fisher), (self.gamma, self.subspace))
        own = {name for weight, tensors in terms if weight > 0.0 for name in tensors or {}}
        return own.union(*(each.restrained_names for each in self.further))

    @classmethod
    def l2_sp(
        cls,
        anchor: Mapping[str, Tensor],
        *,
        ewc_lambda: float,
        apply: Application = "gradient",
        storage_dtype: torch.dtype | None = None,
        storage_device: torch.device | str | None = None,
    ) -> "InheritancePenalty":
        """Return ½λ‖W − W₀‖², L2-SP (Li et al. 2018, arXiv 1802.01483): Ω = 1, which costs no estimate and no memory.

        Args:
            anchor: W₀, as for `InheritancePenalty`; all of it is restrained.
            ewc_lambda: λ ≥ 0.
            apply: "gradient" or "proximal".
            storage_dtype: What W₀ is kept in.
            storage_device: Where W₀ is kept.

        >>> model = nn.Linear(2, 1)
        >>> anchor = {name: p.detach() - 2.0 for name, p in model.named_parameters()}
        >>> InheritancePenalty.l2_sp(anchor, ewc_lambda=0.5).value(model).item()  # ½ · ½ · (2² + 2² + 2²)
        3.0
        """
        return cls(
            anchor,
            ones_like(anchor),
            ewc_lambda=ewc_lambda,
            apply=apply,
            storage_dtype=storage_dtype,
            storage_device=storage_device,
        )

    @staticmethod
    def sum(penalties: Iterable["InheritancePenalty"]) -> "InheritancePenalty":
        """Return the sum of several penalties, such as one for each task a model has learned, as one.

        The λ terms become one, exactly, with one anchor and one Ω however many there are:

            Σ_k ½ λ_k Ω_k (W − W_k)² = ½ Ω̄ (W − W̄)² + constant,    Ω̄ = Σ_k λ_k Ω_k,    W̄ = Σ_k λ_k Ω_k W_k / Ω̄.

        With apply="proximal", each Ω_k is over its own mean. γ terms have no such form: each keeps its own anchor and
        basis, of the matrices that have a basis.

        Args:
            penalties: One or more, which name the same parameters and are applied alike. They are read tensor by
                tensor, now and whenever the sum is bound to a model, and must not change.

        Returns:
            The sum, whose value and terms include the constant.

        Raises:
            ValueError: There is none, or they name other parameters, are applied or kept in other ways, or shapes
                differ.

        >>> model = nn.Linear(1, 1, bias=False)
        >>> ones, zeros = {"weight": torch.ones(1, 1)}, {"weight": torch.zeros(1, 1)}
        >>> first = InheritancePenalty(zeros, ones, ewc_lambda=2.0)
        >>> second = InheritancePenalty(ones, ones, ewc_lambda=6.0)
        >>> both = InheritancePenalty.sum([first, second])
        >>> both.anchor["weight"].item(), both.constant  # (2 · 0 + 6 · 1) / 8, ½ · 2 · .75² + ½ · 6 · .25²
        (0.75, 0.75)
        >>> torch.testing.assert_close(both.value(model), first.value(model) + second.value(model))
        """
        from hf_progressive.penalty.sums import summed_penalty  # which builds an InheritancePenalty

        return summed_penalty([penalties] if isinstance(penalties, InheritancePenalty) else list(penalties))

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
        given = given_names(model, self.anchor)
        found, of_further = self._found(given), [(each, each._found(given)) for each in self.further]
        shards = {name: shard_of(parameters[name]) for name in given}
        layouts = gather_layouts(shards)
        gammas = [each.gamma for each in (self, *self.further)]
        mean = FisherMean() if self.apply == "proximal" and self.ewc_lambda > 0.0 else None
        bound = {}
        for name, shard in shards.items():
            place = _Place(shard, output_dimension(model, name), layouts.get(name, []))
            further = [
                each._restraint(theirs[name], place, share=each.gamma / sum(gammas))
                for each, theirs in of_further
                if each.gamma > 0.0 and "subspace" in theirs[name]
            ]
            restraint = self._restraint(
                found[name], place, mean, share=self.gamma / (sum(gammas) or 1.0), further=tuple(further)
            )
            bound[name] = BoundParameter(shard=shard, restraint=restraint)
        chosen = {names.get("fisher", "") for names in found.values()}
        if mean is not None:  # of tied parameters, the names that were not chosen
            mean.add_all(self.tensors["fisher"], but=chosen)
        return BoundPenalty(
            model,
            bound,
            ewc_lambda=self.ewc_lambda,
            gamma=sum(gammas),
            apply=self.apply,
            fisher_mean=1.0 if mean is None else mean.value(),
            constant=self.constant - math.fsum(part for name, part in self.constants.items() if name not in chosen),
        )

    def validate(self, model: nn.Module) -> None:
        """Check every tensor against a model, as `bind` does.

        Args:
            model: The model the names belong to.

        Raises:
            ValueError: A name or shape does not fit, a Fisher entry is negative, a basis is not orthonormal, or an
                anchor is the model's own parameter.
        """
        parameters = dict(model.named_parameters())
        for canonical, names in self._found(given_names(model, self.anchor)).items():
            for kind in self.tensors:
                self._read(kind, names, parameters[canonical], output_dimension(model, canonical))
        for each in self.further:
            each.validate(model)

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
            `ewc`, λ·½ Σ Ω_ii ΔW_i², and `subspace`, γ·‖(I − UUᵀ)ΔW‖_F² or γ·‖UUᵀΔW‖_F²: scalars without gradient.

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
            ValueError: A tensor does not fit the model, or apply is "proximal".
        """
        return self.bind(model).add_gradient(factor=factor, gradient_scale=gradient_scale)

    def fingerprint(self) -> dict[str, str]:
        """Return SHA-256 digests of the anchor, the Fisher and the subspace, to tell one penalty from another.

        Returns:
            `anchor`, `fisher`, `subspace` → 64 hexadecimal digits, over names, dtypes, shapes and bytes; for each of
            `further` the same, its number before the kind.
        """
        digests = {kind: tensors_digest(tensors) for kind, tensors in self.tensors.items()}
        for number, each in enumerate(self.further, start=1):
            digests |= {f"{number}/{kind}": digest for kind, digest in each.fingerprint().items()}
        return digests

    def _found(self, given: Mapping[str, Sequence[str]]) -> dict[str, dict[str, str]]:
        # for each parameter, by its canonical name: kind → the name, of several for tied ones, that has a tensor
        held = {kind: dict.fromkeys(tensors) for kind, tensors in self.tensors.items()}
        return {
            canonical: {kind: name for kind in held for name in reversed(names) if name in held[kind]}
            for canonical, names in given.items()
        }

    def _read(self, kind: str, names: Mapping[str, str], parameter: nn.Parameter, output: int) -> Tensor | None:
        tensor = self.tensors[kind][names[kind]] if kind in names else None
        if tensor is not None:
            check_fit(kind, names[kind], tensor, parameter, output)
        return tensor

    def _restraint(
        self,
        names: Mapping[str, str],
        place: "_Place",
        mean: FisherMean | None = None,
        *,
        share: float,
        further: tuple[Restraint, ...] = (),
    ) -> Restraint:
        shard, weights = place.shard, place.shard.weights()
        shape = shard.shape if len(shard.shape) < 3 else (shard.shape[0], math.prod(shard.shape[1:]))

        def held(kind: str) -> Tensor | None:
            tensor = self._read(kind, names, shard.parameter, place.output)
            if tensor is None:
                return None
            if kind == "fisher" and mean is not None:
                mean.add(tensor)
            part = tensor.detach().reshape(-1)[shard.start : shard.start + shard.length]
            target = self.storage_device or weights.device
            if part.untyped_storage().nbytes() < part.nbytes:  # L2-SP's ones, which a copy would write out
                return part[:1].to(target, self.storage_dtype).expand(part.shape)
            part = part.to(target, self.storage_dtype)
            return part if shard.is_whole else part.clone()  # a view would keep the whole alive

        anchor, fisher = held("anchor"), held("fisher")
        assert anchor is not None
        basis = self._read("subspace", names, shard.parameter, place.output)
        cut: tuple[int, ...] = ()
        if basis is not None:
            # Laid out alike wherever it is from, a factorization or a file: a product's last bit depends on strides.
            basis = basis.detach().to(weights.device, working_dtype(weights.dtype), copy=True).contiguous()
            if not shard.is_whole and place.output == 0:
                basis = basis[rows_held(shard.start, shard.length, shape[1])].clone()
            elif not shard.is_whole:
                cut = shared_rows(place.layout, shape[1])
        return Restraint(
            shape=shape,
            anchor=anchor,
            fisher=fisher,
            basis=basis,
            output_dimension=place.output,
            start=shard.start,
            is_whole=shard.is_whole,
            shared_rows=cut,
            inside=self.subspace_side == "inside",
            gamma_share=share,
            further=further,
        )


@dataclasses.dataclass(frozen=True)
class _Place:
    """A parameter's shard, the dimension of its outputs, and start and length of every process's shard."""

    shard: ParameterShard
    output: int
    layout: Sequence[tuple[int, int]]
