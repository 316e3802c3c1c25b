"""Timing of real steps on the machine at hand, for a plan to go by instead of an assumed share of the peak.

Every rung that fits into memory and into its time trains for some steps as it will in its ladder: its own model,
batch, precision, optimizer and Φ, on random tokens. Of the micro-batches of a step, which are alike, two are run. What
saving takes is timed on a file of a checkpoint's size.
"""

import dataclasses
import gc
import hashlib
import logging
import os
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, PreTrainedModel, TrainerCallback

from hf_progressive.config import LadderConfig, TrainingConfig
from hf_progressive.data.blocks import Block, as_block
from hf_progressive.distributed.accelerators import Gpu, device_name, gpu_named, wait_for
from hf_progressive.distributed.float32_products import own_float32_products
from hf_progressive.distributed.processes import current_processes
from hf_progressive.estimation.subspace import select_weights
from hf_progressive.penalty import InheritancePenalty
from hf_progressive.penalty.validation import weight_output_dimension
from hf_progressive.planning.ladder_plan import LadderPlan, RungPlan
from hf_progressive.planning.memory import (
    checkpoint_bytes,
    muon_parameters,
    penalty_state,
    sequence_bytes,
    training_bytes,
)
from hf_progressive.planning.speed import MeasuredRung, Measurement
from hf_progressive.training.precision import blocks_of_one_size
from hf_progressive.training.trainer import ProgressiveTrainer
from hf_progressive.training.training_run import TrainingRun, block_trainer, micro_batches, training_arguments

logger = logging.getLogger(__name__)

_WARMUP_STEPS, _TIMED_STEPS, _FEWEST_TIMED_STEPS = 2, 20, 2
_MORE_STEPS = 1000 * _TIMED_STEPS  # of a run that is stopped when enough were timed
_MICRO_BATCHES = 2  # one that accumulates, and the last, which takes the optimizer's step
_EVALUATION_BATCHES = 8
_PROBE_WIDTH, _PROBE_WIDTH_ON_GPU, _PROBE_SECONDS = 1024, 8192, 0.5
_CHUNK_BYTES = 1 << 24
_LEFT_FREE = 4  # a measurement fills no more than such a part of the free disk
_NOT_MEASURED = (
    "deepspeed", "fsdp", "fsdp_config", "report_to", "dataloader_num_workers", "dataloader_prefetch_factor",
    "dataloader_persistent_workers", "dataloader_multiprocessing_context",
)  # fmt: skip
"""Arguments that the steps are timed without: of several processes, and of reading real data."""


def measure_ladder(
    plan: LadderPlan, *, processes: int = 1, seconds: float = 60.0, folder: str | os.PathLike[str] = "."
) -> Measurement:
    """Time real steps of every rung that fits, and what saving takes.

    Args:
        plan: The ladder.
        processes: Processes that the plan is for: they decide the micro-batches of one.
        seconds: Time for each rung after its warm-up; a step under way is finished.
        folder: The run folder, which need not exist yet: saving is timed on its file system.
    """
    if not 0 < seconds < float("inf"):
        raise ValueError(f"measure: {seconds:g} is not a number of seconds above 0")
    state = current_processes()
    if state.num_processes > 1:
        raise ValueError("measure: runs in one process, whose speed stands for each; start it without a launcher")
    device = state.device
    saving = saving_bytes_per_second(
        Path(folder), max(checkpoint_bytes(rung.parameters.total) for rung in plan.rungs), seconds=seconds
    )
    with own_float32_products():
        rate = _probe(device)
        measured: list[MeasuredRung] = []
        skipped: dict[str, str] = {}
        for rung in plan.rungs:
            if rung.origin is not None:
                skipped[rung.name] = "it is not trained"
                continue
            job = _Job(plan.config, rung, device=device, processes=processes, seconds=seconds)
            reason = job.why_not(measured[-1].training_flops if measured else rate)
            if reason is None:
                try:
                    measured.append(job.run())
                    logger.info("%s: %s tokens/s", rung.name, f"{measured[-1].tokens_per_second:,.0f}")
                    continue
                except torch.OutOfMemoryError:
                    reason = "the device ran out of memory"
                finally:
                    gc.collect()
                    if device.type == "cuda":
                        torch.cuda.empty_cache()
            skipped[rung.name] = reason
            logger.info("%s: not measured: %s", rung.name, reason)
    if not measured:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise ValueError(
            f"measure: no rung fits on this machine ({reasons}); lower training.micro_batch_size, give it more time"
            f" with --measure SECONDS, or leave --measure out to assume an MFU"
        )
    return Measurement(
        device=device_at_hand(device),
        seconds=seconds,
        rungs=tuple(measured),
        skipped=skipped,
        without=tuple(name for name in _NOT_MEASURED if name in plan.config.training.arguments),
        saving_bytes_per_second=saving,
        folder=str(_existing(Path(folder))),
    )


