"""What tests compare, by the processes of one launch: `accelerate launch engine_works.py FOLDER WORK...`."""

import argparse
import contextlib
import os
import shutil
from pathlib import Path

import engine_run
import measured_run
import new_layer_run
from accelerate import PartialState

from hf_progressive.distributed.processes import leave_processes


def let_deepspeed_compile_nothing():
    """On a CPU it first compiles collectives that only its inference takes, which lasts two minutes on a core."""
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__ = {}


def resume(train, folder, **options):
    """Train again from the checkpoint in the middle."""
    resumed = folder / "resumed"
    if PartialState().is_main_process:
        shutil.copytree(folder / "plain" / "checkpoint-2", resumed / "checkpoint-2")
    PartialState().wait_for_everyone()
    train(resumed, batch=4, resume=True, **options)


def train_resumed(folder, **options):
    """Train, then again from the middle."""
    engine_run.train(folder / "plain", batch=4, accumulation=1, save_strategy="steps", save_steps=2, **options)
    resume(engine_run.train, folder, accumulation=1, **options)


def train_accumulated_and_resumed(folder, **options):
    """Train with and without accumulation, and again from the middle."""
    engine_run.train(folder / "accumulated", batch=2, accumulation=2, **options)
    train_resumed(folder, **options)


def train_proximal(folder, **options):
    """Let Φ act after the optimizer's step, which happens after the accumulation."""
    train_resumed(folder, **engine_run.PROXIMAL, **options)


def train_muon(folder, **options):
    """Train with Muon beside AdamW."""
    train_accumulated_and_resumed(folder, **engine_run.MUON, **options)


def train_form(form):
    """Train under another form of Φ, with and without accumulation."""

    def train(folder, **options):
        options |= {"form": form, **engine_run.DAMPED}
        engine_run.train(folder / "plain", batch=4, accumulation=1, **options)
        engine_run.train(folder / "accumulated", batch=2, accumulation=2, **options)

    return train


def train_new_layer(folder, **options):
    """Train what was grown alone, then again from the middle."""

    def train(output, **changes):
        new_layer_run.train(folder / "child", output, **changes, **options)

    train(folder / "plain", batch=4, save_strategy="steps", save_steps=2)
    resume(train, folder)


def measure(folder, *, fsdp, **_):
    """Measure a checkpoint with a trainer that has not trained."""
    with measured_run.pretend_after_arguments() if fsdp else contextlib.nullcontext():
        measured_run.measure(folder, folder / "checkpoint")


WORKS = {
    "measured": measure,  # first, in processes that have not trained either
    "phi": train_accumulated_and_resumed,
    "proximal": train_proximal,
    "muon": train_muon,
    "lora": train_form("lora"),
    "divergence": train_form("divergence"),
    "new_layer": train_new_layer,
}
"""Each leaves what it did in a folder of its name."""


def main():
    """Do the works that are named."""
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("works", nargs="+", choices=WORKS)
    parser.add_argument("--fsdp", action="store_true")
    parser.add_argument("--on-device", action="store_true", help="train on the accelerator")
    options = parser.parse_args()
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true" and not options.on_device:
        let_deepspeed_compile_nothing()
    for work in options.works:
        folder = options.output / work
        folder.mkdir(exist_ok=True)
        WORKS[work](folder, fsdp=options.fsdp, use_cpu=not options.on_device)
    leave_processes()


if __name__ == "__main__":
    main()
