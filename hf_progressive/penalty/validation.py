"""Whether a penalty's tensors fit a model: names, shapes, signs, orthonormality, each refused in one line."""

import difflib
import logging
from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hf_progressive.config.ranges import class_of
from hf_progressive.penalty.parameter_names import own_names
from hf_progressive.penalty.quantized import quantized_form
from hf_progressive.penalty.shards import whole_shape

logger = logging.getLogger(__name__)

_ORTHONORMALITY_LIMIT = 1e-3
_NAMES_SHOWN = 5


def output_dimension(model: nn.Module, name: str) -> int:
    """Return the dimension of a weight that runs over its module's outputs; of tied weights, the first name decides.

    It is 1 for a Conv1D (in, out) or an Embedding (vocab, out), 0 for a Linear (out, in), a convolution (out, in,
    *kernel) and all else.

    >>> model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2))
    >>> output_dimension(model, "0.weight"), output_dimension(model, "1.weight")
    (1, 0)
    """
    return weight_output_dimension(model.get_submodule(name.rpartition(".")[0]))


def weight_output_dimension(module: nn.Module) -> int:
    """Return the dimension of a module's own weight that runs over its outputs."""
    return 1 if isinstance(module, Conv1D | nn.Embedding) else 0


def canonical_names(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Return, for each parameter the anchor names, the name `named_parameters` has for it and the one given.

    Of tied parameters any name may be given, or several: the canonical one is preferred. What `torch.compile`, PEFT
    and engines put into a name may be left out. Unknown names are refused.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> model[1].weight = model[0].weight
    >>> canonical_names(model, ["1.weight", "1.bias"])
    {'0.weight': '1.weight', '1.bias': '1.bias'}
    """
    return {canonical: given[0] for canonical, given in given_names(model, names).items()}


def given_names(model: nn.Module, names: Iterable[str]) -> dict[str, list[str]]:
    """Return the same with all names given, of tied parameters the canonical one first.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> model[1].weight = model[0].weight
    >>> given_names(model, ["1.weight", "0.weight"])
    {'0.weight': ['0.weight', '1.weight']}
    """
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    everything = dict(model.named_parameters(remove_duplicate=False))
    own = own_names(everything, names)
    require_known("the anchor", names, {**everything, **own}, "the model")
    given: dict[str, list[str]] = {}
    for name in names:
        canonical = first[id(everything[own[name]])]
        place = 0 if name == canonical else len(given.get(canonical, ()))
        given.setdefault(canonical, []).insert(place, name)
    return given


def require_known(kind: str, names: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raise a ValueError if some of the names of `kind` are not `known` to `where`; it lists up to five."""
    known = dict.fromkeys(known)  # to ask a lazy mapping for a name may read its tensor
    unknown = [name for name in names if name not in known]
    if not unknown:
        return
    shown = []
    for name in unknown[:_NAMES_SHOWN]:
        nearest = difflib.get_close_matches(name, list(known), n=1)
        told = name if name.isprintable() else repr(name)
        shown.append(f"{told} (nearest: {nearest[0]})" if nearest else told)
    more = f" and {len(unknown) - _NAMES_SHOWN} more" if len(unknown) > _NAMES_SHOWN else ""
    raise ValueError(f"{kind} names parameters that {where} does not have: {', '.join(shown)}{more}")


def check_weight(symbol: str, value: float) -> None:
    """Raise a ValueError unless λ or γ is a finite number of at least 0."""
    try:
        fits = bool(0.0 <= value < float("inf"))
    except TypeError:
        fits = False
    if not fits:
        raise ValueError(f"{symbol} is {value!r}; it must be a finite number of at least 0")


def check_storage(dtype: object, device: object) -> None:
    """Raise a ValueError unless W₀ and Ω can be kept in a dtype and on a device; None is the default."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"storage_dtype is {dtype!r}; give a floating dtype, such as torch.bfloat16, or None")
    if device is None or isinstance(device, torch.device):
        return
    try:
        torch.device(str(device))
    except RuntimeError:
        raise ValueError(f"storage_device is {device!r}; give a device, such as 'cpu' or 'cuda:0', or None") from None


def require_anchored(tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Raise a ValueError unless all are mappings, and the anchor has what the others name."""
    for kind, given in tensors.items():
        if not isinstance(given, Mapping):
            wanted = "such as {name: p.detach().clone() for name, p in model.named_parameters()}"
            raise ValueError(f"{kind} is {class_of(given)}; pass tensors by the parameters' names, {wanted}")
    for kind in ("fisher", "subspace"):
        require_known(kind, tensors[kind], tensors["anchor"], "the anchor")


def require_trained(model: nn.Module, names: Collection[str]) -> None:
    """Raise a ValueError if all parameters of these names are frozen, and warn if some are: Φ does nothing there."""
    parameters = dict(model.named_parameters())
    restrained = canonical_names(model, names)
    frozen = sorted(name for own, name in restrained.items() if not parameters[own].requires_grad)
    if not frozen:
        return
    shown = ", ".join(frozen[:_NAMES_SHOWN]) + (" …" if len(frozen) > _NAMES_SHOWN else "")
    if len(frozen) < len(restrained):
        told = "Φ has no effect on frozen parameters, %d of the %d it restrains: %s"
        logger.warning(told, len(frozen), len(restrained), shown)
        return
    remedy = "restrain parameters that require a gradient"
    if hasattr(model, "peft_config"):
        remedy = "for LoRA's adapters use LoraPenalty(fisher, ewc_lambda=...), which restrains what they add to these"
    raise ValueError(f"Φ has no effect: every parameter it restrains is frozen ({shown}); {remedy}")


def warn_of_no_effect(
    tensors: Mapping[str, Mapping[str, Tensor]], *, ewc_lambda: float, gamma: float, further: Collection[object] = ()
) -> None:
    """Warn of a penalty without an estimate, and of an estimate whose weight is 0, as it is unless it is given."""
    if not (tensors.get("fisher") or tensors.get("subspace") or further):
        remedy = "InheritancePenalty.l2_sp(anchor, ewc_lambda=...), or give it fisher=estimate_fisher(...) as well"
        logger.warning("Φ has no effect: it was given an anchor alone; use %s", remedy)
    for kind, symbol, weight in (("fisher", "ewc_lambda", ewc_lambda), ("subspace", "gamma", gamma)):
        if tensors.get(kind) and weight == 0.0:
            logger.warning("Φ's %s has no effect: %s is 0; give the penalty %s=...", kind, symbol, symbol)


def check_fit(kind: str, name: str, tensor: Tensor, parameter: nn.Parameter, output: int) -> None:
    """Raise a ValueError unless a tensor of W₀, Ω or U can restrain the parameter that the mappings call `name`.

    `kind` is "anchor", "fisher" or "subspace", `output` what `output_dimension` returns.
    """
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{kind}[{name!r}] is {class_of(tensor)}; give a tensor, such as torch.as_tensor(...) makes")
    shape, form = whole_shape(parameter), quantized_form(parameter)
    if form is not None:
        raise ValueError(
            f"{kind}[{name!r}]: the model's weight is quantized ({form}) and does not move; leave it out, and "
            "restrain what LoRA adds to it with LoraPenalty"
        )
    if kind == "subspace":
        _check_basis(name, tensor, shape, output)
    elif tuple(tensor.shape) != shape:
        raise ValueError(
            f"{kind}[{name!r}] has shape {tuple(tensor.shape)}, the model's parameter {shape}; "
            "it must be given in the child's coordinates"
        )
    elif kind == "fisher" and not bool((tensor >= 0).all()):
        raise ValueError(f"fisher[{name!r}] has negative or NaN entries; a diagonal Fisher is at least 0")
    elif not bool(tensor.isfinite().all()):
        raise ValueError(f"{kind}[{name!r}] has entries that are not finite; check where it is from")
    elif kind == "anchor" and tensor.numel() and tensor.data_ptr() == parameter.data_ptr():
        raise ValueError(
            f"anchor[{name!r}] is the model's own parameter, so it would move with it; "
            "pass a copy: {name: p.detach().clone() for name, p in model.named_parameters()}"
        )


def _check_basis(name: str, basis: Tensor, shape: tuple[int, ...], output: int) -> None:
    if len(shape) < 2:
        raise ValueError(f"subspace[{name!r}]: the parameter has shape {shape}; only matrices have an output subspace")
    outputs = shape[output]
    if basis.ndim != 2 or basis.shape[0] != outputs or basis.shape[1] > outputs:
        raise ValueError(
            f"subspace[{name!r}] has shape {tuple(basis.shape)}; expected ({outputs}, r), r ≤ {outputs}: a basis of "
            f"the output side, dimension {output} of the {shape} weight"
        )
    with torch.autocast(basis.device.type, enabled=False):
        basis = basis.detach().float()
        excess = basis.T @ basis - torch.eye(basis.shape[1]).to(basis)  # (r, r)
    error = excess.abs().max().item() if excess.numel() else 0.0
    if not error <= _ORTHONORMALITY_LIMIT:
        raise ValueError(
            f"subspace[{name!r}]: its columns are not orthonormal, max |UᵀU − I| = {error:.2g} > "
            f"{_ORTHONORMALITY_LIMIT}; pass torch.linalg.qr(U).Q"
        )
