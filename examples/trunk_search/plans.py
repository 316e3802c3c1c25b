"""The plans: which groups are trained, in the order in which they matter.

All but the last three have been measured, nearly whole: results/ has the models. Each asks one question, and holds the
runs from scratch that its trunks are compared with, or shares another plan's.
"""

from collections.abc import Callable
from typing import Any

from architectures import Family
from trunks import Group, Stage, Trunk

SEEDS = (0, 1, 2, 3)
RATES, TWO_RATES = (2e-3, 4e-3, 6e-3, 9e-3, 1.3e-2), (4e-3, 6e-3)
WIDTH_RATES = (4e-3, 6e-3, 9e-3)
FEW_SEEDS = SEEDS[:3]
BUDGETS = (0.5, 0.7, 0.85, 1.0)
GROWN: dict[str, Any] = {"moments": "grown", "rewarm": "new"}
FRESH: dict[str, Any] = {}
TWICE = ((0.3, 2, 64), (0.6, 4, 64))
"""Two layers until .3, four until .6: what most questions are asked on."""


def group(
    *smaller: tuple[float, int, int],
    family: Family = "llama",
    last: tuple[int, int] = (8, 64),
    rates: tuple[float, ...] = TWO_RATES,
    seeds: tuple[int, ...] = SEEDS,
    fractions: tuple[float, ...] = (1.0,),
    **settings: Any,
) -> Group:
    """Return a group whose trunk goes through the smaller sizes, (until, layers, width), to the last."""
    stages = (*(Stage(*stage) for stage in smaller), Stage(1, *last))
    trunk = Trunk(family=family, stages=stages, **settings)
    return Group(trunk=trunk, rates=rates, seeds=seeds, fractions=fractions)


def depth() -> list[Group]:
    """Where to grow in depth, how often and from how few layers."""
    later: dict[str, Any] = {"rates": RATES, "fractions": (0.7, 0.85, 1.0)}
    return [
        group(rates=RATES, fractions=(0.35, *BUDGETS, 1.3)),
        group(*TWICE, rates=RATES),
        group((0.4, 4, 64), **later),
        group((0.6, 4, 64), rates=RATES),
        group((0.4, 2, 64), (0.6, 4, 64), rates=RATES),
        group((0.2, 2, 64), (0.4, 4, 64), **later),
        group((0.5, 2, 64), rates=RATES),
        group((0.1, 1, 64), (0.3, 2, 64), (0.6, 4, 64), rates=RATES),
        group((0.4, 4, 64), **GROWN),
        group((0.6, 4, 64), **GROWN),
    ]


def methods() -> list[Group]:
    """How layers are added, what Adam remembers, whose rate rises again and how fast, and shorter decays."""
    short: dict[str, Any] = {"decay_fraction": 0.2}
    return [
        group(*TWICE, depth="stack"),
        group(*TWICE, depth="stack", **GROWN),
        group(*TWICE, rates=RATES, **GROWN),
        group(*TWICE, rates=RATES, depth="llama_pro"),
        group(*TWICE, depth="interleave", **GROWN),
        group(*TWICE, depth="random", **GROWN),
        group(*TWICE, rewarm_fraction=0.0, **GROWN),
        group(*TWICE, rewarm_fraction=0.03, **GROWN),
        group(*TWICE, learning_rate_by_depth=-0.25, **GROWN),
        group(*TWICE, learning_rate_by_depth=-0.5, **GROWN),
        group((0.6, 4, 64), new_rate=2.0, new_rate_fraction=0.2, **GROWN),
        group(fractions=BUDGETS, **short),
        group(*TWICE, **short, **GROWN),
        group((0.4, 2, 64), (0.8, 4, 64), **short, **GROWN),
    ]


def width() -> list[Group]:
    """Width alone, and width together with depth."""
    few: dict[str, Any] = {"rates": WIDTH_RATES, "seeds": FEW_SEEDS}
    alone, both = (0.4, 8, 48), (0.5, 4, 48)
    return [
        group(alone, **few),
        group(alone, **few, **GROWN),
        group(alone, width="split", **few),
        group(alone, width="split", **few, **GROWN),
        group(alone, width="scaled", new_scale=1.0, **few, **GROWN),
        group(alone, width="scaled", new_scale=0.5, **few, **GROWN),
        group(alone, width="scaled", new_scale=0.5, **few),
        group(alone, width="scaled", new_scale=0.25, **few, **GROWN),
        group(both, **few),
        group(both, **few, **GROWN),
        group(both, width="split", **GROWN),
        group(both, width="scaled", new_scale=0.5, **GROWN),
        group((0.3, 2, 48), (0.6, 4, 64), **GROWN),
        group((0.3, 2, 48), (0.6, 4, 48), **GROWN),
        group((0.6, 8, 48), **GROWN),
        group((0.6, 8, 48), new_rate=2.0, new_rate_fraction=0.2, **GROWN),
    ]


