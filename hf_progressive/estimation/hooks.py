"""Hooks on a model's layers: what enters each, and what gradient comes back to it, while one backward pass runs."""

import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook

from hf_progressive.distributed.working_dtype import working_dtype


@dataclass(frozen=True)
class Options:
    """What a layer was called with beside its one tensor: what is the same for all sequences."""

    positional: tuple[Any, ...] = ()
    named: dict[str, Any] = field(default_factory=dict)


Receiver = Callable[[nn.Module, Tensor, Tensor, Options], None]
"""Called with a layer, its input (B, ...), the gradient with respect to its output (B, ...) and its options."""


class UnfitLayerError(Exception):
    """A layer from whose input and output gradient the gradients of single sequences cannot be told."""


def layer_parameters(model: nn.Module) -> dict[nn.Module, list[str]]:
    """Return each layer that holds parameters of its own, with their names in it.

    A parameter that a layer shares with one inside it (the bias of BERT's head and of its decoder) counts there alone.
    """
    found = {}
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False, remove_duplicate=False))
        inside = {id(parameter) for child in module.children() for parameter in child.parameters()} if own else set()
        if names := [name for name, parameter in own.items() if id(parameter) not in inside]:
            found[module] = names
    return found


@contextlib.contextmanager
def untracked_parameters(model: nn.Module) -> Iterator[None]:
    """Keep parameters out of the graphs recorded within the block, so that backward passes skip their gradients.

    A parameter is kept out only while the layer that holds it runs. Engines that gather parameters there are not
    disturbed, and one that is used elsewhere still receives its `grad`, which gives it away.
    """
    untracked: list[list[nn.Parameter]] = []
    layers = layer_parameters(model)

    def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        # Within torch.func a layer holds tensors that are no parameters, and those are to be differentiated.
        held = [getattr(module, name) for name in layers[module]]
        own = [p for p in held if isinstance(p, nn.Parameter) and p.requires_grad]
        for parameter in own:
            parameter.requires_grad_(False)
        untracked.append(own)

    def after(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        for parameter in untracked.pop():
            parameter.requires_grad_(True)

    with contextlib.ExitStack() as hooks:
        for module in layers:
            hooks.enter_context(module.register_forward_pre_hook(before))
            hooks.enter_context(module.register_forward_hook(after))
        try:
            yield
        finally:
            for parameter in itertools.chain(*untracked):  # left over by a forward pass that raised
                parameter.requires_grad_(True)


@dataclass
class BackwardPass:
    """Where a backward pass through hooked layers stands."""

    outstanding: Counter[nn.Module] = field(default_factory=Counter)
    """How many gradients are still to come for each layer."""
    row_outputs: list[Tensor] = field(default_factory=list)
    """Outputs (B, out): as many rows as sequences, but whose? A pooled vector's, or tokens' that were picked."""
    _weights: Tensor | None = None
    _norms: list[tuple[nn.Module, Tensor, Tensor]] = field(default_factory=list)

    @contextlib.contextmanager
    def weighing(self, weights: Tensor) -> Iterator[None]:
        """Let passes of losses (B,) times these weights (B,) within the block hand over nothing.

        Every gradient of theirs is compared with that of the plain losses, which must follow: see `mixed_layer`.
        """
        self._weights = weights
        try:
            yield
        finally:
            self._weights = None

    def mixed_layer(self) -> nn.Module | None:
        """Return a layer whose row b did not scale as sequence b's loss: it is of another sequence, or of several."""
        largest = max((float(plain.max()) for _, _, plain in self._norms), default=0.0)
        for module, weighed, plain in self._norms:
            epsilon = torch.finfo(plain.dtype).eps
            if bool(((weighed - plain).abs() > epsilon**0.5 * plain + 100 * epsilon * largest).any()):
                return module
        return None


@contextlib.contextmanager
def gradient_hooks(
    modules: Iterable[nn.Module], receive: Receiver, sequences: int, *, apart: bool = True
) -> Iterator[BackwardPass]:
    """Hand every layer's input and output gradient to a function as soon as the backward pass has them.

    Each layer takes one tensor (B, ...) and returns another, B `sequences` in front; one that ran once for all
    sequences, as one for positions does, is made to count for each of them. `receive` is called in the order of the
    backward pass, once for every time a layer ran. Where sequences need not be told `apart`, any layer will do.

    Yields:
        How far the pass has come.
    """
    state = BackwardPass()
    receiving = False

    def after(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> Tensor | None:
        if receiving:
            return None
        if apart:
            _check_layer(module, inputs, named, output, sequences)
        kept = (inputs[0] if inputs else next(iter(named.values()))).detach()
        options = Options(inputs[1:], named)
        if len(output) == 1 < sequences and output.ndim > 1:
            kept = kept.expand(sequences, *kept.shape[1:]) if len(kept) == 1 else kept
            output = output.expand(sequences, *output.shape[1:])
        if not output.requires_grad:
            output.requires_grad_()  # the first layer: nothing before it needs a gradient
        state.outstanding[module] += 1
        if output.ndim == 2:
            state.row_outputs.append(output)
        weighed: Tensor | None = None

        def on_gradient(gradient: Tensor) -> None:
            nonlocal receiving, weighed
            if state._weights is not None:
                weighed = _row_norms(gradient) / state._weights
                return
            if weighed is not None:
                state._norms.append((module, weighed, _row_norms(gradient)))
            state.outstanding[module] -= 1
            receiving = True
            try:
                receive(module, kept, gradient, options)
            finally:
                receiving = False

        register_multi_grad_hook((output,), on_gradient, mode="any")
        return output

    with contextlib.ExitStack() as hooks:
        for module in modules:
            hooks.enter_context(module.register_forward_hook(after, with_kwargs=True))
        yield state


def _row_norms(gradient: Tensor) -> Tensor:
    flat = gradient.flatten(1)
    norms: Tensor = torch.linalg.vector_norm(flat, dim=1, dtype=working_dtype(gradient.dtype))  # (B,)
    return norms


def _check_layer(
    module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Tensor, sequences: int
) -> None:
    # It must take one tensor and return one, with the sequences in front, or one for all of them.
    kind = type(module).__name__
    constant = all(_is_constant(value, sequences) for value in (*inputs[1:], *named.values()))
    if not (inputs and isinstance(inputs[0], Tensor) and constant and isinstance(output, Tensor)):
        raise UnfitLayerError(f"the {kind} with parameters of its own does not map one tensor to one tensor")
    if output.ndim < 2 or len(output) not in (1, sequences) or len(inputs[0]) not in (len(output), sequences):
        raise UnfitLayerError(f"the {kind} returned the shape {tuple(output.shape)}, not (B, ...) for B = {sequences}")


def _is_constant(value: Any, sequences: int) -> bool:
    if isinstance(value, Tensor):
        return not value.requires_grad and (sequences == 1 or value.ndim == 0 or len(value) != sequences)
    return value is None or isinstance(value, bool | int | float | str)


@contextlib.contextmanager
def output_hooks(modules: Iterable[nn.Module], receive: Callable[[nn.Module, Tensor], None]) -> Iterator[None]:
    """Hand every layer's output to a function."""

    def after(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        receive(module, output)

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
