"""Part 3: steps of the real configuration, d10 and d15 → d16, with their own batch, context, vocabulary and precision.

What is measured is the project's own training path, a ladder's training run, stopped when its time is over. The first
steps, in which kernels are compiled and memory is taken, are reported apart. d16 is grown from a d15 of fresh weights:
a step takes as long whatever the weights are. Tokens are synthetic.
"""

import contextlib
import dataclasses
import gc
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from part_file import TERMINATED, PartFile, explain, part_arguments, read_json, seconds_left, write_json
from synthetic import synthetic_corpus
from transformers import AutoModelForCausalLM, TrainerCallback

from hf_progressive.config import LadderConfig, TrainingConfig, load_ladder_config
from hf_progressive.data import Corpus
from hf_progressive.distributed.accelerators import gpu_named, peak_flops
from hf_progressive.estimation import estimate_fisher
from hf_progressive.growth import grow_checkpoint, plan_growth, verify_growth
from hf_progressive.penalty import InheritancePenalty
from hf_progressive.planning.cluster import Cluster
from hf_progressive.planning.ladder_plan import LadderPlan, RungPlan, plan_ladder
from hf_progressive.planning.pricing import LadderPrice
from hf_progressive.storage import is_complete
from hf_progressive.training.checkpoints import write_fresh
from hf_progressive.training.training_run import TrainingRun, train_run

