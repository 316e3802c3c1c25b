"""`hf-progressive doctor`: versions, devices and engines of this machine, and what will and will not work on it."""

import argparse
import contextlib
import importlib.metadata
import os
import platform
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version

from hf_progressive import __version__
from hf_progressive.cli.commands import EXIT_DONE, Outcome, show
from hf_progressive.config.credentials import without_tokens

_PACKAGES = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "safetensors", "huggingface_hub")
_ENGINES = {
    "deepspeed": "ZeRO-1, -2 and -3: pip install 'hf-progressive[deepspeed]'",
    "tensorboard": "report_to: [tensorboard]: pip install 'hf-progressive[tensorboard]'",
    "lm_eval": "lm-evaluation-harness: pip install 'hf-progressive[harness]'",
    "peft": "Φ on LoRA adapters: pip install 'hf-progressive[peft]'",
    "trl": "Φ in SFTTrainer and DPOTrainer: pip install trl",
}
_VARIABLES = (
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "HF_ENDPOINT",
    "OMP_NUM_THREADS",
    "TOKENIZERS_PARALLELISM",
    "CUDA_VISIBLE_DEVICES",
)
_DISK_GB = 5


def doctor_command(options: argparse.Namespace) -> Outcome:
    """Look at this machine and say what works; for bug reports."""
    found = examine()
    show(describe(found), options)
    return EXIT_DONE, found


def examine() -> dict[str, Any]:
    """Return versions, devices, engines and problems, as plain values."""
    import torch
    from torch import distributed

    from hf_progressive.distributed.accelerators import device_name, peak_flops
    from hf_progressive.distributed.compilation import compiles_on

    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = kind or torch.device("cpu")
    devices = [device_name(torch.device(device.type, index)) for index in range(torch.accelerator.device_count())]
    backends = [name for name in ("nccl", "gloo") if getattr(distributed, f"is_{name}_available")()]
    found: dict[str, Any] = {
        "hf_progressive": __version__,
        "folder": str(Path(__file__).parents[1]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": _memory_gb(),
        "free_disk_gb": round(shutil.disk_usage(Path.cwd()).free / 1e9, 1),
        "packages": {**{name: _version(name) for name in _PACKAGES}, "torch": torch.__version__},  # with its build
        "device": device.type,
        "devices": devices,
        "peak_known": kind is not None and peak_flops(device) is not None,
        "backends": backends,
        "compiles": compiles_on(device.type),
        "engines": {name: _version(name) for name in _ENGINES},
        "unmet": [line for name in (*_PACKAGES, *_ENGINES) for line in unmet(name)],
        "environment": {name: without_tokens(os.environ[name]) for name in _VARIABLES if name in os.environ},
    }
    return {**found, "problems": problems(found)}


def problems(found: dict[str, Any]) -> list[str]:
    """Return what will not work here, one sentence each, with its remedy."""
    said = []
    if not sys.platform.startswith("linux"):
        said.append("This is not Linux, the only system on which the package is tested.")
    if found["device"] == "cpu":
        said.append("No accelerator: the real configurations are priced by `plan`, and train on GPUs alone.")
    elif not found["peak_known"]:
        said.append("The device's peak is not known: speeds are in tokens per second, without MFU.")
    if not found["compiles"]:
        said.append("torch.compile does not work: training runs uncompiled, which is slower; install a C compiler.")
    if len(found["devices"]) > 1 and "nccl" not in found["backends"]:
        said.append("Several devices and no NCCL in this torch: they cannot train together.")
    if found["environment"].get("TOKENIZERS_PARALLELISM", "").lower() in ("true", "1"):
        said.append("TOKENIZERS_PARALLELISM is set: data-loader workers can deadlock; unset it.")
    said += [f"{line}: what imports it stops there; install that, or uninstall the first." for line in found["unmet"]]
    if found["free_disk_gb"] < _DISK_GB:
        said.append(f"{found['free_disk_gb']} GB are free in this folder; a ladder's checkpoints may not fit.")
    return said


def unmet(name: str) -> list[str]:
    """Return what an installed package needs and does not find, a line each; of a package that is not here, nothing.

    Accelerate imports DeepSpeed wherever it is installed: one that cannot be imported stops every training run.
    """
    lines = []
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for text in importlib.metadata.requires(name) or []:
            with contextlib.suppress(InvalidRequirement, InvalidVersion):  # a vendor's own builds may be named anyhow
                requirement = Requirement(text)
                if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
                    continue
                version = _version(requirement.name)
                if version is None or not requirement.specifier.contains(Version(version), prereleases=True):
                    there = "it is not installed" if version is None else f"{version} is installed"
                    needed = f"{requirement.name}{requirement.specifier}"
                    lines.append(f"{name} {_version(name)} needs {needed}, and {there}")
    return lines


def describe(found: dict[str, Any]) -> str:
    """Return what was found, for people."""

    def listed(versions: dict[str, str | None]) -> str:
        return ", ".join(f"{name} {version}" for name, version in versions.items() if version)

    devices = ", ".join(found["devices"]) or "none"
    memory = "memory not known" if found["memory_gb"] is None else f"{found['memory_gb']} GB"
    missing = [f"no {name}  ({_ENGINES[name]})" for name, version in found["engines"].items() if version is None]
    rows = {
        "hf_progressive": f"{found['hf_progressive']}, {found['folder']}",
        "python": f"{found['python']}, {found['platform']}",
        "machine": f"{found['cores']} cores, {memory}, {found['free_disk_gb']} GB free in this folder",
        "packages": listed(found["packages"]),
        "accelerators": f"{devices}; processes talk by {', '.join(found['backends']) or 'nothing'}",
        "torch.compile": "works" if found["compiles"] else "does not work",
        "engines": "DDP, FSDP2" + (f", {listed(found['engines'])}" if listed(found["engines"]) else ""),
        "environment": " ".join(f"{name}={value}" for name, value in found["environment"].items()) or "nothing set",
    }
    lines = [line for name, text in rows.items() for line in _wrapped(f"{name:<15} {text}")]
    lines += [f"{'':<15} {text}" for text in missing]
    lines += ["", *(found["problems"] or ["Nothing stands in the way."])]
    return "\n".join(lines)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 100, subsequent_indent=" " * 16, break_long_words=False, break_on_hyphens=False)


def _version(name: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # a folder of that name may be here
        return importlib.metadata.version(name)
    return None


def _memory_gb() -> float | None:
    if not hasattr(os, "sysconf"):  # Windows
        return None
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
