"""What one use of a layer adds to the gradient of its parameters, for each sequence of a batch apart.

The gradient a sequence b gives a layer's parameters follows from the layer's input x_b and the gradient g_b of its
output alone. For the layers language models are made of it has a closed form, which is kept unevaluated where the
evaluated one, with a matrix for each sequence, would be large.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hf_progressive.estimation.hooks import UnfitLayerError


class GradientPart(Protocol):
    """What one use of a parameter adds to its gradient, for each of B sequences."""

    def add_to(self, tile: Tensor, sequences: slice, rows: slice) -> None:
        """Add the part to a tile (sequences, rows, columns) of the gradients."""


@dataclass(frozen=True)
class ProductPart:
    """Σ_t left_bt right_btᵀ."""

    left: Tensor  # (B, T, rows)
    right: Tensor  # (B, T, columns)

    def add_to(self, tile: Tensor, sequences: slice, rows: slice) -> None:
        left, right = self.left[sequences, :, rows].to(tile.dtype), self.right[sequences].to(tile.dtype)
        torch.baddbmm(tile, left.mT, right, out=tile)


@dataclass(frozen=True)
class RowPart:
    """Vectors added to single rows."""

    rows: Tensor  # their numbers, (B, T)
    values: Tensor  # (B, T, columns)

    def add_to(self, tile: Tensor, sequences: slice, rows: slice) -> None:
        numbers = self.rows[sequences]
        inside = (numbers >= rows.start) & (numbers < rows.stop)  # (b, T)
        sequence = inside.nonzero()[:, 0]
        tile_rows = sequence * tile.shape[1] + numbers[inside] - rows.start
        tile.flatten(0, 1).index_add_(0, tile_rows, self.values[sequences][inside].to(tile.dtype))


@dataclass(frozen=True)
class WholePart:
    """The gradient itself."""

    values: Tensor  # (B, *shape of the parameter)

    def add_to(self, tile: Tensor, sequences: slice, rows: slice) -> None:
        tile += self.values[sequences, rows].reshape(tile.shape)


def _positions_summed(values: Tensor, dimensions: int = 1) -> WholePart:
    """Return (B, ..., *shape) summed over all but the first and the last dimensions."""
    return WholePart(values.flatten(1, -1 - dimensions).sum(1))


def _linear(module: nn.Linear, x: Tensor, gradient: Tensor) -> dict[str, GradientPart]:
    weight = ProductPart(gradient.flatten(1, -2), x.flatten(1, -2))  # (B, T, out), (B, T, in)
    return {"weight": weight} if module.bias is None else {"weight": weight, "bias": _positions_summed(gradient)}


def _conv1d(module: Conv1D, x: Tensor, gradient: Tensor) -> dict[str, GradientPart]:
    weight = ProductPart(x.flatten(1, -2), gradient.flatten(1, -2))  # (B, T, in), (B, T, out)
    return {"weight": weight, "bias": _positions_summed(gradient)}


def _embedding(module: nn.Embedding, ids: Tensor, gradient: Tensor) -> dict[str, GradientPart]:
    if module.max_norm is not None or module.scale_grad_by_freq:
        raise UnfitLayerError("an Embedding rescales its rows by what a batch holds")
    if module.padding_idx is not None:  # that row is never trained
        gradient = gradient.masked_fill((ids == module.padding_idx)[..., None], 0)
    return {"weight": RowPart(ids.flatten(1), gradient.flatten(1, -2))}


def _layer_norm(module: nn.LayerNorm, x: Tensor, gradient: Tensor) -> dict[str, GradientPart]:
    dimensions = len(module.normalized_shape)
    normalized = F.layer_norm(x, module.normalized_shape, eps=module.eps)
    parts: dict[str, GradientPart] = {"weight": _positions_summed(gradient * normalized, dimensions)}
    return parts if module.bias is None else parts | {"bias": _positions_summed(gradient, dimensions)}


def _torch_rms_norm(module: nn.RMSNorm, x: Tensor, gradient: Tensor) -> dict[str, GradientPart]:
    normalized = F.rms_norm(x, module.normalized_shape, eps=module.eps)
    return {"weight": _positions_summed(gradient * normalized, len(module.normalized_shape))}


def _transformers_rms_norm(module: Any, x: Tensor, gradient: Tensor) -> dict[str, GradientPart]:
    inverse = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + module.variance_epsilon)
    normalized = (x.float() * inverse).to(x.dtype)  # in float32 whatever the model, as these classes have it
    return {"weight": _positions_summed(gradient * normalized)}


def _any_layer(module: nn.Module, x: Tensor, gradient: Tensor) -> dict[str, GradientPart]:
    # Run the layer once more for each sequence and pull its gradient back.
    if any(hasattr(parameter, "ds_tensor") for parameter in module.parameters(recurse=False)):
        raise UnfitLayerError(f"no closed form is known for a {type(module).__name__}, whose weights ZeRO-3 divides")
    parameters = {name: parameter.detach() for name, parameter in module.named_parameters(recurse=False)}

    def product(values: dict[str, Tensor], one_x: Tensor, one_gradient: Tensor) -> Tensor:
        output: Tensor = torch.func.functional_call(module, values, (one_x[None],))
        return (output * one_gradient[None]).sum()

    try:
        values = torch.func.vmap(torch.func.grad(product), in_dims=(None, 0, 0))(parameters, x, gradient)
    except RuntimeError as error:
        raise UnfitLayerError(f"a {type(module).__name__} cannot be run sequence by sequence: {error}") from error
    return {name: WholePart(value) for name, value in values.items()}


_Rule = Callable[..., dict[str, GradientPart]]
_RULES: dict[type[nn.Module], _Rule] = {
    nn.Linear: _linear,
    Conv1D: _conv1d,
    nn.Embedding: _embedding,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _torch_rms_norm,
}
"""Closed forms by exact class: a subclass may compute something else."""

_RMS_NORMS = {
    "transformers.models.llama.modeling_llama.LlamaRMSNorm",
    "transformers.models.mistral.modeling_mistral.MistralRMSNorm",
    "transformers.models.qwen2.modeling_qwen2.Qwen2RMSNorm",
    "transformers.models.qwen3.modeling_qwen3.Qwen3RMSNorm",
}
"""Classes of one and the same formula, named and not imported, since each family's module takes its time."""


def gradient_parts(module: nn.Module, x: Tensor, gradient: Tensor) -> dict[str, GradientPart]:
    """Tell what one use of a layer adds to the gradients of its own parameters, by their names.

    Its input x and the gradient with respect to its output are (B, T, ...). Where no closed form is known for its
    class, `torch.func` differentiates it once more; an UnfitLayerError says that the sequences cannot be told apart.

    >>> parts = gradient_parts(nn.Linear(3, 2), torch.ones(1, 4, 3), torch.ones(1, 4, 2))
    >>> parts["weight"].left.shape, parts["bias"].values
    (torch.Size([1, 4, 2]), tensor([[4., 4.]]))
    """
    kind = type(module)
    if f"{kind.__module__}.{kind.__qualname__}" in _RMS_NORMS:
        return _transformers_rms_norm(module, x, gradient)
    return _RULES.get(kind, _any_layer)(module, x, gradient)
