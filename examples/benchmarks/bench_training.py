"""Time training beside a bare PyTorch loop and the stock Trainer, and with Φ, in one process, variants taking turns.

Variants: `bare`, a loop of plain PyTorch; `stock`, Transformers' Trainer; `ours`, ProgressiveTrainer as a ladder's
rungs use it; `phi`, the same with λ and γ on, a Fisher entry for every parameter and a basis for every matrix. All
train the same stock model from the same weights, on the same random tokens, in the same micro-batches and precision,
with fused AdamW, clipping and the ladder's schedule. Every variant is built anew for a measurement, warmed up by one
turn, and then timed turn by turn: some optimizer steps and the log at their end, the device synchronized before and
after and not between. Every round of turns gives one ratio; medians are reported. One further turn is not timed: in
it, whatever waits for the device between two logs is counted.

A result is printed, and written to --output, as soon as it is there. What does not fit into memory is tried with
smaller micro-batches, then with fewer layers; what does not fit into --seconds is skipped. Both are reported.

    python examples/benchmarks/bench_training.py --json
    python examples/benchmarks/bench_training.py --sizes d10 d12 --seconds 120 --output training.json
"""

import argparse
import gc
import json
import os
import platform
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")  # four progress bars at once help nobody

import torch
import transformers
from accelerate.state import AcceleratorState
from torch._dynamo.utils import counters
from training_sizes import Size, size_named, smaller, with_step_tokens
from training_variants import VARIANTS, Observer, Workload
from turns import Player

from hf_progressive.distributed.accelerators import device_name, peak_flops
from hf_progressive.planning.sizing import count_parameters
from hf_progressive.storage import write_json
from hf_progressive.training.flops import flops_per_token

GPU_SIZES = ["d12", "d10", "m50", "d18", "d8", "d4"]  # what matters most stands first, should the time run out
CPU_SIZES = ["l4w64", "l4w128"]
RATIOS = {"ours_over_bare": ("bare", "ours"), "ours_over_stock": ("stock", "ours"), "phi_over_ours": ("phi", "ours")}
MIN_ROUNDS = 2
BUILD_ORDER = ["bare", "ours", "phi", "stock"]  # what is left out where the time is short stands last
SPARE_SECONDS = 10.0  # for the turns that are timed, once the variants are built
GRACE_SECONDS = 5.0  # for a turn that is due when --seconds are over
COMPILE_SECONDS = {"cpu": 10.0, "cuda": 30.0}  # the least that a variant takes to compile: 25 s for d10 on an H100


class OutOfMemory(Exception):
    """The variants do not fit into the device's memory."""


class OutOfTime(Exception):
    """There was no time to measure every variant once."""


