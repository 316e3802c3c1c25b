"""Where a training step's time goes: the stock forward pass beside ours, compiled, in one bare loop, kernel by kernel.

Ways: `stock`, the model as Transformers has it; `ours`, attention over blocks without masks and no logits returned,
the loss formed in parts where logits are large; `ours, whole logits`, the same without parts. All are trained by the
same loop of plain PyTorch (autocast, fused AdamW, clipping), so that what differs is the forward and the backward
pass; what the Trainer adds around them is bench_training.py's question.

    python examples/benchmarks/profile_step.py --size d10 --output profile.json
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from training_sizes import Size, size_named
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_progressive.distributed.accelerators import device_name, peak_flops
from hf_progressive.storage import write_json
from hf_progressive.training import loss as loss_module
from hf_progressive.training.flops import flops_per_token
from hf_progressive.training.precision import attend_without_masks

ACCUMULATION = 8
REPEATS = 3
KERNELS = 28  # the longest, which are listed
NEVER = 1 << 60  # bytes of logits

Forward = Callable[[Any, Tensor, Tensor], Tensor]


def stock(model: PreTrainedModel, context: int) -> Forward:
    """Leave the model as it is."""
    return lambda run, ids, labels: run(input_ids=ids, labels=labels).loss


def ours(model: PreTrainedModel, context: int) -> Forward:
    """Change the model as a ladder's trainer does."""
    attend_without_masks(model, context)
    loss_module.return_loss_alone(model)
    return lambda run, ids, labels: run(input_ids=ids, labels=labels, loss_alone=True).loss


WAYS = {"ours": (ours, loss_module.LARGE_LOGITS_BYTES), "ours, whole logits": (ours, NEVER), "stock": (stock, NEVER)}


def measure(size: Size, way: str, device: torch.device, *, compiled: bool) -> dict[str, Any]:
    """Train a fresh model for some micro-batches one way.

    Args:
        size: The model and its micro-batch.
        way: A key of `WAYS`.
        device: Where.
        compiled: Whether to compile it.

    Returns:
        Seconds of the first step, tokens per second, MFU, peak memory, and on a GPU the longest kernels: share of the
        time that the device was busy, milliseconds in two micro-batches, calls and name.
    """
    prepare, _ = WAYS[way]
    on_gpu = device.type == "cuda"
    torch.compiler.reset()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(size.config, dtype=torch.float32, attn_implementation="sdpa").to(device)
    forward = prepare(model, size.config.max_position_embeddings)
    run = torch.compile(model, dynamic=False) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids = torch.randint(size.config.vocab_size, (size.micro_batch, size.config.max_position_embeddings), device=device)
    labels = ids.clone()
    labels[:, 0] = -100

    def step(micro_batches: int) -> float:
        started = time.perf_counter()
        for _ in range(micro_batches):
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=on_gpu):
                loss = forward(run, ids, labels)
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - started

    first = step(1)
    step(2)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds = sorted(step(ACCUMULATION) for _ in range(REPEATS))[REPEATS // 2]
    rate, peak = ACCUMULATION * ids.numel() / seconds, peak_flops(device)
    found: dict[str, Any] = {
        "compile_s": round(first, 1),
        "tokens_per_s": round(rate),
        "mfu": None if peak is None else rate * flops_per_token(size.config) / peak,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None,
    }
    if on_gpu:
        with profile(activities=[ProfilerActivity.CUDA]) as watched:
            step(2)
        kernels = sorted(watched.key_averages(), key=lambda event: -event.self_device_time_total)
        busy = sum(event.self_device_time_total for event in kernels)
        found["busy_ms"] = busy / 1000
        found["top"] = [
            [round(e.self_device_time_total / busy, 3), round(e.self_device_time_total / 1000, 2), e.count, e.key[:90]]
            for e in kernels[:KERNELS]
        ]
    return found


def main() -> None:
    """Measure every way at one size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="d10", help="dN, lNwM or m50, as bench_training.py has them (default: d10)")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--eager", action="store_true", help="compile nothing")
    parser.add_argument("--output", type=Path, help="a JSON file, rewritten after every way")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    size, report = size_named(options.size), {"device": device_name(device), "torch": torch.__version__}
    report |= {"size": options.size, "ways": {}}
    for way in options.ways:
        with mock.patch.object(loss_module, "LARGE_LOGITS_BYTES", WAYS[way][1]):
            report["ways"][way] = measure(size, way, device, compiled=not options.eager)
        line = {key: value for key, value in report["ways"][way].items() if key != "top"}
        sys.stdout.write(f"{options.size} {way}: {line}\n")
        if options.output:
            write_json(options.output, report)


if __name__ == "__main__":
    main()
