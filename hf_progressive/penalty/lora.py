"""Elastic weight consolidation of a model that LoRA trains: the base model's Ω on what the adapters add.

    Φ(A, B) = λ·½ Σ_i Ω_ii (ΔW_i)²,    ΔW = s·B·A

LoRA (Hu et al. 2021, arXiv 2106.09685) leaves the weights W₀ as they are and adds s·B·A. So ΔW needs no anchor, and an
Ω on W₀ itself would restrain what does not move.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hf_progressive.penalty.lora_product import AdaptedWeight, Adapter, BoundLoraPenalty
from hf_progressive.penalty.parameter_names import plain_name
from hf_progressive.penalty.quantized import packed_names
from hf_progressive.penalty.shards import whole_shape
from hf_progressive.penalty.specification import InheritancePenalty
from hf_progressive.penalty.validation import check_storage, check_weight, require_known

_MOVE_THE_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")
"""Ways to begin an adapter that take its first product off the base weight."""


@dataclasses.dataclass(frozen=True, eq=False)
class LoraPenalty:
    """Φ on what LoRA's adapters add to a model, ½λ Σ Ω (s·B·A)², Ω being the base model's Fisher information.

    It goes where an `InheritancePenalty` goes: `ProgressiveTrainer(..., penalty=LoraPenalty(fisher, ewc_lambda=...))`.
    The product of the adapters that are active is restrained, with PEFT's scale (rslora's too), of an embedding, a
    Conv1D and a convolution in the weight's own layout. The gradient to A and B has a closed form, for which at most
    one layer's product is held. The base weights are not read and may be quantized, Ω being that of the model before.

    Args:
        fisher: Ω, as `estimate_fisher` returns it for the base model before PEFT wraps it: name → tensor of the
            weight's shape, entries ≥ 0. An adapted weight without an entry is left free.
        ewc_lambda: λ ≥ 0.
        storage_dtype: What Ω is kept in; None keeps its own.
        storage_device: Where Ω is kept, such as "cpu"; None keeps it beside the adapters. Every process holds Ω of
            the adapted weights whole.

    Raises:
        ValueError: λ is negative, or there is no Ω. From `validate` and `bind`: the model has no active, trainable
            LoRA adapter with an Ω; names or shapes do not fit; or an adapter adds something other than s·B·A to the
            weights that Ω was estimated for (DoRA and other variants, lora_bias, PiSSA and other ways to begin that
            change the base weights).

    >>> LoraPenalty({"weight": torch.ones(2, 2)}, ewc_lambda=-1.0)
    Traceback (most recent call last):
    ValueError: ewc_lambda is -1.0; it must be a finite number of at least 0
    """

    fisher: Mapping[str, Tensor] = dataclasses.field(repr=False)
    _: dataclasses.KW_ONLY
    ewc_lambda: float
    storage_dtype: torch.dtype | None = None
    storage_device: torch.device | str | None = None

    gamma: ClassVar[float] = 0.0
    apply: ClassVar[str] = "gradient"
    subspace_side: ClassVar[str] = "outside"

    def __post_init__(self) -> None:
        check_weight("ewc_lambda", self.ewc_lambda)
        check_storage(self.storage_dtype, self.storage_device)
        if not self.fisher:
            raise ValueError("fisher is empty; pass fisher=estimate_fisher(...) of the base model")

    @property
    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """The mappings: `fisher` → name → tensor."""
        return {"fisher": self.fisher}

    def fingerprint(self) -> dict[str, str]:
        """Return a SHA-256 digest of Ω, to tell one penalty from another."""
        return {"fisher": InheritancePenalty(self.fisher).fingerprint()["anchor"]}

    def validate(self, model: nn.Module) -> None:
        """Check Ω and the adapters of a model, as `bind` does; see the class."""
        for name, layer, adapters in self._adapted(model):
            self._omega(name, layer, adapters)

    def bind(self, model: nn.Module) -> BoundLoraPenalty:
        """Take Ω and the factors of a model as its engine has prepared it; see the class."""
        weights = []
        for name, layer, adapters in self._adapted(model):
            omega = self._omega(name, layer, adapters)
            place = self.storage_device or adapters[0].down.device
            weights.append(AdaptedWeight(fisher=omega.to(place, self.storage_dtype), adapters=adapters))
        return BoundLoraPenalty(weights, ewc_lambda=self.ewc_lambda)

    def terms(self, model: nn.Module, *, factor: float = 1.0) -> dict[str, Tensor]:
        """Bind Φ to a model and return `ewc`, its value, and `subspace`, which is 0."""
        return self.bind(model).terms(factor=factor)

    def _adapted(self, model: nn.Module) -> Iterator[tuple[str, nn.Module, tuple[Adapter, ...]]]:
        # the adapted weights that have an Ω, by the name that fisher has for them
        known = {plain_name(name) for name, _ in model.named_parameters(remove_duplicate=False)} | {
            *packed_names(model)
        }
        given = {plain_name(name): name for name in self.fisher}
        require_known("fisher", self.fisher, {*known, *(given[name] for name in given.keys() & known)}, "the model")
        found = trained = False
        tied = _tied_names(model)
        for plain, layer in _lora_layers(model):
            found = True
            plain = next((name for name in (plain, *tied.get(plain, ())) if name in given), plain)
            adapters = _active_adapters(plain, layer, getattr(model, "peft_config", {}))
            if plain in given and adapters:
                trained |= any(f.requires_grad for adapter in adapters for f in (adapter.down, adapter.up))
                yield given[plain], layer, adapters
        if not found:
            raise ValueError("the model has no LoRA adapters; wrap it with peft, or use InheritancePenalty")
        if not trained:
            raise ValueError("Φ has no effect: no active adapter of a weight that fisher names requires a gradient")

    def _omega(self, name: str, layer: nn.Module, adapters: tuple[Adapter, ...]) -> Tensor:
        # Ω as (out, in), as the product is
        omega = self.fisher[name].detach()
        down, up = (whole_shape(factor) for factor in (adapters[0].down, adapters[0].up))
        transposed = _is_transposed(layer)
        expected = (down[1], up[0]) if transposed else (up[0], *down[1:])
        if tuple(omega.shape) != expected:
            raise ValueError(f"fisher[{name!r}] has shape {tuple(omega.shape)}, what the adapters add {expected}")
        if not bool((omega >= 0).all()):
            raise ValueError(f"fisher[{name!r}] has negative or NaN entries; a diagonal Fisher is at least 0")
        return omega.T if transposed else omega.flatten(1)


def _lora_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    # with the plain name of the weight that each adapts
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield plain_name(f"{name}.weight"), module


def _tied_names(model: nn.Module) -> dict[str, list[str]]:
    # the plain names that each parameter has, of those with several, by each of them
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(plain_name(name))
    return {name: several for several in names.values() if len(several) > 1 for name in several}


def _active_adapters(name: str, layer: Any, configs: Mapping[str, Any]) -> tuple[Adapter, ...]:
    from peft.tuners.lora.layer import MultiheadAttention, ParamWrapper

    if layer.merged or layer.disable_adapters:
        raise ValueError(f"{name}: its adapters are {'merged' if layer.merged else 'disabled'}; Φ needs them apart")
    adapters = []
    for active in layer.active_adapters:
        if active in layer.lora_A:
            down, up = layer.lora_A[active].weight, layer.lora_B[active].weight
        elif active in layer.lora_embedding_A:
            down, up = layer.lora_embedding_A[active], layer.lora_embedding_B[active]
        else:
            continue
        begun = getattr(configs.get(active), "init_lora_weights", True)
        fault = None
        if layer.use_dora.get(active) or layer.lora_variant.get(active) is not None:
            variant = "DoRA" if layer.use_dora.get(active) else type(layer.lora_variant[active]).__name__
            fault = f"{variant} adds more than s·B·A"
        elif isinstance(layer, MultiheadAttention | ParamWrapper) or getattr(layer.get_base_layer(), "groups", 1) > 1:
            fault = f"{type(layer).__name__} adds something other than s·B·A to one weight"
        elif layer.lora_bias.get(active):
            fault = "lora_bias moves the bias too"
        elif isinstance(begun, str) and begun.lower().startswith(_MOVE_THE_BASE):
            fault = f"init_lora_weights={begun!r} changes the base weights, so that s·B·A is not what was added"
        if fault is not None:
            raise ValueError(f"LoraPenalty restrains plain LoRA: {name}, adapter {active!r}: {fault}")
        adapters.append(Adapter(down=down, up=up, scale=float(layer.scaling[active])))
    return tuple(adapters)


def _is_transposed(layer: Any) -> bool:
    # whether the base weight is (in, out), or an embedding's (vocabulary, out)
    return bool(getattr(layer, "fan_in_fan_out", False)) or isinstance(layer.get_base_layer(), nn.Embedding)