def device_at_hand(device: torch.device) -> Gpu:
    """Return a device's entry in the table of accelerators; where it has none, its name and memory, without a peak."""
    known = gpu_named(device_name(device))
    if known is not None:
        return known
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    else:
        memory = _memory_of_machine("MemTotal") or 0
    return Gpu(name=device_name(device), peak_flops=None, memory_gb=memory / 1e9, source="the machine at hand")


def saving_bytes_per_second(folder: Path, size: int, *, seconds: float = 60.0) -> float:
    """Time what saving a checkpoint of a size takes: writing it, making it durable, and digesting it.

    Less is written where the disk is nearly full or the time is over. The folder need not exist yet.
    """
    place = _existing(folder)
    size = max(1, min(size, shutil.disk_usage(place).free // _LEFT_FREE))
    chunk = os.urandom(min(size, _CHUNK_BYTES))
    with tempfile.TemporaryFile(dir=place) as file:  # without a name, where the system allows that: gone after a kill
        started = time.monotonic()
        written = 0
        while written < size and time.monotonic() - started < seconds:
            written += file.write(chunk[: size - written])
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        hashlib.file_digest(file, "sha256")
        return written / (time.monotonic() - started)


def _existing(folder: Path) -> Path:
    return next(place for place in (folder, *folder.resolve().parents) if place.is_dir())


def _probe(device: torch.device) -> float:
    # FLOPs per second of plain products: no training reaches more, so that what cannot fit by it is not begun.
    on_gpu = device.type != "cpu"
    width = _PROBE_WIDTH_ON_GPU if on_gpu else _PROBE_WIDTH
    matrix = torch.randn(width, width, device=device, dtype=torch.bfloat16 if on_gpu else torch.float32)
    matrix @ matrix
    wait_for(device)
    started, products = time.monotonic(), 0
    while products < 2 or time.monotonic() - started < _PROBE_SECONDS:
        matrix @ matrix
        wait_for(device)
        products += 1
    return products * 2 * width**3 / (time.monotonic() - started)


def _free_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return _memory_of_machine("MemAvailable") if device.type == "cpu" else None


def _memory_of_machine(entry: str) -> int | None:
    # Bytes; None where the system does not tell it so. A container's own limit counts.
    table = Path("/proc/meminfo")
    if not table.is_file():
        return None
    lines = dict(line.split(":", 1) for line in table.read_text().splitlines())
    size = int(lines[entry].split()[0]) * 1024
    limit, used = (Path("/sys/fs/cgroup") / f"memory.{name}" for name in ("max", "current"))
    if limit.is_file() and used.is_file() and limit.read_text().strip().isdigit():
        taken = 0 if entry == "MemTotal" else int(used.read_text())
        size = min(size, int(limit.read_text()) - taken)
    return size


class _RandomBlocks(Dataset[Block]):
    """Blocks of random tokens."""

    def __init__(self, count: int, context: int, vocabulary: int) -> None:
        self.count, self.context, self.vocabulary = count, context, vocabulary

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Block:
        return as_block(torch.randint(self.vocabulary, (self.context,)))


class _Clock(TrainerCallback):
    """Times of micro-batches and last micro-batches of steps, until there are enough or the time is over."""

    def __init__(self, device: torch.device, seconds: float) -> None:
        self.device, self.seconds = device, seconds
        self.started = self.last = time.monotonic()
        self.steps = 0
        self.fetching: list[float] = []
        self.accumulating: list[float] = []
        self.stepping: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started = self.last = time.monotonic()

    def _lap(self, laps: list[float]) -> None:
        wait_for(self.device)
        now = time.monotonic()
        if self.steps >= _WARMUP_STEPS:
            laps.append(now - self.last)
        self.last = now

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._lap(self.fetching)

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._lap(self.accumulating)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        self._lap(self.stepping)
        self.steps += 1
        if self.steps == _WARMUP_STEPS:  # compiling, too, is over
            self.started = self.last
        timed = len(self.stepping)
        is_over = self.last - self.started > self.seconds and timed >= _FEWEST_TIMED_STEPS
        control.should_training_stop = is_over or timed >= _TIMED_STEPS
        return control

    def step_seconds(self, accumulation: int) -> float:
        # A step of so many micro-batches, of which some were run.
        taken = 1 if not self.accumulating else _MICRO_BATCHES
        between = median(self.accumulating) if self.accumulating else 0.0
        return median(self.fetching) * accumulation / taken + (accumulation - 1) * between + median(self.stepping)


@dataclasses.dataclass(frozen=True)
class _Job:
    """The measurement of one rung."""

    config: LadderConfig
    rung: RungPlan
    device: torch.device = dataclasses.field(kw_only=True)
    processes: int = dataclasses.field(kw_only=True)
    seconds: float = dataclasses.field(kw_only=True)

    @property
    def training(self) -> TrainingConfig:
        return self.config.training_of(self.rung.name)

    @property
    def micro_batch(self) -> tuple[int, int]:
        return micro_batches(self.training, self.config.model.context, self.processes)

    @property
    def predicted_bytes(self) -> int:
        config, rung = self.config, self.rung
        per_sequence = sequence_bytes(
            rung.config, self.training, context=config.model.context, on_gpu=self.device.type == "cuda"
        )
        state = penalty_state(config.phi_of(rung.name), grown=rung.parent is not None)
        size = self.micro_batch[0]
        total, of_muon = rung.parameters.total, muon_parameters(rung.config, self.training)
        return training_bytes(total, sequences=size, per_sequence=per_sequence, of_muon=of_muon, **state)

    def why_not(self, rate: float) -> str | None:
        # Why the rung cannot be measured on a device of `rate` FLOPs per second, if it cannot.
        free, needed = _free_bytes(self.device), self.predicted_bytes
        if free is not None and needed > free:
            return f"it takes about {needed / 1e9:.3g} GB of memory, {free / 1e9:.3g} are free"
        size, accumulation = self.micro_batch
        tokens = size * min(accumulation, _MICRO_BATCHES) * self.config.model.context
        least = (_WARMUP_STEPS + _FEWEST_TIMED_STEPS) * tokens * self.rung.size.flops_per_token / rate
        if least > self.seconds:
            return f"the fewest steps to time would take about {least:,.0f} s, of {self.seconds:g}"
        return None

    def run(self) -> MeasuredRung:
        context = self.config.model.context
        size, accumulation = self.micro_batch
        taken = min(accumulation, _MICRO_BATCHES)
        given = self.training
        arguments = {key: value for key, value in given.arguments.items() if key not in _NOT_MEASURED}
        training = dataclasses.replace(
            given,
            batch_tokens=size * taken * context,
            micro_batch_size=size,
            arguments={"per_device_eval_batch_size": given.micro_batch_size, **arguments},
        )
        on_cuda = self.device.type == "cuda"
        if on_cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(self.rung.config, dtype=torch.float32)
        clock = _Clock(self.device, self.seconds)
        blocks = _RandomBlocks(_MORE_STEPS * taken * size, context, self.rung.config.vocab_size)
        with tempfile.TemporaryDirectory(prefix="measure-") as folder:
            training_run = TrainingRun(
                title=self.rung.name,
                init=Path(folder),
                folder=Path(folder),
                training=training,
                learning_rate=training.learning_rate,
                steps=_MORE_STEPS,
                first_block=0,
                flops_per_token=self.rung.size.flops_per_token,
            )
            args, penalty = training_arguments(training_run, context), self._penalty(model)
            trainer = block_trainer(args, model, blocks, context=context, penalty=penalty, callbacks=[clock])
            with blocks_of_one_size(trainer):
                trainer.train()
                peak = torch.cuda.max_memory_allocated(self.device) if on_cuda else None
                step = clock.step_seconds(accumulation)
                evaluation = self._evaluation_speed(trainer, step / accumulation)
        return MeasuredRung(
            name=self.rung.name,
            flops_per_token=self.rung.size.flops_per_token,
            micro_batch_size=size,
            steps=len(clock.stepping),
            accumulation_steps=taken,
            tokens_per_second=size * accumulation * context / step,
            evaluation_tokens_per_second=evaluation,
            peak_bytes=peak,
            predicted_bytes=self.predicted_bytes,
        )

    def _evaluation_speed(self, trainer: ProgressiveTrainer, micro_batch_seconds: float) -> float:
        context, vocabulary = self.config.model.context, self.rung.config.vocab_size
        batch = trainer.args.per_device_eval_batch_size
        share = batch / self.micro_batch[0]
        fitting = int(self.seconds / 4 / (micro_batch_seconds * share))
        batches = min(_EVALUATION_BATCHES, max(1, fitting))
        trainer.evaluate(_RandomBlocks(batch, context, vocabulary))
        metrics = trainer.evaluate(_RandomBlocks(batches * batch, context, vocabulary))
        return float(batches * batch * context / metrics["eval_runtime"])

    def _penalty(self, model: PreTrainedModel) -> InheritancePenalty | None:
        # Of Φ, the work per step counts, which does not depend on the values.
        phi = self.config.phi_of(self.rung.name)
        if phi.is_off or self.rung.parent is None:
            return None
        anchor = {name: value.detach().clone() for name, value in model.named_parameters()}
        fisher = {name: torch.rand_like(value) for name, value in anchor.items()} if phi.ewc_lambda > 0 else None
        bases = {name: _half_of_the_outputs(anchor[name], module) for name, module in select_weights(model).items()}
        return InheritancePenalty(
            anchor,
            fisher,
            bases if phi.gamma > 0 else None,
            ewc_lambda=phi.ewc_lambda,
            gamma=phi.gamma,
            apply=phi.apply,
            subspace_side=phi.subspace.side,
        )


def _half_of_the_outputs(weight: Tensor, module: nn.Module) -> Tensor:
    # An orthonormal basis (out, out/2).
    outputs = weight.shape[weight_output_dimension(module)]
    basis: Tensor = torch.linalg.qr(torch.randn(outputs, max(1, outputs // 2)))[0]
    return basis
