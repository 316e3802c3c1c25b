"""What enters a layer and what gradient comes back to it, layer by layer, while one backward pass runs."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook

Receiver = Callable[[nn.Module, Tensor, Tensor], None]
"""Called with a layer, its input (B, T, ...) and the gradient with respect to its output (B, T, ...)."""


class UnfitLayerError(Exception):
    """A layer from whose input and output gradient the gradients of single sequences cannot be told."""


@contextlib.contextmanager
def captured_gradients(
    modules: Iterable[nn.Module], receive: Receiver, sequences: int
) -> Iterator[Counter[nn.Module]]:
    """Hand every layer's input and output gradient to a function as soon as the backward pass has them.

    The layers' own parameters take no part in the graph recorded within the block, so that the backward pass skips
    their summed gradients. They are excluded only while their own layer runs: engines that gather parameters there
    are not disturbed, and a parameter used outside its layer still receives its `grad`.

    A layer that ran once for all sequences, as one for positions does, is made to count for each of them.

    Args:
        modules: Layers, each of which takes one tensor (B, T, ...) and returns another.
        receive: Called with (layer, input, gradient of the output) in the order of the backward pass, once for
            every time the layer ran.
        sequences: B.

    Yields:
        How many gradients are still to come for each layer.
    """
    excluded: list[list[nn.Parameter]] = []
    outstanding: Counter[nn.Module] = Counter()
    receiving = False

    def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if receiving:
            return
        active = [parameter for parameter in module.parameters(recurse=False) if parameter.requires_grad]
        for parameter in active:
            parameter.requires_grad_(False)
        excluded.append(active)

    def after(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if receiving:
            return None
        for parameter in excluded.pop():
            parameter.requires_grad_(True)
        _check_layer(module, inputs, output, sequences)
        kept = inputs[0].detach()
        if len(output) < sequences:
            kept, output = kept.expand(sequences, *kept.shape[1:]), output.expand(sequences, *output.shape[1:])
        if not output.requires_grad:
            output.requires_grad_()  # the first layer: nothing before it needs a gradient
        outstanding[module] += 1

        def on_gradient(gradient: Tensor) -> None:
            nonlocal receiving
            outstanding[module] -= 1
            receiving = True
            try:
                receive(module, kept, gradient)
            finally:
                receiving = False

        register_multi_grad_hook((output,), on_gradient, mode="any")
        return output

    handles = []
    for module in modules:
        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        yield outstanding
    finally:
        for handle in handles:
            handle.remove()
        for active in excluded:  # left over by a forward pass that raised
            for parameter in active:
                parameter.requires_grad_(True)


def _check_layer(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, sequences: int) -> None:
    # It must take one tensor and return one, both with the sequences in front.
    kind = type(module).__name__
    if len(inputs) != 1 or not isinstance(inputs[0], Tensor) or not isinstance(output, Tensor):
        raise UnfitLayerError(f"a {kind} with parameters of its own does not map one tensor to one tensor")
    shared = len(inputs[0]) == len(output) == 1
    if output.ndim < 3 or not (shared or len(inputs[0]) == len(output) == sequences):
        raise UnfitLayerError(
            f"a {kind} returned the shape {tuple(output.shape)}, not (B, T, ...) for B = {sequences}"
        )


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
