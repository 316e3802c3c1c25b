"""Hooks on a model's layers: what enters each, and what gradient comes back to it, while one backward pass runs."""

import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook

Receiver = Callable[[nn.Module, Tensor, Tensor], None]
"""Called with a layer, its input (B, T, ...) and the gradient with respect to its output (B, T, ...)."""


class UnfitLayerError(Exception):
    """A layer from whose input and output gradient the gradients of single sequences cannot be told."""


@contextlib.contextmanager
def untracked_parameters(model: nn.Module) -> Iterator[None]:
    """Keep parameters out of the graphs recorded within the block, so that backward passes skip their gradients.

    A parameter is kept out only while the layer that holds it runs. Engines that gather parameters there are not
    disturbed, and one that is used elsewhere still receives its `grad`, which gives it away.
    """
    untracked: list[list[nn.Parameter]] = []

    def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        # Within torch.func a layer holds tensors that are no parameters, and those are to be differentiated.
        own = [p for p in module.parameters(recurse=False) if isinstance(p, nn.Parameter) and p.requires_grad]
        for parameter in own:
            parameter.requires_grad_(False)
        untracked.append(own)

    def after(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        for parameter in untracked.pop():
            parameter.requires_grad_(True)

    with contextlib.ExitStack() as hooks:
        for module in model.modules():
            if next(module.parameters(recurse=False), None) is not None:
                hooks.enter_context(module.register_forward_pre_hook(before))
                hooks.enter_context(module.register_forward_hook(after))
        try:
            yield
        finally:
            for parameter in itertools.chain(*untracked):  # left over by a forward pass that raised
                parameter.requires_grad_(True)


@contextlib.contextmanager
def gradient_hooks(modules: Iterable[nn.Module], receive: Receiver, sequences: int) -> Iterator[Counter[nn.Module]]:
    """Hand every layer's input and output gradient to a function as soon as the backward pass has them.

    Each layer takes one tensor (B, T, ...) and returns another, B `sequences` in front; one that ran once for all
    sequences, as one for positions does, is made to count for each of them. `receive` is called in the order of the
    backward pass, once for every time a layer ran.

    Yields:
        How many gradients are still to come for each layer.
    """
    outstanding: Counter[nn.Module] = Counter()
    receiving = False

    def after(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if receiving:
            return None
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

    with contextlib.ExitStack() as hooks:
        for module in modules:
            hooks.enter_context(module.register_forward_hook(after))
        yield outstanding


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
def output_hooks(
    modules: Iterable[nn.Module], mask: Tensor | None, receive: Callable[[nn.Module, Tensor], None]
) -> Iterator[None]:
    """Hand every layer's output at the tokens of the attention mask to a function."""

    def after(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        receive(module, output if mask is None else output[mask.bool()])

    with contextlib.ExitStack() as hooks:
        for module in modules:
            hooks.enter_context(module.register_forward_hook(after))
        yield


@contextlib.contextmanager
def kept_gradients(model: nn.Module) -> Iterator[None]:
    """Give every parameter back, after the block, the `grad` it had before; within it every `grad` starts as None."""
    before = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in before:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in before:
            parameter.grad = gradient
