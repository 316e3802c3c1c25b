"""Whether a penalty's tensors fit a model: names, shapes, signs, orthonormality, each refused in one line."""

import difflib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hf_progressive.penalty.shards import whole_shape

_ORTHONORMALITY_LIMIT = 1e-3
_NAMES_SHOWN = 5


def output_dimension(model: nn.Module, name: str) -> int:
    """Return the dimension of a weight that runs over its module's outputs.

    Args:
        model: The model.
        name: The weight's name, as `named_parameters` has it: of tied weights, the first one decides.

    Returns:
        1 for a Conv1D (in, out) or an Embedding (vocab, out), 0 for a Linear (out, in) and all else.

    >>> model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2))
    >>> output_dimension(model, "0.weight"), output_dimension(model, "1.weight")
    (1, 0)
    """
    owner = model.get_submodule(name.rpartition(".")[0])
    return 1 if isinstance(owner, Conv1D | nn.Embedding) else 0


def canonical_names(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Return, for each parameter named, the name `named_parameters` has for it and the one given.

    Args:
        model: The model.
        names: Names of parameters; of tied ones any, or several.

    Returns:
        Canonical name → name given, the canonical one where both are.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> model[1].weight = model[0].weight
    >>> canonical_names(model, ["1.weight", "1.bias"])
    {'0.weight': '1.weight', '1.bias': '1.bias'}
    """
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    everything = dict(model.named_parameters(remove_duplicate=False))
    chosen: dict[str, str] = {}
    for name in names:
        canonical = first[id(everything[name])]
        if name == canonical or canonical not in chosen:
            chosen[canonical] = name
    return chosen


def require_known(kind: str, names: Mapping[str, Tensor], known: Mapping[str, object], where: str) -> None:
    """Raise if a mapping has names that another lacks.

    Args:
        kind: What the mapping is, for the message.
        names: The mapping.
        known: Where its names must be.
        where: What that is, for the message.

    Raises:
        ValueError: Some are not there; up to five are listed, with the nearest name that is.
    """
    unknown = [name for name in names if name not in known]
    if not unknown:
        return
    shown = []
    for name in unknown[:_NAMES_SHOWN]:
        nearest = difflib.get_close_matches(name, list(known), n=1)
        shown.append(f"{name} (nearest: {nearest[0]})" if nearest else name)
    more = f" and {len(unknown) - _NAMES_SHOWN} more" if len(unknown) > _NAMES_SHOWN else ""
    raise ValueError(f"{kind} names parameters that {where} does not have: {', '.join(shown)}{more}")


def check_fit(
    model: nn.Module,
    anchor: Mapping[str, Tensor],
    fisher: Mapping[str, Tensor],
    subspace: Mapping[str, Tensor],
) -> None:
    """Raise unless W₀, Ω and U can restrain a model.

    Args:
        model: The model.
        anchor: W₀ by name.
        fisher: Ω by name.
        subspace: U by name.

    Raises:
        ValueError: A name or shape does not fit, a Fisher entry is negative or NaN, a basis is not orthonormal, or an
            anchor is the model's own parameter.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    require_known("the anchor", anchor, parameters, "the model")
    for canonical, name in canonical_names(model, anchor).items():
        shape, tensor = whole_shape(parameters[name]), anchor[name]
        _check_shape("anchor", name, tensor, shape)
        if tensor.numel() and tensor.data_ptr() == parameters[name].data_ptr():
            raise ValueError(
                f"anchor[{name!r}] is the model's own parameter, so it would move with it; "
                "pass a copy: {name: p.detach().clone() for name, p in model.named_parameters()}"
            )
        if name in fisher:
            _check_fisher(name, fisher[name], shape)
        if name in subspace:
            _check_basis(name, subspace[name], shape, output_dimension(model, canonical))


def _check_shape(kind: str, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(
            f"{kind}[{name!r}] has shape {tuple(tensor.shape)}, the model's parameter {shape}; "
            "it must be given in the child's coordinates"
        )


def _check_fisher(name: str, fisher: Tensor, shape: tuple[int, ...]) -> None:
    _check_shape("fisher", name, fisher, shape)
    if not bool((fisher >= 0).all()):
        raise ValueError(f"fisher[{name!r}] has negative or NaN entries; a diagonal Fisher is at least 0")


def _check_basis(name: str, basis: Tensor, shape: tuple[int, ...], output: int) -> None:
    if len(shape) != 2:
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
