"""Squares of per-sample gradients, a sample being a sequence or another example, for a batch in one backward pass.

For a matrix the gradient of sequence b is a product, g_bᵀ x_b, and the products of all sequences together cost what
the product for their sum costs in an ordinary backward pass, which is left out in exchange. Only the square is kept,
and it is formed tile by tile, so that memory does not grow with the number of sequences times the size of the layer.

That row b of a layer's tensors belongs to sequence b cannot be seen from shapes where a batch has as many sequences as
positions, or where rows are picked. It is tried out: the losses are weighted, sequence by sequence, and a gradient
that does not follow its sequence's weight gives the layer away.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from hf_progressive.estimation.hooks import (
    BackwardPass,
    Options,
    UnfitLayerError,
    gradient_hooks,
    kept_gradients,
    layer_parameters,
    untracked_parameters,
)
from hf_progressive.estimation.layer_rules import GradientPart, RerunPart, RowPart, gradient_parts
from hf_progressive.estimation.sharded_sums import add_to_total, zero_totals

_TILE_ENTRIES = {"cpu": 1 << 21, "accelerator": 1 << 26}
"""Entries of gradient held at a time, 8 and 256 MiB in float32: enough for matrix products to run at full speed."""


def add_squares(total: Tensor, parts: list[GradientPart], sequences: int) -> None:
    """Add Σ_b (Σ parts)_b² to a running sum, in place, from what each use of the parameter gave for B sequences.

    >>> from hf_progressive.estimation.layer_rules import ProductPart
    >>> total, ones = torch.zeros(2, 3), torch.ones(4, 5, 3)  # 4 sequences of 5 tokens
    >>> add_squares(total, [ProductPart(ones[..., :2], ones), ProductPart(ones[..., :2], ones)], sequences=4)
    >>> total  # 4 · (5 + 5)²
    tensor([[400., 400., 400.],
            [400., 400., 400.]])
    """
    if len(parts) == 1 and isinstance(parts[0], RowPart):
        _add_row_squares(total, parts[0])
        return
    matrix = total.view(len(total) if total.ndim else 1, -1)  # (rows, columns)
    entries = _TILE_ENTRIES["cpu" if total.device.type == "cpu" else "accelerator"]
    height = min(len(matrix), max(1, entries // matrix.shape[1]))
    if any(isinstance(part, RerunPart) for part in parts):
        height = len(matrix)  # it is evaluated anew for each tile
    count = min(sequences, max(1, entries // (height * matrix.shape[1])))
    for start in range(0, len(matrix), height):
        rows = slice(start, min(start + height, len(matrix)))
        for first in range(0, sequences, count):
            group = slice(first, min(first + count, sequences))
            tile = matrix.new_zeros(group.stop - group.start, rows.stop - rows.start, matrix.shape[1])
            for part in parts:
                part.add_to(tile, group, rows)
            matrix[rows] += tile.square_().sum(0)


def _add_row_squares(total: Tensor, part: RowPart) -> None:
    """Add the squares of an embedding's gradient, touching only the rows of tokens that occur."""
    batch = torch.arange(len(part.rows), device=part.rows.device)[:, None]
    places, place = torch.unique(batch * len(total) + part.rows, return_inverse=True)  # (sequence, row) pairs
    gradients = total.new_zeros(len(places), total.shape[1])
    gradients.index_add_(0, place.flatten(), part.values.flatten(0, 1).to(total.dtype))
    total.index_add_(0, places % len(total), gradients.square_())


class PerSampleSquares:
    """Sums of the squares of a model's per-sample gradients; every parameter requires a gradient."""

    def __init__(self, model: nn.Module):
        self.totals = zero_totals(model)
        """The sums, one per name of `model.named_parameters()`."""
        self.batches = 0
        """How many batches they are over."""
        self.is_spoilt = False
        """Whether some of a batch was added that could not be added whole."""
        self._model = model
        self._parameters = dict(model.named_parameters())
        names = {id(parameter): name for name, parameter in self._parameters.items()}
        self._names: dict[nn.Module, dict[str, str]] = {}
        self._users: dict[str, set[nn.Module]] = defaultdict(set)
        self._tried: set[Hashable] = set()
        for module, attributes in layer_parameters(model).items():
            self._names[module] = {a: names[id(module.get_parameter(a))] for a in attributes}
            for name in self._names[module].values():
                self._users[name].add(module)

    @property
    def divided(self) -> bool:
        """Whether the model, and with it the sums, is divided among processes."""
        return any(isinstance(total, DTensor) for total in self.totals.values())

    def add_one(self, loss: Tensor) -> None:
        """Add the square of the gradient of a scalar computed from one sequence."""
        gradients = torch.autograd.grad(loss, list(self._parameters.values()), allow_unused=True)
        for name, gradient in zip(self._parameters, gradients, strict=True):
            if gradient is not None:
                self.totals[name] += gradient.to(self.totals[name].dtype).square()

    def add_together(self, sequences: int, losses: Callable[[], Tensor], *, layout: Hashable | None = None) -> None:
        """Run one forward and backward pass over a batch and add the squares of its sequences' gradients.

        Args:
            sequences: B.
            losses: Runs the model and returns the loss of each sequence, (B,).
            layout: Something that batches share whose tensors pass through the layers in the same shapes. The first
                batch of each layout is used to try out whether rows are sequences; None leaves this out. Pooled
                vectors are tried out with every batch.

        Raises:
            UnfitLayerError: The gradients of single sequences cannot be told apart; `is_spoilt` says whether some were
                added.
        """
        waiting: dict[str, list[GradientPart]] = defaultdict(list)

        def finish(name: str) -> None:
            self.is_spoilt = True
            parts = waiting.pop(name)
            add_to_total(self.totals[name], lambda total: add_squares(total, parts, sequences))

        def receive(module: nn.Module, x: Tensor, gradient: Tensor, options: Options) -> None:
            attributes = self._names[module]
            parts = gradient_parts(module, x, gradient, names=list(attributes), options=options)
            for attribute, part in parts.items():
                waiting[attributes[attribute]].append(part)
            for name in dict.fromkeys(attributes.values()):
                if not any(state.outstanding[user] for user in self._users[name]):
                    finish(name)

        with (
            kept_gradients(self._model),
            untracked_parameters(self._model),
            gradient_hooks(self._names, receive, sequences) as state,
        ):
            values = losses()
            untried = layout is not None and layout not in self._tried
            self._weigh(state, values, everything=untried)
            torch.autograd.backward(values.sum())
            for name, parameter in self._parameters.items():
                if parameter.grad is not None:
                    raise UnfitLayerError(f"{name} is used outside the layer that holds it")
        for name in list(waiting):  # some of the layer's uses never reached the loss
            finish(name)
        mixed = state.mixed_layer()
        if mixed is not None:
            raise UnfitLayerError(f"the rows of the {type(mixed).__name__} are not those of the sequences")
        self._tried.add(layout)
        self.batches += 1
        self.is_spoilt = False

    def _weigh(self, state: BackwardPass, losses: Tensor, *, everything: bool) -> None:
        if not everything and not state.row_outputs:
            return
        if self.divided:
            if state.row_outputs:
                raise UnfitLayerError("a layer returns vectors, whose sequences cannot be tried out")
            return
        weights = 1 + 2 * torch.rand(len(losses), generator=torch.Generator().manual_seed(0))  # (B,)
        weights = weights.to(losses)
        with state.weighing(weights):
            if everything:
                torch.autograd.backward((losses * weights).sum(), retain_graph=True)
            else:
                torch.autograd.grad((losses * weights).sum(), state.row_outputs, retain_graph=True, allow_unused=True)
