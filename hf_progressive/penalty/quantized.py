"""Which weights a model holds in a quantized form, that neither moves nor has a gradient."""

from collections.abc import Iterator

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from hf_progressive.penalty.parameter_names import plain_name


def quantized_form(tensor: Tensor) -> str | None:
    """Return in which form a weight is quantized, a dtype or torchao's or quanto's class; None for a plain weight.

    >>> import torch
    >>> quantized_form(torch.zeros(2, dtype=torch.uint8)), quantized_form(torch.zeros(2))
    ('torch.uint8', None)
    """
    if isinstance(tensor, DTensor):
        return None
    if is_traceable_wrapper_subclass(tensor):
        return type(tensor).__name__
    return None if tensor.is_floating_point() or tensor.is_complex() else str(tensor.dtype)


def packed_names(model: nn.Module) -> Iterator[str]:
    """Yield the plain names of weights and biases that layers hold packed, under other names (GPTQ's `qweight`)."""
    for name, module in model.named_modules():
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if any(quantized_form(tensor) for tensor in own):
            yield from (plain_name(f"{name}.{part}") for part in ("weight", "bias"))


def require_plain_parameters(model: nn.Module) -> None:
    """Raise a ValueError that names the first layer whose weights can have no gradient, since they are packed."""
    for name, module in model.named_modules():
        own = {**dict(module.named_parameters(recurse=False)), "qweight": getattr(module, "qweight", None)}
        for part, tensor in own.items():
            if isinstance(tensor, Tensor) and not (tensor.is_floating_point() or tensor.is_complex()):
                raise ValueError(
                    f"{name}.{part} is quantized ({tensor.dtype}) and has no gradient; estimate the Fisher "
                    "information of the model before it is quantized"
                )