def gpt2() -> list[Group]:
    """The same on GPT-2."""
    return [
        group(family="gpt2", rates=(2.5e-3, *TWO_RATES, 9e-3), fractions=BUDGETS),
        group(*TWICE, family="gpt2", rates=RATES),
        group(*TWICE, family="gpt2"),
        group(*TWICE, family="gpt2", **GROWN),
        group((0.5, 4, 48), family="gpt2", **GROWN),
    ]


def tokens() -> list[Group]:
    """20 tokens per parameter."""
    more: dict[str, Any] = {"tokens_per_parameter": 20.0}
    return [
        group(fractions=BUDGETS, **more),
        group(*TWICE, **more, **GROWN),
        group((0.5, 4, 48), **more, **GROWN),
        group((0.4, 4, 64), **more, **GROWN),
        group(family="gpt2", fractions=BUDGETS, **more),
        group(*TWICE, family="gpt2", **more, **GROWN),
    ]


DEEP = ((0.2, 2, 96), (0.4, 4, 96), (0.6, 8, 96))
"""On the way to sixteen layers."""
LARGER: dict[str, Any] = {"last": (16, 96), "head_dim": 16, "batch": 16}
"""Two million parameters, and twice the tokens in a step."""


def size() -> list[Group]:
    """Two million parameters in sixteen layers: Llama at 12 tokens per parameter."""
    larger: dict[str, Any] = LARGER | {"rates": (3e-3, 5e-3, 8e-3), "seeds": FEW_SEEDS}
    return [
        group(*DEEP, depth="stack", **larger),
        group(fractions=(0.8, 1.0, 1.2), **larger),
    ]


def size_gpt2() -> list[Group]:
    """The same on GPT-2 at 20."""
    larger: dict[str, Any] = LARGER | {"rates": (3e-3, 5e-3, 8e-3), "family": "gpt2", "tokens_per_parameter": 20.0}
    return [
        group(*DEEP, depth="stack", **larger),
        group(fractions=(0.7, 0.85, 1.0), **larger),
    ]


def size_more() -> list[Group]:
    """What `size` and `size_gpt2` leave open: rates beyond their edges, and other ways of GPT-2 to grow."""
    gpt2: dict[str, Any] = LARGER | {"rates": (5e-3, 8e-3), "family": "gpt2", "tokens_per_parameter": 20.0}
    llama: dict[str, Any] = LARGER | {"rates": (1.5e-3, 2e-3), "seeds": FEW_SEEDS}
    return [
        group(fractions=(0.8, 1.0, 1.2), **llama),
        group(*DEEP, depth="stack", **llama),
        group(*DEEP, depth="stack", **gpt2 | {"rates": (1.2e-2, 1.8e-2)}),
        group(*DEEP, depth="stack", **gpt2, **GROWN),
        group((0.3, 4, 96), (0.6, 8, 96), depth="stack", **gpt2),
        group(*DEEP, **gpt2, **GROWN),
    ]


def size_4m() -> list[Group]:
    """Three to four million parameters: width 128, Llama at 12."""
    larger: dict[str, Any] = LARGER | {"last": (16, 128), "rates": (3e-3, 5e-3), "seeds": FEW_SEEDS}
    return [
        group((0.2, 2, 128), (0.4, 4, 128), (0.6, 8, 128), depth="stack", **larger),
        group(fractions=(0.8, 1.0, 1.2), **larger),
    ]


def tiny() -> list[Group]:
    """A few seconds on a CPU; proves that it works and measures nothing."""
    toy: dict[str, Any] = {
        "last": (2, 24), "batch": 2, "tokens_per_parameter": 0.2, "rates": (2e-3, 4e-3), "seeds": (0, 1),
    }  # fmt: skip
    return [
        group(fractions=(0.5, 1.0), **toy),
        group((0.4, 1, 24), fractions=(0.7, 1.0), depth="stack", **toy),
        group((0.4, 1, 16), width="scaled", new_scale=0.5, new_rate=2.0, **toy, **GROWN),
    ]


PLANS: dict[str, Callable[[], list[Group]]] = {
    "depth": depth,
    "methods": methods,
    "width": width,
    "gpt2": gpt2,
    "tokens": tokens,
    "size": size,
    "size_gpt2": size_gpt2,
    "size_more": size_more,
    "size_4m": size_4m,
    "tiny": tiny,
}
"""By the name that the command line takes."""