class Bench:
    """What all measurements share."""

    def __init__(
        self,
        device: torch.device,
        *,
        variants: Sequence[str] = tuple(VARIANTS),
        peak: float | None,
        deadline: float,
        rounds: int,
        clock: Callable[[], float],
    ) -> None:
        self.device, self.peak, self.deadline, self.rounds, self.clock = device, peak, deadline, rounds, clock
        self.variants = {name: VARIANTS[name] for name in VARIANTS if name in variants}

    def now(self) -> float:
        """Return the seconds on the clock once the device has done its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def measure(self, size: Size, *, compiled: bool, until: float) -> dict[str, Any]:
        """Measure all variants at a size that fits."""
        for attempt in smaller(size):
            folder = Path(tempfile.mkdtemp(prefix="bench-training-"))
            workload = Workload(
                config=attempt.config,
                micro_batch=attempt.micro_batch,
                accumulation=attempt.accumulation,
                window=self._window(attempt),
                compiled=compiled,
                device=self.device,
                folder=folder,
            )
            try:
                workload.write()
                return self._round_robin(workload, until)
            except OutOfMemory:
                continue
            finally:
                shutil.rmtree(folder, ignore_errors=True)
                self._clean()
        raise OutOfMemory("not even one layer and one sequence fit into the device's memory")

    def _window(self, size: Size) -> int:
        # Steps of about half a second at 400 TFLOP/s on a GPU, of three at 40 GFLOP/s on a CPU.
        tokens = size.micro_batch * size.accumulation * size.config.max_position_embeddings
        work, most = (2e14, 20) if self.device.type == "cuda" else (1.2e11, 4)
        return min(most, max(2, round(work / (tokens * flops_per_token(size.config)))))

    def _clean(self) -> None:
        AcceleratorState._reset_state(reset_partial_state=False)
        for name in [name for name in os.environ if name.startswith("ACCELERATE_DYNAMO_")]:
            del os.environ[name]  # Trainer's arguments set them, and whatever is trained later would be compiled too
        torch._dynamo.reset()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _round_robin(self, workload: Workload, until: float) -> dict[str, Any]:
        observers = {name: Observer() for name in self.variants}
        players = {
            name: Player(name, lambda pause, variant=variant, seen=observers[name]: variant(workload, pause, seen))
            for name, variant in self.variants.items()
        }
        everyone = list(players.values())
        counters.clear()
        try:
            held, started = {}, self.now()
            longest = 0.0
            for name in BUILD_ORDER:
                before, began = self._allocated(), self.now()
                if began > self.deadline or (
                    name in BUILD_ORDER[2:] and began + longest + SPARE_SECONDS > self.deadline
                ):
                    players.pop(name).failure = "--seconds left no time to build it"
                    continue
                self._turn(players, name)
                held[name] = self._allocated() - before
                longest = max(longest, self.now() - began)
            build_seconds = self.now() - started
            seconds: dict[str, list[float]] = {name: [] for name in self.variants}
            peaks: dict[str, int] = {}
            if workload.compiled:  # what the later variants set for all may make the earlier ones compile again
                for name in list(players):
                    self._turn(players, name)
            began = ended = self.now()
            rounds = 0
            while players and rounds < self.rounds:
                # As long again as a round is left for the turns in which reads are counted.
                end = self.deadline if rounds < MIN_ROUNDS else min(until, self.deadline)
                if rounds and ended + 2 * (ended - began) > end:
                    break
                began = ended
                try:
                    self._timed_round(players, held, seconds, peaks)
                except OutOfTime:
                    if not rounds:
                        raise
                    seconds = {name: times[:rounds] for name, times in seconds.items()}
                    break
                ended = self.now()
                rounds += 1
            compiling = {"graph_breaks": sum(counters["graph_break"].values())} if workload.compiled else {}
            for name in list(players):
                late = self.now() + seconds[name][-1] > self.deadline
                if late or (workload.compiled and self.device.type == "cpu"):  # where compiled code cannot be seen
                    break
                observers[name].watching = True
                self._turn(players, name)
                observers[name].watching = False
        finally:
            for player in reversed(everyone):  # what the later ones set for all is put back first
                player.end()
        failures = {player.name: player.failure for player in everyone if player.failure}
        measured = {name: seconds[name] for name in self.variants if seconds[name] and name not in failures}
        if not measured:
            raise RuntimeError("; ".join(f"{name}: {failure}" for name, failure in failures.items()))
        report = self._report(workload, measured, peaks, observers)
        return report | compiling | {"build_seconds": round(build_seconds, 1), "failures": failures}

    def _timed_round(
        self,
        players: dict[str, Player],
        held: dict[str, int],
        seconds: dict[str, list[float]],
        peaks: dict[str, int],
    ) -> None:
        for name in [name for name in self.variants if name in players]:
            others = self._allocated() - held[name]
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(self.device)
            self.now()
            start = self.clock()
            self._turn(players, name)
            self.now()
            seconds[name].append(self.clock() - start)
            if self.device.type == "cuda":
                peaks[name] = torch.cuda.max_memory_allocated(self.device) - others

    def _turn(self, players: dict[str, Player], name: str) -> None:
        # Gives a variant its turn; one that fails has no further ones.
        if self.now() > self.deadline + GRACE_SECONDS:
            raise OutOfTime(f"--seconds were over before every variant was measured once; next was {name}")
        if not players[name].turn():
            failure = players.pop(name).failure or "ended"
            if "out of memory" in failure.lower() or "can't allocate memory" in failure.lower():
                raise OutOfMemory(f"{name}: {failure}")

    def _allocated(self) -> int:
        return int(torch.cuda.memory_allocated(self.device)) if self.device.type == "cuda" else 0

    def _report(
        self,
        workload: Workload,
        seconds: dict[str, list[float]],
        peaks: dict[str, int],
        observers: dict[str, Observer],
    ) -> dict[str, Any]:
        per_token, tokens = flops_per_token(workload.config), workload.step_tokens * workload.window
        variants = {}
        for name, times in seconds.items():
            rate, seen = tokens / statistics.median(times), observers[name]
            variants[name] = {
                "tokens_per_second": round(rate),
                "mfu": None if self.peak is None else round(rate * per_token / self.peak, 4),
                "step_seconds": round(statistics.median(times) / workload.window, 5),
                "peak_bytes": peaks.get(name, seen.peak_bytes),
                "reads_between_logs": seen.reads.total() if seen.steps else None,
                "read_places": dict(seen.reads.most_common(8)),
                "turn_seconds": [round(each, 4) for each in times],
            }
        ratios = {
            key: [n / d for n, d in zip(seconds[over], seconds[under], strict=True)]
            for key, (over, under) in RATIOS.items()
            if over in seconds and under in seconds
        }
        return {
            "parameters": count_parameters(workload.config).total,
            "layers": workload.config.num_hidden_layers,
            "width": workload.config.hidden_size,
            "vocabulary": workload.config.vocab_size,
            "context": workload.context,
            "micro_batch": workload.micro_batch,
            "accumulation": workload.accumulation,
            "tokens_per_step": workload.step_tokens,
            "steps_per_turn": workload.window,
            "rounds": max(map(len, seconds.values())),
            "flops_per_token": per_token,
            "variants": variants,
            **dict.fromkeys(RATIOS),
            **{key: round(statistics.median(values), 4) for key, values in ratios.items()},
            "spread": {key: [round(min(values), 4), round(max(values), 4)] for key, values in ratios.items()},
        }


def matmul_flops(device: torch.device) -> float:
    """Return the float32 FLOPs per second of a large product, the best of some."""
    a, best = torch.randn(1024, 1024, device=device), 0.0
    for _ in range(10):
        start = time.perf_counter()
        (a @ a).sum().item()
        best = max(best, 2 * 1024**3 / (time.perf_counter() - start))
    return best


def setting(device: torch.device, peak: float | None, options: argparse.Namespace) -> dict[str, Any]:
    """Describe what is measured on."""
    return {
        "device": device_name(device),
        "capability": torch.cuda.get_device_capability(device) if device.type == "cuda" else None,
        "driver": _driver() if device.type == "cuda" else None,
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "clock": "process_time" if options.cpu_time else "perf_counter",
        "peak_flops": peak,
        "seconds": options.seconds,
    }


def _driver() -> str | None:
    path = Path("/proc/driver/nvidia/version")
    found = re.search(r"Module\s+(?:for \S+\s+)?([\d.]+)", path.read_text()) if path.exists() else None
    return found[1] if found else None


def compiler_missing(device: torch.device) -> str | None:
    """Say why nothing can be compiled, if so."""
    if device.type == "cpu" and not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++")):
        return "torch.compile needs a C++ compiler on a CPU, and there is neither g++ nor clang++"
    if sys.platform == "win32":
        return "torch.compile is not tried on Windows"
    return None


def line(name: str, result: dict[str, Any]) -> str:
    """Return a result as a line of text."""
    head = f"{name:8} {'compiled' if result['compiled'] else 'eager':8}"
    if "skipped" in result:
        return f"{head} skipped: {result['skipped']}"
    parts = ["tokens/s:"]
    for variant, entry in result["variants"].items():
        parts.append(f"{variant} {entry['tokens_per_second']:,}" + (f" ({entry['mfu']:.1%})" if entry["mfu"] else ""))
    parts += [f"{key.replace('_over_', '/')} {result[key]:.3f}" for key in RATIOS if result[key] is not None]
    reads = [(variant, entry["reads_between_logs"]) for variant, entry in result["variants"].items()]
    parts += ["reads " + " ".join(f"{variant} {seen}" for variant, seen in reads)] if reads[0][1] is not None else []
    parts += [f"{variant} failed: {failure}" for variant, failure in result["failures"].items()]
    return "  ".join([head, *parts])


def main() -> None:
    """Measure the sizes, one after the other; with --json the last line on stdout is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", help=f"default: {GPU_SIZES} on a GPU, {CPU_SIZES} on a CPU")
    parser.add_argument("--step-tokens", type=int, help="tokens per optimizer step; default: as the size has them")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="default: all")
    parser.add_argument("--mode", choices=["both", "eager", "compiled"], default="both")
    parser.add_argument(
        "--seconds", type=float, default=300.0, help="bound on the whole; compiling cannot be cut short"
    )
    parser.add_argument("--rounds", type=int, default=30, help="timed turns of every variant, at the most")
    parser.add_argument("--peak", help="FLOP/s that MFU is a share of, or `measure` for those of a large product")
    parser.add_argument("--cpu-time", action="store_true", help="count processor time, for a machine that is busy")
    parser.add_argument("--device", help="such as cpu; default: a GPU where there is one")
    parser.add_argument("--output", type=Path, help="a JSON file, rewritten after every measurement")
    parser.add_argument("--json", action="store_true", help="print everything as JSON at the end")
    options = parser.parse_args()
    deadline = time.perf_counter() + options.seconds
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    peak = peak_flops(device)
    if options.peak:
        peak = matmul_flops(device) if options.peak == "measure" else float(options.peak)
    names = options.sizes or (GPU_SIZES if device.type == "cuda" else CPU_SIZES)
    sizes = {name: size_named(name) for name in names}
    if options.step_tokens:
        sizes = {name: with_step_tokens(size, options.step_tokens) for name, size in sizes.items()}
    modes = {"both": [False, True], "eager": [False], "compiled": [True]}[options.mode]
    if device.type == "cuda":
        modes.reverse()
    if options.cpu_time and device.type != "cpu":
        raise SystemExit("--cpu-time: a GPU's time is not the processor's; leave it out")
    clock = time.process_time if options.cpu_time else time.perf_counter
    bench = Bench(device, variants=options.variants, peak=peak, deadline=deadline, rounds=options.rounds, clock=clock)
    report: dict[str, Any] = {"setting": setting(device, peak, options), "results": []}
    passes = [(name, compiled) for compiled in modes for name in names]
    if device.type == "cuda" and (names[0], False) in passes:  # quick, so that there is a result soon
        passes.sort(key=lambda each: each != (names[0], False))
    for index, (name, compiled) in enumerate(passes):
        result = attempt(bench, sizes[name], compiled=compiled, passes_left=len(passes) - index)
        report["results"].append({"size": name, "compiled": compiled} | result)
        print(line(name, report["results"][-1]), file=sys.stderr if options.json else sys.stdout, flush=True)
        if options.output:
            write_json(options.output, report)
    if options.json:
        print(json.dumps(report))


def attempt(bench: Bench, size: Size, *, compiled: bool, passes_left: int) -> dict[str, Any]:
    """Measure a size, or say why not."""
    now = time.perf_counter()
    missing = compiler_missing(bench.device) if compiled else None
    if missing:
        return {"skipped": missing}
    left = bench.deadline - now
    if left <= (COMPILE_SECONDS[bench.device.type] * len(bench.variants) if compiled else 0):
        return {
            "skipped": f"{max(0, left):.0f} s of --seconds are left, too few to {'compile' if compiled else 'start'}"
        }
    try:
        return bench.measure(size, compiled=compiled, until=now + left / passes_left)
    except (OutOfTime, OutOfMemory, RuntimeError) as error:
        return {"skipped": f"{error}"}


if __name__ == "__main__":
    main()
