"""Mappings of tensors that are made when they are asked for."""

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor


class LazyTensors(Mapping[str, Tensor]):
    """Tensors by name, each read when it is asked for."""

    def __init__(self, names: Iterable[str], read: Callable[[str], Tensor]) -> None:
        self._names, self._read = dict.fromkeys(names), read

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def ones_like(tensors: Mapping[str, Tensor]) -> LazyTensors:
    """Return ones of each tensor's shape, in the memory of a single number.

    >>> ones_like({"weight": torch.zeros(2, 3)})["weight"].sum()
    tensor(6.)
    """
    return LazyTensors(tensors, lambda name: torch.ones(()).expand(tensors[name].shape))
