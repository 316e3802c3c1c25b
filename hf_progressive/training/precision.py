"""What a training run computes in: precision, compiled or not, and kind of attention, by device and configuration."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel, Trainer, TrainingArguments
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from hf_progressive.config import TrainingConfig
from hf_progressive.distributed.compilation import compiles_on
from hf_progressive.distributed.float32_products import allow_tf32

BLOCK_ATTENTION = "sdpa_without_masks"
"""The name under which Transformers knows the attention over whole blocks of text."""

_NAMES = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}
DIVIDING_ENGINES = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP")
"""Variables by which a launch names an engine that divides a model."""


def device_settings(training: TrainingConfig) -> dict[str, Any]:
    """Choose Trainer's arguments of precision, compilation and copies by the device.

    On a CUDA device: bfloat16 autocast where it has that, and compiled, unless the configuration says otherwise.
    Under DeepSpeed and FSDP nothing is compiled unless it is asked for. Elsewhere: float32, not compiled. What the
    configuration's `arguments` state is not chosen here.
    """
    given, settings, launched = training.arguments, dict[str, Any](), _launched_precision()
    if launched != "float32" and training.precision not in ("auto", launched):
        raise ValueError(
            f"training.precision: {training.precision}, but the launch's mixed_precision says {launched}; "
            "set training.precision to auto, or the launch's mixed_precision to 'no'"
        )
    on_cuda = torch.cuda.is_available() and not given.get("use_cpu")
    if not given.keys() & {"bf16", "fp16"} and launched in ("float32", "bfloat16"):
        by_device = training.precision == "auto" and on_cuda and _has_bfloat16()
        if by_device or training.precision == "bfloat16":
            settings["bf16"] = True
    if not given.keys() & {"torch_compile", "torch_compile_backend", "torch_compile_mode"}:
        divided = any(os.environ.get(name, "false").lower() in ("true", "1") for name in DIVIDING_ENGINES)
        by_device = training.compile == "auto" and on_cuda and not divided and "deepspeed" not in given
        if training.compile is True or (by_device and compiles_on("cuda")):
            settings["torch_compile"] = True
    return settings


def refuse_fp16_on_a_processor(args: TrainingArguments) -> None:
    """Raise a ValueError where arguments or launch ask for float16 and a processor computes.

    Accelerate 1.15 then computes in float32 and says nothing (`Accelerator.__init__`: no autocast, no loss scaler).
    """
    if args.mixed_precision == "fp16" and args.device.type == "cpu" and args.deepspeed_plugin is None:
        source = "training.arguments.fp16" if args.fp16 else "the launch's mixed_precision: fp16"
        raise ValueError(f"{source}: without effect on a processor, which computes in float32; leave it out")


def describe(trainer: Trainer) -> dict[str, Any]:
    """Say what a trainer computes in.

    That is `precision` (`float32`, `bfloat16` or `float16`, of the products; weights are float32), `compiled`, `tf32`
    (whether float32 products are rounded to it) and `attention`.
    """
    device = trainer.args.device
    has_tf32 = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)  # from Ampere on
    return {
        "precision": _NAMES.get(trainer.accelerator.mixed_precision, trainer.accelerator.mixed_precision),
        "compiled": bool(trainer.args.torch_compile),
        "tf32": has_tf32 and torch.get_float32_matmul_precision() != "highest",
        "attention": getattr(getattr(trainer.model, "config", None), "_attn_implementation", None),
    }


@contextlib.contextmanager
def blocks_of_one_size(trainer: Trainer) -> Iterator[None]:
    """Set up compiled code and float32 products for a training run of which all micro-batches have one size.

    At the end what was compiled is let go: PyTorch keeps what it compiled of a class's forward pass for a few models
    only, and compiles no more from there on. The files of its cache stay.
    """
    asked = trainer.args.tf32
    allow_tf32(trainer.accelerator.mixed_precision != "no" if asked is None else bool(asked))
    if not trainer.args.torch_compile:
        yield
        return
    # Otherwise evaluation, by another number of sequences, would make the training's next graph one of any size.
    trainer.accelerator.state.dynamo_plugin.dynamic = False
    try:
        yield
    finally:
        torch.compiler.reset()


def evaluation_precision(training: TrainingConfig, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Compute outside of training as training does: in bfloat16 autocast on a CUDA device where that is so."""
    chosen = {"bf16": _launched_precision() == "bfloat16", **training.arguments, **device_settings(training)}
    if device.type != "cuda" or not chosen["bf16"]:
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def attend_without_masks(model: PreTrainedModel, context: int) -> bool:
    """Let a model attend over blocks by SDPA's causal flag alone, if that is the same.

    It is where every block is one stretch of text without padding, and no layer looks back by less than a block.
    Transformers builds a mask from the positions, to tell packed sequences apart. Whether one is needed it reads from
    the device, once in every forward pass; in compiled code it cannot read, and always passes a full mask, with which
    SDPA's flash kernels do not run. An attention function without a mask function gets none
    (https://huggingface.co/docs/transformers/attention_interface).

    From now on the model must see such blocks alone. Return whether it does so; not where it does not use SDPA or has
    a window.
    """
    config = model.config
    if config._attn_implementation != "sdpa" or not model._can_set_attn_implementation():
        return False
    limits = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    if any(limit is not None and limit < context for limit in limits):
        return False
    AttentionInterface.register(BLOCK_ATTENTION, sdpa_attention_forward)
    model.set_attn_implementation(BLOCK_ATTENTION)
    return bool(config._attn_implementation == BLOCK_ATTENTION)


def _launched_precision() -> str:
    name = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    return _NAMES.get(name, name)


def _has_bfloat16() -> bool:
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))
