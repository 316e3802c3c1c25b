"""The dtype of sums, products and estimates: float32, or float64 where the numbers themselves are float64."""

import torch


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return what numbers of a dtype are computed with.

    >>> working_dtype(torch.bfloat16), working_dtype(torch.float64)
    (torch.float32, torch.float64)
    """
    return torch.float64 if dtype == torch.float64 else torch.float32
