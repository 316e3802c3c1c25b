"""Train many small trunks at once on one GPU, and keep what was measured.

`pack` tokenizes a corpus into one file, `run` carries out plans on it, and `collect` puts what they measured into one
file, of which analyse.py makes the table:

    python examples/trunk_search/search.py pack --files books-train.parquet \
        --validation-files books-validation.parquet --out books.npz
    python examples/trunk_search/search.py run --packed books.npz --plan depth methods --out run.jsonl --minutes 10
    python examples/trunk_search/search.py collect run.jsonl --out measured.json
"""

import argparse
import contextlib
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from groups import Emit, GroupRun
from measured import Model, collect, machine_line, models_line, write
from network import Execution
from packed_corpus import Blocks, pack, prepare, unpack
from plans import PLANS
from torch import _dynamo as dynamo
from trunks import Group, Trunk

QUEUED = 2  # pieces of one group's work that may wait on the device
WAIT_SECONDS = 5e-4
SECONDS_PER_WORK = {"cuda": 4e-10, "cpu": 1e-7}  # one group of two on an H200; corrected by every group that ends
NEWEST = 0.4  # its weight in that
COMPILED_SHAPES, COMPILED_IN_ALL = 512, 4096  # every number of models and every size is compiled apart


class Worker:
    """A group that is being trained, on a stream of its own.

    Args:
        group: The group.
        steps: What `GroupRun.run` returned.
        stream: The stream, on a GPU.
    """

    def __init__(self, group: Group, steps: Iterator[None], stream: torch.cuda.Stream | None) -> None:
        self.group, self.steps, self.stream = group, steps, stream
        self.started = time.monotonic()
        self.queued: list[torch.cuda.Event] = []

    @property
    def is_busy(self) -> bool:
        """Whether the device has enough of its work to do."""
        self.queued = [event for event in self.queued if not event.query()]
        return len(self.queued) >= QUEUED

    def advance(self) -> bool:
        """Queue the next steps; tell whether there were any."""
        with contextlib.nullcontext() if self.stream is None else torch.cuda.stream(self.stream):
            for _ in self.steps:
                if self.stream is not None:
                    event = torch.cuda.Event()
                    event.record()
                    self.queued.append(event)
                return True
        return False


class Search:
    """The groups of some plans, a few side by side, until they are done or the time is over.

    Args:
        groups: The groups, in the order of their importance.
        blocks: What is read.
        emit: Takes finished models.
        execution: How the arithmetic is carried out.
        streams: How many groups are trained side by side on a GPU.
        seconds: When to stop, from now on. A group that would not be done is not begun.
        pace: Seconds that a unit of a group's work takes, as it ends with; None expects an H200 and two streams.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        blocks: Blocks,
        emit: Emit,
        execution: Execution,
        *,
        streams: int,
        seconds: float,
        pace: float | None = None,
    ) -> None:
        self.waiting, self.blocks, self.emit, self.execution = list(groups), blocks, emit, execution
        device = blocks.train.device
        self.cuda = cuda = device.type == "cuda"
        self.free: list[torch.cuda.Stream | None] = [torch.cuda.Stream() if cuda else None for _ in range(streams)]
        if not cuda:
            del self.free[1:]
        self.seconds_per_work = pace or SECONDS_PER_WORK[device.type]
        self.end = time.monotonic() + seconds
        self.workers: list[Worker] = []

    def run(self) -> None:
        """Train, saying on stderr what ends and what is left out."""
        if self.cuda:
            torch.cuda.synchronize()  # the blocks are there before other streams read them
        while self.waiting or self.workers:
            self._begin()
            idle = True
            for worker in list(self.workers):
                if time.monotonic() > self.end:
                    self._release(worker, "out of time")
                elif not worker.is_busy:
                    idle = False
                    if not worker.advance():
                        taken = self._learn(worker)
                        self._release(worker, f"done in {taken:.1f} s, a pace of {taken / worker.group.work:.2g}")
            if idle and self.workers:
                time.sleep(WAIT_SECONDS)

    def _begin(self) -> None:
        while self.waiting and self.free:
            group = self.waiting.pop(0)
            needed, left = group.work * self.seconds_per_work, self.end - time.monotonic()
            if needed > left:
                say(f"{describe(group)}: left out, for it takes about {needed:.0f} s and {left:.0f} are left")
                continue
            stream = self.free.pop()
            with contextlib.nullcontext() if stream is None else torch.cuda.stream(stream):
                steps = GroupRun(group, self.blocks, self.emit, self.execution).run()
            self.workers.append(Worker(group, steps, stream))

    def _learn(self, worker: Worker) -> float:
        taken = time.monotonic() - worker.started
        self.seconds_per_work += NEWEST * (taken / worker.group.work - self.seconds_per_work)
        return taken

    def _release(self, worker: Worker, how: str) -> None:
        say(f"{describe(worker.group)}: {how}")
        self.workers.remove(worker)
        self.free.append(worker.stream)
        if self.cuda:
            torch.cuda.empty_cache()  # a graph's memory is its own until then


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def describe(group: Group) -> str:
    trunk = group.trunk
    return (
        f"{trunk.family} {trunk.caption}; {trunk.tokens_per_parameter:g} tokens per parameter,"
        f" decay {trunk.decay_fraction:g}, {len(group.models)} models"
    )


def machine(device: torch.device, execution: Execution, plans: Sequence[str]) -> dict[str, Any]:
    """Return what a search ran on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": name,
        "torch": torch.__version__,
        "compiled": execution.compiled,
        "attention": "bfloat16" if execution.bfloat16_attention else "float32",
        "products": "bfloat16" if execution.bfloat16_products else "float32",
        "float32_products": torch.get_float32_matmul_precision(),
        "plans": list(plans),
    }


