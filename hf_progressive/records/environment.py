"""What a run ran on, as its records say."""

import functools
import os
import platform
from importlib import metadata
from typing import Any

import torch
from accelerate import PartialState

from hf_progressive import __version__
from hf_progressive.distributed.accelerators import device_name


def environment(state: PartialState) -> dict[str, Any]:
    """Return the versions of the packages that decide results, and the machine."""
    return {
        "hf_progressive": __version__,
        "python": platform.python_version(),
        **_versions(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(state.device),
        "device_name": hardware_name(state.device),
        "processes": state.num_processes,
    }


@functools.cache  # a study writes its record after every run, and packages stay what they are meanwhile
def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("torch", "transformers", "accelerate", "datasets", "tokenizers")}


def hardware_name(device: torch.device) -> str:
    """Return an accelerator's name as its driver tells it; of a processor, its architecture."""
    return platform.machine() if device.type == "cpu" else device_name(device)
