"""Kinds of accelerators: the peak that utilisation is measured against, memory, and which one is at hand."""

import re
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One kind of accelerator."""

    name: str
    """The name."""

    peak_flops: float | None
    """Dense bfloat16 matrix FLOPs per second, by its data sheet; None where there is none, as of a processor."""

    memory_gb: float
    """Memory, in 1e9 bytes."""

    source: str
    """Where the figures are from."""


GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu(name="a100", peak_flops=312e12, memory_gb=80, source="NVIDIA A100 80GB SXM data sheet, 2022"),
        Gpu(name="b200", peak_flops=2250e12, memory_gb=180, source="NVIDIA HGX B200 data sheet, 2025"),
        Gpu(name="h100", peak_flops=989.4e12, memory_gb=80, source="NVIDIA H100 SXM data sheet, 2023"),
        Gpu(name="h200", peak_flops=989.4e12, memory_gb=141, source="NVIDIA H200 SXM data sheet, 2024"),
        Gpu(name="l40s", peak_flops=362e12, memory_gb=48, source="NVIDIA L40S data sheet, 2023"),
        Gpu(name="mi300x", peak_flops=1307.4e12, memory_gb=192, source="AMD Instinct MI300X data sheet, 2023"),
        Gpu(name="rtx4090", peak_flops=165.2e12, memory_gb=24, source="NVIDIA Ada GPU architecture white paper, 2022"),
    )
}
"""Accelerators by name; the figures are the vendors', without sparsity."""

_LESSER = frozenset({"pcie", "nvl", "laptop", "d", "mig"})
"""Words in a device's name that stand for a variant with a lower peak than the table's, or for a slice of one."""

_SAME_PEAK = frozenset({("a100", "pcie")})
"""Variants that differ in what connects them and not in their peak."""


def gpu_named(device: str) -> Gpu | None:
    """Tell an accelerator's entry in `GPUS` from its driver's name; None for a slice or variant that it does not have.

    >>> gpu_named("NVIDIA H100 80GB HBM3").name, gpu_named("NVIDIA A100-PCIE-40GB").name
    ('h100', 'a100')
    >>> gpu_named("NVIDIA GeForce RTX 4090").name, gpu_named("NVIDIA L40"), gpu_named("NVIDIA H100 PCIe")
    ('rtx4090', None, None)
    """
    words = re.findall(r"[a-z0-9]+", device.lower().replace("rtx ", "rtx"))
    for word in words:
        if word in GPUS:
            lesser = any(other in _LESSER and (word, other) not in _SAME_PEAK for other in words)
            return None if lesser else GPUS[word]
    return None


def device_name(device: torch.device) -> str:
    """Return the name that the driver gives a GPU; the type of any other device.

    >>> device_name(torch.device("cpu"))
    'cpu'
    """
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def wait_for(device: torch.device) -> None:
    """Wait until a device has computed all that it was given; a processor always has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def peak_flops(device: torch.device) -> float | None:
    """Return a device's dense bfloat16 matrix FLOPs per second, by its data sheet; None where `GPUS` lacks it."""
    gpu = gpu_named(device_name(device))
    return None if gpu is None else gpu.peak_flops
