"""The dtypes of sums, products and estimates."""

import torch


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return what numbers of a dtype are computed with: float32, or float64 where they are float64 themselves.

    >>> working_dtype(torch.bfloat16), working_dtype(torch.float64)
    (torch.float32, torch.float64)
    """
    return torch.float64 if dtype == torch.float64 else torch.float32


def summing_dtype(device: torch.device) -> torch.dtype:
    """Return what long sums on a device are made in: float64, and float32 on MPS, which has no float64.

    >>> summing_dtype(torch.device("cpu")), summing_dtype(torch.device("mps"))
    (torch.float64, torch.float32)
    """
    return torch.float32 if device.type == "mps" else torch.float64
