"""A part's JSON: there from the part's first second, rewritten whole whenever there is more to say."""

import argparse
import datetime
import json
import os
import platform
import signal
import subprocess
import time
import traceback
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

FINISHED, STOPPED, FAILED, RUNNING = "finished", "stopped", "failed", "running"
"""What a part's `status` can be: done; out of time, with what it had measured; ended by an error; under way, or killed
together with the command itself."""

TERMINATED = 128 + signal.SIGTERM
_PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "datasets", "safetensors", "triton", "deepspeed")
_TRACEBACK_LINES = 12
_WRITE_SECONDS = 1.0


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file that is whole whenever it exists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=1, default=str) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def read_json(path: Path) -> dict[str, Any]:
    """Return what a part's file holds; nothing where there is none that can be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def machine() -> dict[str, Any]:
    """Describe the accelerator, its driver, and the libraries; what cannot be found out is None."""
    import torch

    found: dict[str, Any] = {
        "device": "cpu",
        "driver": _driver(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "hf_progressive": _version("hf-progressive"),
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "device": torch.cuda.get_device_name(0),
            "devices": torch.cuda.device_count(),
            "memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "capability": ".".join(map(str, torch.cuda.get_device_capability(0))),
        }
    return found | {name: _version(name) for name in _PACKAGES}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.split("\n")[0].strip() or None


def part_arguments(description: str | None) -> argparse.ArgumentParser:
    """Return the command line that every part has; run.py gives it."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="the part's file of results")
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints and caches")
    parser.add_argument("--until", type=float, required=True, help="when the part must end, in seconds of Unix time")
    parser.add_argument("--results", type=Path, required=True, help="folder of all parts' results")
    parser.add_argument("--price", type=float, default=3.0, help="dollars per GPU and hour")
    parser.add_argument("--data", nargs="+", type=Path, default=[], help="files of text")
    parser.add_argument("--rehearse", action="store_true", help="toy sizes on the CPU")
    return parser


def seconds_left(options: argparse.Namespace) -> float:
    """Return the seconds until a part must end."""
    return float(options.until) - time.time()


def explain(error: BaseException) -> dict[str, Any]:
    """Return an error as plain values: its last line and the end of its traceback."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    return {"error": f"{type(error).__name__}: {error}"[:2000], "traceback": lines[-_TRACEBACK_LINES:]}


class PartFile:
    """The JSON of the part that is running; as a context, it records how the part ends.

    Args:
        path: The file.
        part: The part's name.
        rehearsal: Whether the sizes are toys, so that no figure means anything.
    """

    def __init__(self, path: Path, part: str, *, rehearsal: bool) -> None:
        self.path = path
        self._began = time.monotonic()
        self._written = 0.0
        self.out_of_time = False
        """Set by a part that keeps to its time and has not come to its end."""
        self.record: dict[str, Any] = {
            "part": part,
            "status": RUNNING,
            "rehearsal": rehearsal,
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "summary": [],
        }

    def __enter__(self) -> "PartFile":
        self.update()
        self.update(machine=machine())
        return self

    def update(self, **values: Any) -> None:
        """Set keys of the record and write it."""
        self.record |= values
        self.write()

    def write(self, *, throttled: bool = False) -> None:
        """Write the record as it stands; throttled, not again within a second."""
        now = time.monotonic()
        if throttled and now - self._written < _WRITE_SECONDS:
            return
        self.record["seconds"] = round(now - self._began, 1)
        write_json(self.path, self.record)
        self._written = now

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.update(status=STOPPED if self.out_of_time else FINISHED)
        elif isinstance(error, SystemExit) and error.code == TERMINATED:  # how training answers when told to stop
            self.update(status=STOPPED)
        else:
            self.update(status=FAILED, **explain(error))
