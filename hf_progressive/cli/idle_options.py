"""What someone asked of a growth that changed nothing there: who gives an option means something by it."""

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

_OF_UNITS = ("width", "heads", "kv_heads", "mlp", "expert_mlp", "shared_mlp")
_OF_NEW_LAYERS = ("depth_position", "new_layers", "depth_method", "repeats")


def idle_options(options: argparse.Namespace, of_method: Mapping[str, Any], plan: Mapping[str, Any]) -> Iterator[str]:
    """Say which options of `grow` had no effect, and why; a line each.

    Args:
        options: As they were parsed.
        of_method: Those of the method that were given.
        plan: What growth.json says of the plan.
    """
    sizes = plan["sizes"]
    if sizes["layers"][0] == sizes["layers"][1]:
        yield from _told([name for name in _OF_NEW_LAYERS if name in of_method], "no layer is new")
    if not _has_copies(plan["method"], sizes):
        yield from _told(
            [name for name in ("noise", "uneven") if of_method.get(name)], "nothing is copied side by side"
        )
    if options.optimizer is None:
        yield from _told([name for name in ("new_moments",) if name in of_method], "no --optimizer is given")
    if options.text is not None and sizes["vocab"][0] == sizes["vocab"][1]:
        yield from _told(["text"], "no token is new, whose cost it would measure")


def _has_copies(method: str, sizes: Mapping[str, Any]) -> bool:
    from hf_progressive.growth.methods import METHODS
    from hf_progressive.growth.units import append_units

    def grew(*names: str) -> bool:
        return any(sizes[name][0] < sizes[name][1] for name in names if name in sizes)

    chosen = METHODS[method]
    return chosen.upcycles or grew("experts") or (chosen.width is not append_units and grew(*_OF_UNITS))


def _told(names: list[str], reason: str) -> Iterator[str]:
    if names:
        yield f"without effect: {', '.join('--' + name.replace('_', '-') for name in names)}; {reason}"