def run(options: argparse.Namespace) -> None:
    """Carry out plans."""
    device = torch.device(options.device)
    cuda = device.type == "cuda"
    execution = Execution(
        compiled=cuda and not options.eager,
        bfloat16_attention=cuda and options.attention == "bfloat16",
        bfloat16_products=options.products == "bfloat16",
    )
    torch.set_float32_matmul_precision("high")  # TF32, where the device has it
    if execution.compiled:
        dynamo.config.recompile_limit = COMPILED_SHAPES
        dynamo.config.accumulated_recompile_limit = COMPILED_IN_ALL
    blocks = unpack(options.packed, device)
    groups = [group.shortened(options.shortened) for name in options.plan for group in PLANS[name]()]
    with options.out.open("a", encoding="utf-8") as out:

        def emit(trunk: Trunk, models: Sequence[Model]) -> None:
            print(models_line(trunk, models), file=out, flush=True)

        print(machine_line(machine(device, execution, options.plan)), file=out, flush=True)
        Search(groups, blocks, emit, execution, streams=options.streams, seconds=60 * options.minutes,
               pace=options.pace).run()  # fmt: skip


def make_packed(options: argparse.Namespace) -> None:
    """Tokenize and pack a corpus."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "data") if options.folder is None else options.folder
        corpus = prepare(options.files, options.validation_files, folder)
        pack(corpus, options.out)
        say(f"{options.out}: {corpus.train_length} blocks, validation {len(corpus.validation)}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train many small trunks at once on one GPU.")
    commands = parser.add_subparsers(required=True)

    packing = commands.add_parser("pack", help="tokenize parquet files (column text) and pack them into one file")
    packing.add_argument("--files", nargs="+", required=True)
    packing.add_argument("--validation-files", nargs="+", default=[])
    packing.add_argument("--folder", type=Path, help="of the prepared corpus; left out, it is not kept")
    packing.add_argument("--out", type=Path, required=True)
    packing.set_defaults(command=make_packed)

    running = commands.add_parser("run", help="carry out plans; a line is added for models that are finished together")
    running.add_argument("--packed", type=Path, required=True)
    running.add_argument("--plan", nargs="+", choices=list(PLANS), required=True)
    running.add_argument("--out", type=Path, required=True, help="JSON lines; those that are there stay")
    running.add_argument("--minutes", type=float, default=10.0)
    running.add_argument("--streams", type=int, default=3, help="groups side by side on a GPU")
    running.add_argument("--pace", type=float, help="of the first groups, as an earlier search printed it")
    running.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    running.add_argument("--attention", choices=["bfloat16", "float32"], default="bfloat16", help="on a GPU")
    running.add_argument("--products", choices=["bfloat16", "float32"], default="float32", help="products of weights")
    running.add_argument(
        "--shortened", type=float, default=1.0, help="share of every budget: a rehearsal at full size"
    )
    running.add_argument("--eager", action="store_true", help="do not compile")
    running.set_defaults(command=run)

    collecting = commands.add_parser("collect", help="put the lines of searches into one file")
    collecting.add_argument("lines", type=Path, nargs="+")
    collecting.add_argument("--out", type=Path, required=True)
    collecting.set_defaults(command=lambda options: write(collect(options.lines), options.out))

    options = parser.parse_args(arguments)
    options.command(options)


if __name__ == "__main__":
    main()