WARMUP_STEPS = 3  # compilation, memory, the optimizer's state
STOP_SECONDS, TOY_SECONDS = 3.0, 30.0
FEWEST_STEPS = 4  # measured, whatever the time
CORPUS_BLOCKS = 8192
NODE = 8  # GPUs of the node that the whole ladder is priced on
REAL = {"small": ("ladder_d10_d18", ("rungs=[d10]", "cold=none")), "step": ("validation_d15_d16", ())}
COMMON = (
    "training.arguments.report_to=none",
    "training.evaluations=1",
    "data.streaming=false",
    "data.source=stdlib",
    "data.name=null",
)
TOY = (
    "model.context=64", "model.aspect_ratio=16", "model.head_dim=16", "data.tokenizer.vocab_size=512",
    "training.batch_tokens=512", "training.micro_batch_size=4", "training.arguments.bf16=false",
    "training.arguments.dataloader_num_workers=0",
)  # fmt: skip
EWC_LAMBDA = 0.01
CHECK_NAME = "growth_check.json"
PHI_SEQUENCES = 16  # of the Fisher estimate whose time is taken


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all runs share."""

    file: PartFile
    """Where to write."""

    work: Path
    """Where checkpoints go."""

    corpus: Corpus
    """What to train on."""

    price: float
    """Dollars per GPU and hour."""

    end: float
    """When the part ends, on the monotonic clock."""


class OutOfTime(Exception):
    """The run has had its time."""


class Stopwatch(TrainerCallback):
    """Take the time of every step, report it, and stop when the time is over."""

    def __init__(self, deadline: float, report: Any) -> None:
        self.deadline = deadline
        self.report = report
        self.marks = [time.perf_counter()]
        self.settings: dict[str, str] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the settings."""
        names = ("bf16", "tf32", "torch_compile", "optim", "dataloader_num_workers", "gradient_accumulation_steps")
        self.settings = {name: str(getattr(args, name, None)) for name in names}
        with contextlib.suppress(RuntimeError):  # set by the newer of PyTorch's two interfaces
            self.settings["float32_matmul_precision"] = torch.get_float32_matmul_precision()
        config = getattr(kwargs.get("model"), "config", None)
        self.settings["attention"] = str(getattr(config, "_attn_implementation", None))

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin the first step, which the evaluation at the start is no part of."""
        if len(self.marks) == 1 and state.global_step == 0:
            self.marks = [time.perf_counter()]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End one step and begin the next."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.marks.append(time.perf_counter())
        self.report(self.seconds)
        if time.monotonic() > self.deadline and len(self.seconds) >= WARMUP_STEPS + FEWEST_STEPS:
            raise OutOfTime

    @property
    def seconds(self) -> list[float]:
        """Seconds of every step so far."""
        return [after - before for before, after in zip(self.marks, self.marks[1:], strict=False)]


def load(which: str, *, rehearse: bool) -> LadderConfig:
    """Load a real configuration, or the same one at toy sizes."""
    name, overrides = REAL[which]
    if not rehearse:
        return load_ladder_config(name, (*overrides, *COMMON))
    rungs = {"small": "rungs=[d1]", "step": "rungs=[d2,d3]"}[which]
    return load_ladder_config(name, (*COMMON, *TOY, rungs, "cold=none"))


def predicted_memory(plan: LadderPlan, rung: RungPlan, price: float) -> dict[str, Any]:
    """Return what `hf-progressive plan` predicts for one GPU of this kind."""
    gpu = gpu_named(torch.cuda.get_device_name(0)) if torch.cuda.is_available() else None
    cluster = Cluster(count=1, price=price) if gpu is None else Cluster(gpu=gpu, count=1, price=price)
    memory: dict[str, Any] = LadderPrice(plan=plan, cluster=cluster).to_dict()["rungs"][rung.index]["memory"]
    return memory


def measure(
    bench: Bench, title: str, init: Path, plan: LadderPlan, rung: RungPlan, deadline: float, penalty: Any = None
) -> dict[str, Any]:
    """Train one rung until the deadline and record its speed, memory and price, as they are known.

    Where the configured micro-batch does not fit, half of it is tried, and the record says so.
    """
    training = plan.config.training
    entry: dict[str, Any] = {"run": title, "rung": rung.name, "parent": rung.parent, "with_phi": penalty is not None}
    bench.file.record.setdefault("runs", []).append(entry)
    entry["plan"] = predicted_memory(plan, rung, bench.price)
    while True:
        entry["micro_batch_size"] = training.micro_batch_size
        try:
            _train(bench, entry, init, training, rung, deadline, penalty)
        except torch.OutOfMemoryError as error:
            tried = {"micro_batch_size": training.micro_batch_size, "error": str(error)[:500]}
            entry.setdefault("out_of_memory", []).append(tried)
            if training.micro_batch_size == 1:
                raise
            training = dataclasses.replace(training, micro_batch_size=training.micro_batch_size // 2)
        except RuntimeError as error:
            if time.monotonic() >= bench.end:  # told to stop: a data loader answers that its worker was killed
                raise SystemExit(TERMINATED) from error
            if "not_compiled" in entry or not hasattr(training, "compile"):
                raise
            entry["not_compiled"] = explain(error)
            training = dataclasses.replace(training, compile=False)
        else:
            return entry
        finally:
            _free()
            summarize(bench)


def _train(
    bench: Bench, entry: dict[str, Any], init: Path, training: TrainingConfig, rung: RungPlan, deadline: float,
    penalty: Any,
) -> None:  # fmt: skip
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    training_run = TrainingRun(
        title=entry["run"], init=init, folder=bench.work / "runs" / entry["run"].replace(" ", "-"), training=training,
        learning_rate=training.learning_rate, steps=rung.size.steps, first_block=0,
        flops_per_token=rung.size.flops_per_token, checkpoint_steps=frozenset(), phi_until=1.5,
    )  # fmt: skip
    peak = peak_flops(torch.device("cuda", 0)) if on_gpu else None
    started = time.perf_counter()

    def report(seconds: list[float]) -> None:
        entry.update(_figures(seconds, rung, training.batch_tokens, peak))
        entry["settings"] = watch.settings
        entry.setdefault("seconds_before_first_step", round(watch.marks[0] - started, 2))
        if on_gpu:
            entry["memory"] = {
                "allocated_bytes": torch.cuda.max_memory_allocated(),
                "reserved_bytes": torch.cuda.max_memory_reserved(),
            }
        bench.file.write(throttled=True)

    watch = Stopwatch(deadline, report)
    with contextlib.suppress(OutOfTime):
        train_run(training_run, bench.corpus, penalty, [watch])
    entry["wall_seconds"] = round(time.perf_counter() - started, 2)
    _compare(entry, bench, rung)
    bench.file.write()


def _figures(seconds: list[float], rung: RungPlan, batch_tokens: int, peak: float | None) -> dict[str, Any]:
    measured = seconds[WARMUP_STEPS:]
    figures: dict[str, Any] = {
        "parameters": rung.parameters.total,
        "steps": len(seconds),
        "tokens_per_step": batch_tokens,
        "first_step_seconds": round(seconds[0], 3),
        "warmup_seconds": round(sum(seconds[:WARMUP_STEPS]), 3),
        "flops_per_token": rung.size.flops_per_token,
    }
    if measured:
        step = statistics.median(measured)
        rate = batch_tokens / step
        figures |= {
            "step_seconds": {"median": step, "least": min(measured), "most": max(measured)},
            "tokens_per_second": rate,
            "mfu": None if peak is None else rate * rung.size.flops_per_token / peak,
        }
    return figures


def _compare(entry: dict[str, Any], bench: Bench, rung: RungPlan) -> None:
    # Against the prediction, and what the whole run would take.
    predicted = entry["plan"].get("replicated_bytes")
    if "memory" in entry and predicted and entry["plan"].get("micro_batch_size") == entry["micro_batch_size"]:
        entry["memory"]["allocated_over_predicted"] = entry["memory"]["allocated_bytes"] / predicted
        entry["memory"]["reserved_over_predicted"] = entry["memory"]["reserved_bytes"] / predicted
    if "tokens_per_second" in entry:
        hours = rung.size.tokens / entry["tokens_per_second"] / 3600
        entry["whole_run"] = {"tokens": rung.size.tokens, "gpu_hours": hours, "dollars": hours * bench.price}


def _free() -> None:
    gc.collect()
    AcceleratorState._reset_state(reset_partial_state=False)  # it would keep compiling what is not to be compiled
    torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def summarize(bench: Bench) -> None:
    """Write the lines of the table."""
    lines = []
    for entry in bench.file.record.get("runs", []):
        if "tokens_per_second" not in entry:
            continue
        line = f"{entry['run']}: {entry['tokens_per_second']:,.0f} tokens/s"
        if entry.get("mfu"):
            line += f", MFU {entry['mfu']:.1%}"
        if "memory" in entry:
            line += f", {entry['memory']['allocated_bytes'] / 1e9:.1f} GB"
            if "allocated_over_predicted" in entry["memory"]:
                line += f" ({entry['memory']['allocated_over_predicted']:.2f} of the plan's)"
        if "whole_run" in entry:
            whole = entry["whole_run"]
            line += f", whole run {whole['gpu_hours']:.2f} GPU hours, {whole['dollars']:.2f} dollars"
        lines.append(line)
    bench.file.record["summary"] = lines
    bench.file.write()


def price_ladder(bench: Bench, entry: dict[str, Any]) -> None:
    """Price the whole d10 … d18 ladder at a measured utilisation."""
    gpu = gpu_named(torch.cuda.get_device_name(0)) if torch.cuda.is_available() else None
    if gpu is None or not entry.get("mfu"):
        return
    cluster = Cluster(gpu=gpu, count=NODE, mfu=entry["mfu"], price=bench.price)
    plan = plan_ladder(load_ladder_config("ladder_d10_d18", COMMON))
    family = LadderPrice(plan=plan, cluster=cluster).to_dict()["family"]
    bench.file.update(ladder_d10_d18={"gpus": NODE, "mfu": entry["mfu"], "price": bench.price, "family": family})


def phi_of(init: Path, parent: Path, corpus: Corpus, sequences: int) -> tuple[InheritancePenalty, dict[str, Any]]:
    """Estimate the parent's Fisher information from a few blocks and return Φ for the child, with what it took."""
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    model = AutoModelForCausalLM.from_pretrained(parent, dtype=torch.float32).to(device)
    started = time.perf_counter()
    blocks = torch.stack([corpus.train[i]["input_ids"] for i in range(sequences)])
    fisher = estimate_fisher(model, blocks.split(2))
    if device.type == "cuda":
        torch.cuda.synchronize()
    took = time.perf_counter() - started
    child = AutoModelForCausalLM.from_pretrained(init, dtype=torch.float32)
    plan = plan_growth(model.config, child.config)
    anchor = {name: p.detach() for name, p in child.named_parameters()}
    mapped = plan.map_diagonal({name: value.cpu() for name, value in fisher.items()})
    penalty = InheritancePenalty(anchor, mapped, ewc_lambda=EWC_LAMBDA)
    return penalty, {"sequences": sequences, "seconds": took, "seconds_per_sequence": took / sequences}


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def grow(work: Path, *, rehearse: bool) -> None:
    """Make a fresh d15 and grow it into d16, on the CPU."""
    config = load("step", rehearse=rehearse)
    plan = plan_ladder(config)
    corpus = synthetic_corpus(work / "stand-in", vocab_size=300, context=config.model.context, blocks=1)
    write_fresh(plan.rungs[0].size.config, corpus.tokenizer, work / "parent", seed=0)
    grow_checkpoint(
        work / "parent", work / "child", plan.rungs[1].target, progress=False, overwrite=True, verify=False
    )
    check = verify_growth(work / "parent", work / "child", sequences=2)  # the child can be trained meanwhile
    write_json(work / CHECK_NAME, check.to_dict())


