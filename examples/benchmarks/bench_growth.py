"""Measure growth on disk against a plain copy of the same bytes, and against growing in memory.

    python examples/benchmarks/bench_growth.py --gb 3

builds a synthetic GPT-2, grows it into one of the size asked for and prints one JSON line. The variants:

- `growth`: `grow_checkpoint` with the SHA-256 of everything read and written, without the comparison of logits, which
  is a forward pass of both models and no part of the writing;
- `growth_without_checksums`: the same with `checksums=False`: what is left when the digests, which a processor without
  instructions for SHA computes more slowly than a disk writes, are left out;
- `half_the_layers`: `growth` with half as many layers, for the memory;
- `copy`: `cp` of the grown files, then fsync;
- `hashed_copy`: the same, and the SHA-256 of source and copy: what a copy costs whose content is to be vouched for;
- `in_memory`: load the parent, `grow_model`, `save_pretrained`, fsync.

The variants run in turn in one process, `--rounds` times, every second round in reverse order. A ratio is taken
within a round, and the median over rounds is printed with the least and the largest, of the clock and of the
processor's time: so a machine that is busy for a while slows both sides of a ratio. `cores_of_others` says how busy
it was. Before the rounds a tiny model is grown, which loads every library. Before its clock starts, each variant
reads its inputs, so that all of them find these in memory, and writes a file four times as large and deletes it: a
virtual machine may have given its free memory back to the host, and whoever uses it first would pay for it: growth
above all, which needs memory for tensors beside that for files. Peak memory is that of one more run, in a process of
its own.

On a machine that does other work as well, for the two ratios to a copy alone:

    python examples/benchmarks/bench_growth.py --gb 1 --rounds 7 --variants growth copy hashed_copy
"""

import argparse
import gc
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HEAD_DIM = 64
VOCABULARY = 50257
CONTEXT = 1024
BYTES_PER_PARAMETER = 4
VARIANTS = ("growth", "growth_without_checksums", "half_the_layers", "copy", "hashed_copy", "in_memory")
REFERENCES = ("copy", "hashed_copy", "in_memory")
FOR_MEMORY = ("growth", "half_the_layers", "in_memory")


def child_layers(gigabytes: float, width: int) -> int:
    """Return the number of layers of a GPT-2 of about this size in float32.

    Args:
        gigabytes: Size of the weights, in 1e9 bytes.
        width: `n_embd`.

    Returns:
        At least 2.

    >>> child_layers(3.0, 1280)
    35
    """
    embeddings = (VOCABULARY + CONTEXT) * width
    return max(2, round((gigabytes * 1e9 / BYTES_PER_PARAMETER - embeddings) / (12 * width**2)))


