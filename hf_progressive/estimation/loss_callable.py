"""A model of any kind, scored by a function of its user's."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_progressive.config.ranges import class_of
from hf_progressive.estimation.likelihood import LabelKind

Loss = Callable[[nn.Module, Any], Tensor | tuple[Tensor, Tensor]]
"""Called with model and batch, returns the loss of each example (B,) or of each of its targets (B, T), in nats; with
targets that do not count, a pair of that and where they do, (B, T)."""


@dataclass(frozen=True, kw_only=True)
class ScoredBatch:
    """A batch of anything, examples in front, and what scores it."""

    fields: Any
    """Tensors, mappings and sequences of tensors, as a data loader yields them."""
    size: int
    """B."""
    loss: Loss

    def __len__(self) -> int:
        """Return the number of examples."""
        return self.size

    @property
    def layout(self) -> tuple[object, ...]:
        """The tensors' shapes."""
        return shapes(self.fields)

    def tokens(self) -> Tensor | None:
        """Return the attention mask, where the batch has one."""
        return attention_mask(self.fields)

    def split(self) -> Iterator["ScoredBatch"]:
        """Yield the examples one by one, as batches of one."""
        for row in range(self.size):
            yield ScoredBatch(fields=one_example(self.fields, row), size=1, loss=self.loss)

    def losses(self, model: nn.Module, kind: LabelKind, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return what the function does, (B, K)."""
        if kind == "true":
            raise ValueError(
                "kind='true' samples targets from the model's distribution, which a loss does not tell; sample them "
                "within it and pass kind='empirical'"
            )
        found = self.loss(model, self.fields)
        values, counted = found if isinstance(found, tuple) else (found, None)
        if not isinstance(values, Tensor) or values.ndim < 1 or len(values) != self.size:
            shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(
                f"loss= returned {shape} for {self.size} examples; it must return the loss of each, ({self.size},), "
                "or of each of its targets, as reduction='none' gives it"
            )
        counted = torch.ones_like(values, dtype=torch.bool) if counted is None else counted.to(values.device).bool()
        if counted.shape != values.shape:
            raise ValueError(f"loss= returned losses of shape {tuple(values.shape)}, counted {tuple(counted.shape)}")
        return torch.where(counted, values, 0).reshape(self.size, -1), counted.reshape(self.size, -1)


def read_for_loss(batch: Any, device: torch.device, loss: Loss) -> ScoredBatch:
    """Bring a batch to the device and count its examples."""
    fields = to_device(batch, device)
    return ScoredBatch(fields=fields, size=example_count(fields), loss=loss)


def _tensors(fields: Any) -> Iterator[tuple[str, Tensor]]:
    # Every tensor that has a dimension, with its place.
    if isinstance(fields, Tensor):
        if fields.ndim:
            yield "", fields
    elif isinstance(fields, Mapping):
        yield from ((f"[{key!r}]{place}", t) for key, value in fields.items() for place, t in _tensors(value))
    elif isinstance(fields, list | tuple):
        yield from ((f"[{i}]{place}", t) for i, value in enumerate(fields) for place, t in _tensors(value))


def _mapped(fields: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(fields, Tensor):
        return change(fields)
    if isinstance(fields, Mapping):
        return {key: _mapped(value, change) for key, value in fields.items()}
    if isinstance(fields, list | tuple):
        return [_mapped(value, change) for value in fields]
    return fields


def to_device(fields: Any, device: torch.device) -> Any:
    """Return a batch with its tensors on a device; tuples become lists."""
    return _mapped(fields, lambda tensor: tensor.to(device))


def attention_mask(fields: Any) -> Tensor | None:
    """Return the attention mask (B, T) of a batch of sequences, or (B·choices, T) of several for each example."""
    mask = fields.get("attention_mask") if isinstance(fields, Mapping) else None
    return mask.flatten(0, -2) if isinstance(mask, Tensor) and mask.ndim > 1 else None


def one_example(fields: Any, row: int) -> Any:
    """Return a batch of one: every tensor's row."""
    return _mapped(fields, lambda tensor: tensor[row : row + 1] if tensor.ndim else tensor)


def shapes(fields: Any) -> tuple[object, ...]:
    """Return the shapes of a batch's tensors."""
    return tuple((place, tuple(tensor.shape)) for place, tensor in _tensors(fields))


def example_count(fields: Any) -> int:
    """Return the number of examples, which every tensor of a batch has in front.

    >>> example_count({"x": torch.zeros(3, 2), "y": torch.zeros(3)})
    3
    """
    sizes = {f"batch{place}": len(tensor) for place, tensor in _tensors(fields)}
    if not sizes:
        raise ValueError(f"a batch is {class_of(fields)} without tensors; yield tensors with examples in front")
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{place} {size}" for place, size in sizes.items())
        raise ValueError(f"a batch's tensors differ in their first dimension ({listed}); put the examples in front")
    return next(iter(sizes.values()))
