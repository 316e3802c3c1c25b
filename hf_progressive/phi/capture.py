"""What enters a layer and what gradient comes back to it, layer by layer, while one backward pass runs."""

import contextlib
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook

Receiver = Callable[[nn.Module, Tensor, Tensor], None]
"""Called with a layer, its input and the gradient with respect to its output."""


@contextlib.contextmanager
def captured_gradients(modules: Iterable[nn.Module], receive: Receiver) -> Iterator[None]:
    """Hand every layer's input and output gradient to a function as soon as the backward pass has them.

    The layers' own parameters take no part in the graph recorded within the block, so that the backward pass skips
    their summed gradients. They are excluded only while their own layer runs: engines that gather parameters there
    are not disturbed, and a parameter used outside its layer still receives its `grad`.

    Args:
        modules: Layers that take a tensor first and return a tensor.
        receive: Called with (layer, input, gradient of the output) in the order of the backward pass, once for
            every time the layer ran.

    Yields:
        Nothing.
    """
    excluded: list[list[nn.Parameter]] = []

    def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        active = [parameter for parameter in module.parameters(recurse=False) if parameter.requires_grad]
        for parameter in active:
            parameter.requires_grad_(False)
        excluded.append(active)

    def after(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        for parameter in excluded.pop():
            parameter.requires_grad_(True)
        if not torch.is_grad_enabled():
            return
        if not output.requires_grad:
            output.requires_grad_()  # the first layer: nothing before it needs a gradient
        kept = inputs[0].detach()
        register_multi_grad_hook((output,), lambda gradient: receive(module, kept, gradient), mode="any")

    handles = []
    for module in modules:
        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for active in excluded:  # left over by a forward pass that raised
            for parameter in active:
                parameter.requires_grad_(True)


@contextlib.contextmanager
def kept_gradients(model: nn.Module) -> Iterator[None]:
    """Give every parameter back the `grad` it had before the block.

    Args:
        model: Any module.

    Yields:
        Nothing; within the block every `grad` starts as None.
    """
    before = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in before:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in before:
            parameter.grad = gradient