def build_parent(folder: Path, width: int, layers: int) -> None:
    """Write a GPT-2 with random weights, the same over and over, tensor by tensor.

    Args:
        folder: The folder to create.
        width: `n_embd`.
        layers: `n_layer`.
    """
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from hf_progressive.growth.reader import TensorSpec
    from hf_progressive.growth.writer import CheckpointWriter

    config = GPT2Config(
        n_embd=width, n_layer=layers, n_head=width // HEAD_DIM, n_positions=CONTEXT, vocab_size=VOCABULARY
    )
    config.save_pretrained(folder)
    with torch.device("meta"):
        parameters = dict(GPT2LMHeadModel(config).named_parameters())
    specs = {name: TensorSpec(shape=tuple(tensor.shape), dtype=torch.float32) for name, tensor in parameters.items()}
    drawn = torch.empty(1 << 20).normal_(0.0, 0.02)
    with CheckpointWriter(folder, specs, checksums=False) as writer:
        for name in writer.order:
            count = specs[name].nbytes // BYTES_PER_PARAMETER
            writer.write(name, drawn.repeat(-(-count // len(drawn)))[:count].view(specs[name].shape))


def sync_folder(folder: Path) -> None:
    """Flush a folder and its files to the disk.

    Args:
        folder: The folder.
    """
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def grow_on_disk(parent: Path, output: Path, target: dict[str, int], *, checksums: bool = True) -> None:
    """Run one of the variants that grow on disk."""
    from hf_progressive import grow_checkpoint

    grow_checkpoint(parent, output, target, verify=False, checksums=checksums)


def grow_in_memory(parent: Path, output: Path, target: dict[str, int]) -> None:
    """Run the `in_memory` variant."""
    from transformers import GPT2LMHeadModel

    from hf_progressive import grow_model

    grow_model(GPT2LMHeadModel.from_pretrained(parent), target).save_pretrained(output)
    sync_folder(output)


def copy(grown: Path, output: Path) -> None:
    """Run the `copy` variant."""
    output.mkdir()
    subprocess.run(["cp", *grown.iterdir(), output], check=True)
    sync_folder(output)


def hashed_copy(parent: Path, grown: Path, output: Path) -> None:
    """Run the `hashed_copy` variant: the files that growth reads are hashed too, and at the same time."""
    from concurrent.futures import ThreadPoolExecutor

    from hf_progressive.storage import sha256_file

    with ThreadPoolExecutor() as pool:
        digests = pool.map(sha256_file, [*parent.iterdir(), *grown.iterdir()])
        copy(grown, output)
        list(digests)


def folder_bytes(folder: Path) -> int:
    """Return the size of a folder's files."""
    return sum(path.stat().st_size for path in folder.iterdir())


def peak_memory() -> int:
    """Return the peak resident memory of this process, in bytes."""
    # Not ru_maxrss: Linux carries the parent process's over a fork.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM; this benchmark needs Linux")


def use_memory(folder: Path, size: int) -> None:
    """Write a file of so many bytes and delete it, so that the memory which holds it is this machine's."""
    scratch = folder / "scratch"
    block = bytes(1 << 20)
    with open(scratch, "wb") as file:
        for _ in range(size >> 20):
            file.write(block)
    scratch.unlink()


def processor_seconds() -> float:
    """Return what this process and those that it waited for have taken of the processors."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def busy_seconds() -> float:
    """Return what all processes of the machine have taken of its processors since it started."""
    user, nice, system, _, _, irq, softirq, *_ = Path("/proc/stat").read_text().split("\n")[0].split()[1:]
    return sum(map(int, (user, nice, system, irq, softirq))) / os.sysconf("SC_CLK_TCK")


def read_through(folder: Path) -> None:
    """Read a folder's files, so that they are in memory."""
    for path in folder.iterdir():
        with open(path, "rb", buffering=0) as file:
            while file.read(1 << 24):
                pass


def warm_up(folder: Path) -> None:
    """Grow a tiny model, so that the libraries are loaded before a clock starts."""
    build_parent(folder / "tiny", HEAD_DIM, 1)
    grow_on_disk(folder / "tiny", folder / "grown_tiny", {"n_layer": 2})
    for name in ("tiny", "grown_tiny"):
        shutil.rmtree(folder / name)


def run_variant(variant: str, folder: Path, target: dict[str, int]) -> dict[str, Any]:
    """Run one variant in this process.

    Args:
        variant: One of `VARIANTS`.
        folder: The working folder.
        target: The child's sizes.

    Returns:
        Seconds, seconds of a processor, cores that other processes kept busy meanwhile, this process's peak resident
        memory and bytes written.
    """
    output = folder / "output"
    half = folder / "half"
    runs: dict[str, Callable[[], None]] = {
        "growth": lambda: grow_on_disk(folder / "parent", output, target),
        "growth_without_checksums": lambda: grow_on_disk(folder / "parent", output, target, checksums=False),
        "half_the_layers": lambda: grow_on_disk(half, output, {**target, "n_layer": target["n_layer"] // 2}),
        "copy": lambda: copy(folder / "grown", output),
        "hashed_copy": lambda: hashed_copy(folder / "parent", folder / "grown", output),
        "in_memory": lambda: grow_in_memory(folder / "parent", output, target),
    }
    use_memory(folder, folder_bytes(folder / "grown") * 4)
    for name in ("parent", "grown"):
        sync_folder(folder / name)  # and not all of the machine, which may be at work on other things
        read_through(folder / name)
    gc.collect()
    busy, used, started = busy_seconds(), processor_seconds(), time.perf_counter()
    runs[variant]()
    seconds, used, busy = time.perf_counter() - started, processor_seconds() - used, busy_seconds() - busy
    size = folder_bytes(output)
    shutil.rmtree(output)
    return {
        "seconds": seconds,
        "processor_seconds": used,
        "cores_of_others": max(busy - used, 0.0) / seconds,
        "peak_rss_mb": peak_memory() / 1e6,
        "bytes": size,
    }


def in_subprocess(folder: Path, target: dict[str, int], variant: str) -> dict[str, Any]:
    """Run one variant in a process of its own, whose peak memory is the variant's; see `run_variant`."""
    command = [sys.executable, __file__, "--folder", folder, "--target", json.dumps(target), "--variant", variant]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return result


def sha256_speed() -> float:
    """Return what one thread hashes in a second, in 1e6 bytes: it bounds every variant that hashes."""
    import hashlib

    block = bytes(1 << 26)
    started = time.perf_counter()
    hashlib.sha256(block).digest()
    return len(block) / 1e6 / (time.perf_counter() - started)


def ratio(runs: list[dict[str, Any]], others: list[dict[str, Any]]) -> dict[str, Any]:
    """Compare two variants round by round.

    Args:
        runs: One variant's runs, a round each.
        others: The other's, of the same rounds.

    Returns:
        The median ratio of seconds, the least and the largest, and the median ratio of the processor's seconds.

    >>> runs = [{"seconds": s, "processor_seconds": 1.0} for s in (2.0, 9.0, 3.3)]
    >>> ratio(runs, [{"seconds": s, "processor_seconds": 2.0} for s in (2.0, 8.0, 3.0)])
    {'seconds': 1.1, 'range': [1.0, 1.12], 'processor_seconds': 0.5}
    """
    of = {
        name: [run[name] / other[name] for run, other in zip(runs, others, strict=True)]
        for name in ("seconds", "processor_seconds")
    }
    return {
        "seconds": round(statistics.median(of["seconds"]), 2),
        "range": [round(min(of["seconds"]), 2), round(max(of["seconds"]), 2)],
        "processor_seconds": round(statistics.median(of["processor_seconds"]), 2),
    }


def measure(folder: Path, gigabytes: float, width: int, rounds: int, variants: list[str]) -> dict[str, Any]:
    """Run all variants.

    Args:
        folder: A folder whose disk has eight times the size free.
        gigabytes: Size of the child.
        width: `n_embd` of the child.
        rounds: Runs of each variant.
        variants: Which of them.

    Returns:
        What is printed.
    """
    layers = child_layers(gigabytes, width)
    target = {"n_embd": width, "n_head": width // HEAD_DIM, "n_layer": layers}
    parent_width, parent_layers = width // HEAD_DIM * 9 // 10 * HEAD_DIM, max(1, layers * 9 // 10)
    build_parent(folder / "parent", parent_width, parent_layers)
    if "half_the_layers" in variants:
        build_parent(folder / "half", parent_width, max(1, parent_layers // 2))
    build_parent(folder / "grown", width, layers)
    timed = [variant for variant in variants if variant != "half_the_layers"]
    runs: dict[str, list[dict[str, Any]]] = {variant: [] for variant in timed}
    warm_up(folder)
    for number in range(rounds):
        for variant in timed if number % 2 == 0 else reversed(timed):
            runs[variant].append(run_variant(variant, folder, target))
            sys.stderr.write(f"round {number + 1}: {variant} {runs[variant][-1]['seconds']:.2f} s\n")
    results: dict[str, dict[str, Any]] = {
        variant: {
            "seconds": round(statistics.median(run["seconds"] for run in of_variant), 2),
            "all_seconds": [round(run["seconds"], 3) for run in of_variant],
            "processor_seconds": round(statistics.median(run["processor_seconds"] for run in of_variant), 2),
            "cores_of_others": round(statistics.median(run["cores_of_others"] for run in of_variant), 2),
            "gb": round(of_variant[0]["bytes"] / 1e9, 3),
        }
        for variant, of_variant in runs.items()
    }
    for variant in (variant for variant in FOR_MEMORY if variant in variants):
        alone = in_subprocess(folder, target, variant)
        results.setdefault(variant, {})["peak_rss_mb"] = round(alone["peak_rss_mb"])
    ratios = {
        f"{variant}_to_{other}": ratio(runs[variant], runs[other])
        for variant in ("growth", "growth_without_checksums")
        for other in REFERENCES
        if variant in runs and other in runs
    }
    machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "sha256_mb_per_s": round(sha256_speed())}
    sizes = {"parent": {"n_embd": parent_width, "n_layer": parent_layers}, "child": target}
    return {**sizes, **results, "ratios": ratios, "machine": machine}


def main() -> None:
    """Read the arguments and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gb", type=float, default=3.0, help="size of the grown checkpoint, in 1e9 bytes")
    parser.add_argument("--width", type=int, default=1280, help="n_embd of the grown model, a multiple of 64")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each variant; the median ratio is printed")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    parser.add_argument("--target", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder is not None and not options.folder.is_dir():
        parser.error(f"--folder: {options.folder} is no folder that exists; make it, or name another")
    if options.variant:
        print(json.dumps(run_variant(options.variant, options.folder, options.target)))
    else:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            print(json.dumps(measure(Path(folder), options.gb, options.width, options.rounds, options.variants)))


if __name__ == "__main__":
    main()
