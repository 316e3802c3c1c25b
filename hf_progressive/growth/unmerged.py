"""What is no plain checkpoint, by its names: say what the user holds, and what to do with it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hf_progressive.storage import read_json

ADAPTER_NAME = "adapter_config.json"
"""Name of the configuration of a PEFT adapter."""

_LONGEST_NAME = 200

_WRAPPERS = (
    ("base_model.model.", "under PEFT; call merge_and_unload() on the PeftModel, and save or grow what that returns"),
    ("_orig_mod.", "under torch.compile; save or grow model._orig_mod, or take that prefix off the names"),
    ("module.", "under DistributedDataParallel; save or grow model.module, or take that prefix off the names"),
    ("_fsdp_wrapped_module.", "under FSDP; gather the whole model with save_pretrained, as Trainer does"),
)
"""Prefixes of names in a state dict, and how such weights were saved."""


def refuse_adapter(folder: Path) -> None:
    """Raise a ValueError for a folder that holds an adapter, or GGUF, in place of a model."""
    if (folder / ADAPTER_NAME).is_file():
        raise ValueError(
            f"{folder}: holds a PEFT adapter of {_base_of(folder)} and not a model; merge it first:"
            f" PeftModel.from_pretrained(base, {str(folder)!r}).merge_and_unload().save_pretrained(NEW)"
        )
    for path in sorted(folder.glob("*.gguf")):
        raise ValueError(
            f"{path}: is GGUF, whose weights are quantized in blocks; grow the original, or what"
            f" from_pretrained(..., gguf_file={path.name!r}, quantization_config=GgufConfig(dequantize=True)) loads,"
            " saved without its quantization_config"
        )


def refuse_adapter_beside(folder: Path) -> None:
    """Raise a ValueError for a model's folder that holds an adapter too, which `from_pretrained` loads on its base."""
    if (folder / ADAPTER_NAME).is_file():
        raise ValueError(
            f"{folder}: holds a PEFT adapter of {_base_of(folder)} beside a model, and from_pretrained loads those two"
            f" and not the model; move {ADAPTER_NAME} out of the folder, or merge the adapter and take the result"
        )


def _base_of(folder: Path) -> str:
    base = read_json(folder / ADAPTER_NAME).get("base_model_name_or_path")
    return base[:_LONGEST_NAME] if isinstance(base, str) and base and base.isprintable() else "another model"


def refuse_quantized(config: Any, deed: str) -> None:
    """Raise a ValueError for a config of quantized weights, with which a deed (grown, verified) cannot be done."""
    if (quantization := getattr(config, "quantization_config", None)) is None:
        return
    if "gguf" in str(quantization).lower():
        raise ValueError(
            f"a model loaded from GGUF holds quantized blocks and cannot be {deed}; load it with"
            f" quantization_config=GgufConfig(dequantize=True), del model.config.quantization_config, and take that"
        )
    raise ValueError(f"a quantized checkpoint cannot be {deed}; dequantize it first, or take the original")


def describe_wrapper(names: Iterable[str]) -> str | None:
    """Say how weights were saved whose names have a wrapper's prefix; None if they have none.

    >>> describe_wrapper(["_orig_mod.model.norm.weight"]).partition(";")[0]
    "the names have the prefix '_orig_mod.': the weights were saved under torch.compile"
    """
    names = list(names)
    for prefix, advice in _WRAPPERS:
        if any(name.startswith(prefix) or f".{prefix}" in name for name in names):
            return f"the names have the prefix {prefix!r}: the weights were saved {advice}"
    if any(".base_layer." in name or ".lora_A." in name for name in names):
        return "the weights hold an adapter; call merge_and_unload() on the PeftModel, and grow what that returns"
    return None
