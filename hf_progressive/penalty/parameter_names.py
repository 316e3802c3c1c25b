"""A parameter's name without what compilation, PEFT and engines put into it, by which W₀, Ω and U know it."""

from collections.abc import Iterable, Mapping
from typing import Any

_WRAPPER_PREFIXES = ("_orig_mod.", "module.")
_PEFT_PREFIX = "base_model.model."
_ADDED = ("_orig_mod", "base_layer", "original_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def plain_name(name: str) -> str:
    """Return the name that a parameter has in the model before `torch.compile`, PEFT, DDP or DataParallel wrapped it.

    >>> plain_name("base_model.model.h.0.attn.base_layer.weight"), plain_name("_orig_mod.h.0._orig_mod.attn.weight")
    ('h.0.attn.weight', 'h.0.attn.weight')
    >>> plain_name("base_model.model.head.modules_to_save.default.weight")
    'head.weight'
    >>> plain_name("module._orig_mod.base_model.model.h.0.attn.weight")
    'h.0.attn.weight'
    """
    inner = name
    while inner.startswith(_WRAPPER_PREFIXES):
        inner = inner.partition(".")[2]
    inner = inner.removeprefix(_PEFT_PREFIX)
    parts = [part for part in inner.split(".") if part not in _ADDED]
    if "modules_to_save" in parts:
        place = parts.index("modules_to_save")
        del parts[place : place + 2]  # with the adapter's name
    return ".".join(parts)


def own_names(parameters: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
    """Return, for each name that parameters have plainly or as they are, the one they have as they are.

    Where PEFT keeps a copy of a parameter to train it, that is the copy. Names that fit none are left out.
    """
    plain: dict[str, str] = {}
    for own, parameter in parameters.items():
        held = plain.setdefault(plain_name(own), own)
        if parameter.requires_grad and not parameters[held].requires_grad:
            plain[plain_name(own)] = own
    found = {name: name if name in parameters else plain.get(plain_name(name)) for name in names}
    return {name: own for name, own in found.items() if own is not None}
