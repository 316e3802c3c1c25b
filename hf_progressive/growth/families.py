"""The families that can grow, by `model_type`. Adding one adds a file with its table and a line here."""

from typing import Any

from hf_progressive.growth.family import Family, WeightRule
from hf_progressive.growth.gpt2 import GPT2
from hf_progressive.growth.llama import GEMMA, GRANITE, LLAMA, MISTRAL, QWEN2, QWEN3, SMOLLM3
from hf_progressive.growth.nanochat import NANOCHAT

__all__ = ["FAMILIES", "Family", "WeightRule", "family_of"]

FAMILIES: dict[str, Family] = {
    "gpt2": GPT2,
    "llama": LLAMA,
    "mistral": MISTRAL,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "gemma": GEMMA,
    "granite": GRANITE,
    "smollm3": SMOLLM3,
    "nanochat": NANOCHAT,
}
"""Every family, by the `model_type` of its configs."""


def family_of(config: Any) -> Family:
    """Return the family of a config.

    Args:
        config: A `PreTrainedConfig`.

    Returns:
        The family.

    Raises:
        ValueError: The family is unknown, or the config has an option that growth cannot map.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise ValueError(f"model_type {config.model_type!r} cannot be grown; families known: {', '.join(FAMILIES)}")
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError("a quantized checkpoint cannot be grown; dequantize it first, or take the original")
    for name, reason in family.unsupported.items():
        if getattr(config, name, False):
            raise ValueError(f"{name}={getattr(config, name)!r} cannot be grown: {reason}; set it to False")
    return family
