"""Whether `torch.compile` works on a device, where a C compiler or headers may be missing; and how to run without."""

import contextlib
import functools
import logging
from collections.abc import Iterator

import torch
from torch import nn

logger = logging.getLogger(__name__)


@functools.cache
def compiles_on(device_type: str) -> bool:
    """Say whether compiled code runs on a type of device, by running some; a warning says why not."""
    try:
        torch.compile(_some_code, dynamic=False)(torch.ones(64, device=device_type))
    except (RuntimeError, ImportError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        logger.warning("torch.compile does not work on %s here, so nothing is compiled: %s", device_type, reason)
        return False
    return True


def _some_code(values: torch.Tensor) -> torch.Tensor:
    return (values * 2.0).sin().sum()


@contextlib.contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Run a compiled model as it was written within the block: each of its hooks would be compiled anew, and again."""
    compiled = any("_orig_mod" in m._modules or m._compiled_call_impl is not None for m in model.modules())
    with torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext():
        yield