def wait_for_child(growing: "subprocess.Popen[bytes]", work: Path) -> None:
    """Wait until the grown checkpoint is there."""
    while not is_complete(work / "child"):
        if growing.poll() is not None:
            raise RuntimeError(f"growing ended with code {growing.returncode} and left no checkpoint; see the log")
        time.sleep(0.2)


def note_check(bench: Bench, growing: "subprocess.Popen[bytes]", work: Path, end: float) -> None:
    """Record how far the grown model's logits are from its parent's, where that is known in time."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        growing.wait(timeout=max(0.1, end - time.monotonic()))
    bench.file.update(growth=read_json(work / CHECK_NAME) or "not verified in time")


def main() -> int:
    """Measure d10, then d16 grown from d15, then what there is time for."""
    parser = part_arguments(__doc__)
    parser.add_argument("--grow", action="store_true", help="only make the grown checkpoint")
    options = parser.parse_args()
    work = options.work / "configuration"
    if options.grow:
        grow(work, rehearse=options.rehearse)
        return 0
    left = seconds_left(options) - STOP_SECONDS
    end = time.monotonic() + (min(left, TOY_SECONDS) if options.rehearse else left)
    with PartFile(options.json, "configuration", rehearsal=options.rehearse) as file:
        for name in ("child", CHECK_NAME):  # of an earlier start
            remove(work / name)
        growing = subprocess.Popen(
            [sys.executable, __file__, *sys.argv[1:], "--grow"],
            env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 2) // 2))},
        )
        small, step = (plan_ladder(load(which, rehearse=options.rehearse)) for which in ("small", "step"))
        vocab_size = small.rungs[0].size.config.vocab_size
        corpus = synthetic_corpus(
            work / "data", vocab_size=vocab_size, context=small.config.model.context,
            blocks=64 if options.rehearse else CORPUS_BLOCKS,
        )  # fmt: skip
        bench = Bench(file=file, work=work, corpus=corpus, price=options.price, end=end)
        file.update(tokens="synthetic", price=options.price)
        write_fresh(small.rungs[0].size.config, corpus.tokenizer, work / "small", seed=0)
        left = end - time.monotonic()
        name = small.rungs[0].name
        measure(bench, name, work / "small", small, small.rungs[0], time.monotonic() + 0.4 * left)
        wait_for_child(growing, work)
        child, parent = step.rungs[1], step.rungs[0]
        title = f"{child.name} grown from {parent.name}"
        left = end - time.monotonic()
        entry = measure(bench, title, work / "child", step, child, time.monotonic() + 0.6 * left)
        price_ladder(bench, entry)
        optional(bench, step, work, end)
        note_check(bench, growing, work, end)
    return 0


def optional(bench: Bench, step: LadderPlan, work: Path, end: float) -> None:
    """Measure the grown rung with Φ where there is time; an error here is recorded, and costs nothing else."""
    parent, child = step.rungs
    needed = 2.0 * sum(entry.get("warmup_seconds", 0.0) for entry in bench.file.record["runs"][-1:]) + 15
    if end - time.monotonic() < needed:
        bench.file.update(
            phi=f"not measured: it needs about {needed:.0f} s, and {end - time.monotonic():.0f} s are left"
        )
        return
    try:
        penalty, took = phi_of(work / "child", work / "parent", bench.corpus, PHI_SEQUENCES)
        bench.file.update(phi={"fisher": took})
        _free()
        with_phi = dataclasses.replace(step.config, phi=dataclasses.replace(step.config.phi, ewc_lambda=EWC_LAMBDA))
        title = f"{child.name} grown from {parent.name} with Φ"
        measure(bench, title, work / "child", plan_ladder(with_phi), child, end, penalty)
    except (RuntimeError, ValueError) as error:
        bench.file.update(phi=explain(error))


if __name__ == "__main__":
    sys.exit(main())
