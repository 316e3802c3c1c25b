"""The options of `hf-progressive grow`: methods by the names people know, and a flag for all that they leave open."""

import argparse
from collections.abc import Callable
from typing import Any

from hf_progressive.config import strict_yaml

METHODS_HELP = """\
growth methods (--method), whether they keep the function, and their papers:
  exact               yes: new units and layers are silent at first (LEMON, arXiv 2310.07999)
  identity            yes: exact by another name, new layers compute the identity (2310.07999)
  tile                yes: whole multiples by copying every unit (HyperCloning, 2409.12903)
  split               yes: copies read in uneven shares (Net2Net, 1511.05641)
  llama-pro           yes: a silent copy after each group of layers (LLaMA Pro, 2401.02415)
  upcycle             yes: a dense model's MLPs become experts (2212.05055); --drop: no (2502.19261)
  stack               no: the whole stack on top of itself (G_stack, 2405.15319)
  interleave          no: every layer repeated in place (1710.10348, which has --repeats shared)
  solar               no: upper layers on lower ones, the middle twice (SOLAR, 2312.15166)
  shrink-pad-perturb  no: old weights shrunk, zeros, noise on all (2605.13405)
  pad, random         no: what the others are compared with
"""
"""The methods, for a reader of `grow --help`."""

OPTION_HELP = {
    "depth_position": "where silent layers go: append, spread, or the parent's layers after which to put one each",
    "new_layers": "silent layers copy a neighbour, or are drawn: copy (default) or fresh",
    "depth_method": "a depth rule for any method: insert, llama-pro, stack, interleave or solar",
    "repeats": "what repeated layers add: whole (default), or shared, a k-th each of what the one did",
    "init_std": "standard deviation of free new entries and of fresh layers",
    "free_scale": "the same as a share of their matrix's RMS",
    "new_scale": "standard deviation of new entries that exactness fixes; above 0 the function changes",
    "noise": "symmetry-breaking noise among copies, zero in sum; upcycle: on all experts, and the function changes",
    "drop": "upcycle: share of each expert's units that are drawn anew; above 0 the function changes",
    "uneven": "how unevenly copies are read: 0 even, below 1",
    "shrink": "factor of every old matrix; the function changes",
    "perturb": "noise on every matrix; the function changes",
    "new_moments": "Adam's second moment on new entries: zero (default) or mean",
    "vocab_multiple": "pad the vocabulary to a multiple of this",
}
"""Every option of a method, and what it chooses."""


def add_option_flags(add: Callable[..., Any]) -> None:
    """Add a flag per option of a method; `option_values` reads them."""
    for name, text in OPTION_HELP.items():
        flag = "--" + name.replace("_", "-")
        add(flag, dest=_dest(name), nargs="+" if name == "depth_position" else None, metavar="VALUE", help=text)


def option_values(options: argparse.Namespace) -> dict[str, Any]:
    """Return the method's options from `--option` and from the flags, as YAML reads the values.

    Raises:
        ValueError: An option is given both ways.
    """
    values = strict_yaml.apply_overrides({}, options.option)
    for name in OPTION_HELP:
        given = getattr(options, _dest(name))
        if given is None:
            continue
        if name in values:
            raise ValueError(f"{name}: is given as --{name.replace('_', '-')} and as --option; leave one out")
        if isinstance(given, list):
            is_word = len(given) == 1 and not given[0].lstrip("-").isdigit()
            given = given[0] if is_word else f"[{', '.join(given)}]"
        values |= strict_yaml.apply_overrides({}, [f"{name}={given}"])
    return values


def _dest(name: str) -> str:
    return f"option_{name}"
