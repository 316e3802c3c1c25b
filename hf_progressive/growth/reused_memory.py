"""Memory that one tensor leaves to the next: the system takes longer to provide pages than a tensor to be copied."""

import mmap
import threading
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

_LARGE = 1 << 22  # from here on in huge pages, of which the system has to provide fewer


class ReusedMemory:
    """Uninitialised tensors on the CPU, in the memory of those given back.

    Args:
        limit: Bytes kept of what was given back, at the most.

    >>> memory = ReusedMemory(1 << 20)
    >>> first = memory.empty((2, 3), torch.float32)
    >>> memory.give_back(first)
    >>> memory.empty((6,), torch.float32).data_ptr() == first.data_ptr()
    True
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._free: dict[int, list[Tensor]] = {}  # by size in bytes
        self._free_bytes = 0
        self._lent: dict[int, Tensor] = {}  # by address

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return a tensor of any content; threads may ask at once."""
        size = torch.Size(shape).numel() * dtype.itemsize
        with self._lock:
            fitting = self._free.get(size)
            if fitting:
                memory = fitting.pop()
                self._free_bytes -= size
            else:
                memory = _new(size)
            self._lent[memory.data_ptr()] = memory
        return memory.view(dtype).view(*shape)

    def give_back(self, tensor: Tensor) -> None:
        """Take back a tensor that nobody reads any more; one that is not from here is left alone."""
        with self._lock:
            memory = self._lent.pop(tensor.data_ptr(), None)
            if memory is not None and self._free_bytes + memory.nbytes <= self._limit:
                self._free_bytes += memory.nbytes
                self._free.setdefault(memory.nbytes, []).append(memory)


def _new(size: int) -> Tensor:
    if size < _LARGE:
        return torch.empty(size, dtype=torch.uint8)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(AttributeError, OSError):  # a system or a kernel without them
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=torch.uint8)
