"""Ladders as processes that are killed and started again, and what they must leave in the end."""

import contextlib
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
from ladder_fixtures import NAMES

from hf_progressive import storage

ROOT = Path(__file__).parents[2]
ON_CPUS = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


def final_files(run: Path) -> dict[str, object]:
    """Everything in the rungs' final folders, but for the times in rung.json and that file's digest."""
    found: dict[str, object] = {}
    for name in NAMES:
        final = run / name / "final"
        for path in (path for path in final.rglob("*") if path.is_file()):
            found[path.relative_to(run).as_posix()] = path.read_bytes()
        record, manifest = (storage.read_json(final / file) for file in ("rung.json", storage.MANIFEST_NAME))
        del record["seconds"], record["throughput"], manifest["files"]["rung.json"]
        if record["cold"]:
            for times in ("seconds", "evaluation_seconds", "throughput"):
                del record["cold"][times]
        found |= {f"{name}/final/rung.json": record, f"{name}/final/{storage.MANIFEST_NAME}": manifest}
    return found


def marks_in(folder: Path) -> int:
    """Count checkpoints and records, while folders come and go."""
    names = [name for _, folders, files in os.walk(folder) for name in (*folders, *files)]
    return sum(name.startswith("checkpoint-") or name == "rung.json" for name in names)


def ladder_command(path: Path, run: Path, *, processes: int = 1) -> list[str]:
    """The command that trains a ladder, in one process or several on the CPU."""
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
        command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        command += ["--main_process_port", "0"]
    return [*command, str(ROOT / "examples" / "run_ladder.py"), "--config", str(path), "--output-dir", str(run)]


def _kill(process: "subprocess.Popen[bytes]") -> None:
    # torchrun gives its workers sessions of their own, so that killing a process group would leave them.
    main = psutil.Process(process.pid)
    for one in (*reversed(main.children(recursive=True)), main):
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()


def run_killed_again_and_again(command: list[str], run: Path, *, kills: int) -> int:
    """Kill a ladder with all its processes at random moments, so many times at most, then let it end; count kills."""
    draw, killed = random.Random(7), 0
    while killed < kills:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ON_CPUS)
        deadline = time.monotonic() + 120
        marks = marks_in(run)
        # Wait until this attempt has done something, then strike at a random moment.
        while process.poll() is None and time.monotonic() < deadline:
            if marks_in(run) > marks:
                break
            time.sleep(0.05)
        time.sleep(draw.uniform(0.0, 1.5))
        if process.poll() is not None:
            assert process.returncode == 0
            break
        _kill(process)
        killed += 1
    subprocess.run(command, check=True, capture_output=True, env=ON_CPUS)
    return killed
