"""What one use of a layer adds to the gradient of its parameters, for each sequence of a batch apart.

The gradient a sequence b gives a layer's parameters follows from the layer's input x_b and the gradient g_b of its
output alone. For the layers most models are made of it has a closed form; elsewhere `torch.func` runs the layer once
more for each sequence. Both are kept unevaluated where the evaluated one, with a matrix for each sequence, would be
large.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.pytorch_utils import Conv1D

from hf_progressive.estimation.hooks import Options, UnfitLayerError

_PATCH_ENTRIES = 1 << 22
"""Entries of unfolded images held at a time, or those of one image."""

_RERUN_ENTRIES = 1 << 22
"""Entries of gradients that `torch.func` may evaluate at once."""


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
        values = self.values[:, None] if self.values.ndim == 1 else self.values  # of a single number
        tile += values[sequences, rows].reshape(tile.shape)


@dataclass(frozen=True)
class ConvolutionPart:
    """Σ_p g_bp patch_bpᵀ over positions p: the product of output gradients and the patches of the input under them."""

    x: Tensor  # (B, in, height, width)
    gradient: Tensor  # (B, out, height, width)
    groups: int
    window: dict[str, tuple[int, int]]  # what F.unfold takes

    def add_to(self, tile: Tensor, sequences: slice, rows: slice) -> None:
        x, gradient = self.x[sequences], self.gradient[sequences].flatten(2)  # (b, out, P)
        kernel = self.window["kernel_size"]
        patch = x.shape[1] * kernel[0] * kernel[1]
        at_once = max(1, _PATCH_ENTRIES // (patch * gradient.shape[2]))
        for first in range(0, len(x), at_once):
            some = slice(first, first + at_once)
            patches = F.unfold(x[some].to(tile.dtype), **self.window)  # (b, in·k·k, P)
            left = gradient[some].to(tile.dtype)
            if self.groups == 1:
                tile[some].baddbmm_(left[:, rows], patches.mT)
                continue
            left, patches = (t.view(len(t), self.groups, -1, t.shape[2]) for t in (left, patches))
            tile[some] += (left @ patches.mT).flatten(1, 2)[:, rows]


@dataclass(frozen=True)
class RerunPart:
    """The gradient of one parameter, by running the layer once more, in as many sequences at once as are asked for."""

    module: nn.Module
    name: str
    x: Tensor  # (B, ...)
    gradient: Tensor  # (B, ...)
    options: Options

    def add_to(self, tile: Tensor, sequences: slice, rows: slice) -> None:
        x, gradient = self.x[sequences], self.gradient[sequences]
        [values] = _rerun(self.module, [self.name], x, gradient, self.options).values()
        WholePart(values).add_to(tile, slice(None), rows)


def _positions_summed(values: Tensor, dimensions: int = 1) -> WholePart:
    """Return (B, ..., *shape) summed over all but the first and the last dimensions."""
    shape = values.shape[values.ndim - dimensions :]
    return WholePart(values.reshape(len(values), -1, *shape).sum(1))


def _positions_flat(values: Tensor) -> Tensor:
    return values.reshape(len(values), -1, values.shape[-1])  # (B, T, features); T = 1 for vectors


def _linear(module: nn.Linear, x: Tensor, gradient: Tensor) -> dict[str, GradientPart]:
    weight = ProductPart(_positions_flat(gradient), _positions_flat(x))  # (B, T, out), (B, T, in)
    return {"weight": weight} if module.bias is None else {"weight": weight, "bias": _positions_summed(gradient)}


def _conv1d(module: Conv1D, x: Tensor, gradient: Tensor) -> dict[str, GradientPart]:
    weight = ProductPart(_positions_flat(x), _positions_flat(gradient))  # (B, T, in), (B, T, out)
    return {"weight": weight, "bias": _positions_summed(gradient)}


def _convolution(module: nn.Conv1d | nn.Conv2d, x: Tensor, gradient: Tensor) -> dict[str, GradientPart] | None:
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        return None
    bias = {} if module.bias is None else {"bias": WholePart(gradient.flatten(2).sum(2))}
    if isinstance(module, nn.Conv1d):  # an image of one line
        x, gradient = x[:, :, None], gradient[:, :, None]
    line = (1,) if isinstance(module, nn.Conv1d) else ()
    none = (0,) if isinstance(module, nn.Conv1d) else ()
    window: dict[str, Any] = {
        "kernel_size": line + module.kernel_size,
        "stride": line + module.stride,
        "padding": none + module.padding,
        "dilation": line + module.dilation,
    }
    return {"weight": ConvolutionPart(x, gradient, module.groups, window), **bias}


def _embedding(module: nn.Embedding, ids: Tensor, gradient: Tensor) -> dict[str, GradientPart]:
    if module.max_norm is not None or module.scale_grad_by_freq:
        raise UnfitLayerError("an Embedding rescales its rows by what a batch holds")
    if module.padding_idx is not None:  # that row is never trained
        gradient = gradient.masked_fill((ids == module.padding_idx)[..., None], 0)
    return {"weight": RowPart(ids.reshape(len(ids), -1), _positions_flat(gradient))}


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


def _any_layer(
    module: nn.Module, names: Sequence[str], x: Tensor, gradient: Tensor, options: Options
) -> dict[str, GradientPart]:
    if any(hasattr(p, "ds_tensor") or isinstance(p, DTensor) for p in module.parameters()):
        raise UnfitLayerError(f"no closed form is known for the {type(module).__name__}, whose weights are divided")
    if len(x) * sum(module.get_parameter(name).numel() for name in names) <= _RERUN_ENTRIES:
        return {name: WholePart(value) for name, value in _rerun(module, names, x, gradient, options).items()}
    return {name: RerunPart(module, name, x, gradient, options) for name in names}


def _rerun(
    module: nn.Module, names: Sequence[str], x: Tensor, gradient: Tensor, options: Options
) -> dict[str, Tensor]:
    """Run a layer once more for each sequence and pull its gradient back to some of its parameters, (B, *shape)."""
    # Without duplicates removed: a weight that is shared with a layer inside counts there alone.
    held = {name: p.detach() for name, p in module.named_parameters(remove_duplicate=False)}
    wanted = {name: held.pop(name) for name in names}

    def product(values: dict[str, Tensor], one_x: Tensor, one_gradient: Tensor) -> Tensor:
        inputs = (one_x[None], *options.positional)
        output: Tensor = torch.func.functional_call(
            module, {**held, **values}, inputs, options.named, tie_weights=False
        )
        return (output * one_gradient[None]).sum()

    try:
        values: dict[str, Tensor] = torch.func.vmap(torch.func.grad(product), in_dims=(None, 0, 0))(
            wanted, x, gradient
        )
    except RuntimeError as error:
        raise UnfitLayerError(f"the {type(module).__name__} cannot be run sequence by sequence: {error}") from error
    return values


_Rule = Callable[..., dict[str, GradientPart] | None]
_RULES: dict[type[nn.Module], _Rule] = {
    nn.Linear: _linear,
    Conv1D: _conv1d,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
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


def gradient_parts(
    module: nn.Module, x: Tensor, gradient: Tensor, *, names: Sequence[str], options: Options | None = None
) -> dict[str, GradientPart]:
    """Tell what one use of a layer adds to the gradients of its own parameters, whose `names` are given.

    Its input x and the gradient with respect to its output are (B, ...). Where no closed form is known for its class,
    `torch.func` differentiates it once more, called with its `options`; an UnfitLayerError says that the sequences
    cannot be told apart.

    >>> layer, names = nn.Linear(3, 2), ["weight", "bias"]
    >>> parts = gradient_parts(layer, torch.ones(1, 4, 3), torch.ones(1, 4, 2), names=names)
    >>> parts["weight"].left.shape, parts["bias"].values
    (torch.Size([1, 4, 2]), tensor([[4., 4.]]))
    """
    kind = type(module)
    rule = _RULES.get(kind)
    if f"{kind.__module__}.{kind.__qualname__}" in _RMS_NORMS:
        rule = _transformers_rms_norm
    parts = None if rule is None else rule(module, x, gradient)
    if parts is None:
        return _any_layer(module, names, x, gradient, options or Options())
    if parts.keys() != set(names):
        raise UnfitLayerError(f"the {kind.__name__} has the parameters {', '.join(names)}, not those of its class")
    return parts
