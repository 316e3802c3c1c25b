"""Numbers of a config by which the stock class divides: with 0 in their place no logit is finite.

Looked up in the stock classes and in `modeling_rope_utils` of Transformers, which check them not at all, or warn.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

from hf_progressive.config.ranges import shown

_HOLDS: dict[str, Callable[[float], bool]] = {
    "above 0": lambda number: number > 0,
    "above 0, and not 1": lambda number: number > 0 and number != 1,
    "other than 0": lambda number: number != 0,
    "of 0 or more": lambda number: number >= 0,
}
_FIELDS = {
    "logits_scaling": "other than 0",
    "final_logit_softcapping": "other than 0",
    "attn_logit_softcapping": "other than 0",
    "attention_multiplier": "above 0",  # in torch's fused attention, times the −∞ of what is masked
    "query_pre_attn_scalar": "above 0",  # to the power of −1/2
}
_EPSILONS = ("norm_eps", "norm_epsilon")  # endings; the root of the variance and this is divided by
_ROTATIONS = {
    "linear": {"factor": "other than 0"},
    "proportional": {"factor": "other than 0"},
    "llama3": dict.fromkeys(("factor", "low_freq_factor", "high_freq_factor"), "other than 0"),
    "yarn": {
        "rope_theta": "above 0, and not 1",  # its logarithm
        "factor": "other than 0",
        "original_max_position_embeddings": "above 0",
    },
    "longrope": {
        "short_factor": "other than 0",
        "long_factor": "other than 0",
        "original_max_position_embeddings": "above 0",
    },
}


def unusable_value(config: Any) -> str | None:
    """Name the first number of a config with which no logit is finite, and what would be right; None if all will do.

    >>> from transformers import GraniteConfig
    >>> unusable_value(GraniteConfig(logits_scaling=0))
    'logits_scaling: expected a finite number other than 0, got 0; with it no logit is finite'
    """
    for name, value, wanted in _limited(config):
        for number in value if isinstance(value, list | tuple) else [value]:
            if isinstance(number, int | float) and not (abs(number) < math.inf and _HOLDS[wanted](number)):
                return f"{name}: expected a finite number {wanted}, got {shown(number)}; with it no logit is finite"
    return None


# Names, values and what they have to be.
def _limited(config: Any) -> Iterator[tuple[str, Any, str]]:
    for name in (entry.name for entry in fields(config)):
        wanted = "of 0 or more" if name.endswith(_EPSILONS) else _FIELDS.get(name)
        if wanted:
            yield name, getattr(config, name), wanted
    rotations = getattr(config, "rope_parameters", None)
    if not isinstance(rotations, dict) or getattr(config, "alibi", False):
        return
    for layers, rope in [("", rotations)] if "rope_type" in rotations else rotations.items():
        if isinstance(rope, dict):
            of_layers = f" of {layers}" if layers else ""
            for name, wanted in {"rope_theta": "above 0", **_ROTATIONS.get(rope.get("rope_type", ""), {})}.items():
                yield f"{name}{of_layers} (in rope_parameters)", rope.get(name), wanted
