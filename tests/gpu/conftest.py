"""Tests on an accelerator: they are skipped where there is none.

    CUDA_VISIBLE_DEVICES=0 python -m pytest tests/gpu

HF_PROGRESSIVE_GPU_TESTS=cpu runs on the CPU what can run there, to try the tests themselves.
"""

import os

import pytest
import torch

from hf_progressive.distributed.float32_products import allow_tf32

ON_CPU = os.environ.get("HF_PROGRESSIVE_GPU_TESTS") == "cpu"
REASON = "no CUDA device is visible; where there is one, set CUDA_VISIBLE_DEVICES=0"


@pytest.fixture(scope="session")
def device():
    """The device to test on."""
    if ON_CPU:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip(REASON)
    return torch.device("cuda", 0)


@pytest.fixture(scope="session")
def cuda():
    if not torch.cuda.is_available():
        pytest.skip(REASON)
    return torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _full_float32():
    """Products of float32 matrices in float32, not in TF32, and whatever a test switched on switched off again."""
    allow_tf32(False)
    yield
    allow_tf32(False)
    torch.use_deterministic_algorithms(False)
    if torch.cuda.is_available():
        torch.cuda.set_sync_debug_mode("default")
