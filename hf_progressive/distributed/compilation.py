"""Whether `torch.compile` works on a device: a C compiler or headers may be missing where the device is there."""

import functools
import logging

import torch

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
