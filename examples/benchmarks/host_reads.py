"""Find what makes a program wait for its device: reads of values, and operations whose result's size is a value.

A GPU works through a queue of kernels while Python runs ahead. Whatever brings a value from the device to the host
waits until the queue is empty, and the GPU then idles until Python has filled it again. In a training step nothing
may; a log may.

On a GPU, CUDA's own debug mode reports every such wait, compiled code included. On a CPU there is nothing to wait for,
but the same calls can be seen as they are made: reads of one value (`item`, `float`, `if tensor:`), of many (`tolist`,
`numpy`, `cpu`), and operations that must know a value to size their result (`nonzero`, `masked_select`, indexing by a
mask). What cannot be seen there is a copy from the host to the device from memory that is not pinned, and anything
inside compiled code.
"""

import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_TORCH = str(Path(torch.__file__).parent)
_DATA_LOADING = str(Path(torch.utils.data.__file__).parent)
_OPTIMIZERS = str(Path(torch.optim.__file__).parent)

_SIZED_BY_VALUES = {
    "aten::_local_scalar_dense",
    "aten::_unique",
    "aten::_unique2",
    "aten::bincount",
    "aten::equal",
    "aten::masked_select",
    "aten::nonzero",
    "aten::unique_consecutive",
    "aten::unique_dim",
}
_SELECTED_BY_MASK = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
_REPEATED = "aten::repeat_interleave"
_MASK_DTYPES = (torch.bool, torch.uint8)

# Methods that copy a CPU tensor's memory without an operator, or that are the identity there.
_COPIES_TO_HOST = {Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.__array__}


@contextmanager
def host_reads(device: torch.device) -> Iterator[Counter[str]]:
    """Count what makes, or on a GPU would make, Python wait for the device.

    Two things are left out on a CPU, because on a GPU they read memory of the host: the data loader's work, and the
    step counters of PyTorch's optimizers. Code that is run compiled elsewhere is run uncompiled there.

    Yields:
        How often, by place: `FILE:LINE FUNCTION` of the innermost caller outside PyTorch.

    >>> with host_reads(torch.device("cpu")) as reads:
    ...     total = torch.ones(3).sum() * 2
    ...     _ = total.item(), total.tolist(), bool(total > 1), total.nonzero()
    >>> reads.total()
    4
    """
    found: Counter[str] = Counter()
    if device.type == "cuda":
        with _cuda_synchronizations(found):
            yield found
        return
    with ExitStack() as stack:
        stack.enter_context(_Copies(found))
        stack.enter_context(_Operators(found))
        yield found


class _Operators(TorchDispatchMode):
    """Counts operators, those within the backward pass too."""

    def __init__(self, found: Counter[str]) -> None:
        TorchDispatchMode.__init__(self)
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _reads_values(func.name().split(".")[0], args, kwargs or {}):
            _note(self.found)
        return func(*args, **(kwargs or {}))


class _Copies(TorchFunctionMode):
    """Counts what a CPU tensor does without an operator."""

    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        to_host = func is Tensor.to and "cpu" in (*args[1:], *(kwargs or {}).values())
        if to_host or func in _COPIES_TO_HOST:
            _note(self.found)
        return func(*args, **(kwargs or {}))


def _reads_values(name: str, args: Any, kwargs: Any) -> bool:
    if name in _SELECTED_BY_MASK:
        masks = [i for i in args[1] if isinstance(i, Tensor) and i.dtype in _MASK_DTYPES]
        filled = name != "aten::index" and args[2].numel() == 1  # one value everywhere: the mask is not counted
        return bool(masks) and not filled
    if name == _REPEATED:
        return kwargs.get("output_size") is None
    return name in _SIZED_BY_VALUES


def _note(found: Counter[str]) -> None:
    place = _place()
    if place is not None:
        found[place] += 1


def _place() -> str | None:
    # The innermost frame outside PyTorch and this file; None for what reads the host's own memory on a GPU too.
    frame: FrameType | None = sys._getframe(2)
    place = None
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(_DATA_LOADING):
            return None
        if place is None and code.co_filename.startswith(_OPTIMIZERS):
            return None
        if place is None and code.co_filename != __file__ and not code.co_filename.startswith(_TORCH):
            place = f"{code.co_filename}:{frame.f_lineno} {code.co_name}"
        frame = frame.f_back
    return place or "PyTorch"


@contextmanager
def _cuda_synchronizations(found: Counter[str]) -> Iterator[None]:
    def show(message: Warning | str, *rest: Any, **others: Any) -> None:
        if "synchroniz" in str(message):
            _note(found)
        else:
            shown(message, *rest, **others)

    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        shown, warnings.showwarning = warnings.showwarning, show
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)
