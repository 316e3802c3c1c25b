"""Adam's moments, and Muon's momentum, through the plan of a growth, so that training can go on with them.

A gradient of the child equals the parent's, scaled as the plan says, on every inherited entry (equation 1 of
`hf_progressive.growth.operators`); averages of gradients and of their squares scale with it, and the moments
are those that the child would have had. Where growth unties the embeddings, the two matrices that were one have the
moments of both uses, and each will have the gradients of its own alone. Two more exceptions concern what writes a
*widened* residual stream, whose gradients come through a norm: with LayerNorm and new channels they differ by a
constant over the channels, which the norm does not see; with copies of channels that are read in uneven shares
(`split`, `uneven`) by what the norm's backward pass takes off all copies alike. Every copy of a unit carries the
unit's moments, scaled like its gradient by the share it is read by. So does every copy of an expert: of m that are
chosen alike each has 1/m of the gradient, which is the mean over what a router that was drawn anew may choose. Where
growth changes the function (`shrink`, `perturb`, `new_scale`, `drop`) the child's gradients are others, and moments
map as if it did not. Muon trains no experts: dense matrices that it trained become experts of AdamW's, which starts
with them anew.

**New entries.** A tensor that inherits nothing (a new layer, a mere copy of one) starts at step 0, as in a new
optimizer: bias correction makes its first updates lr · sign. New entries of an inherited tensor share its step t, at
which bias correction is over; with both moments at zero, a gradient g in each of n steps moves them by

    lr · (1 − β₁ⁿ) / √(1 − β₂ⁿ)

in the n-th: with β = (0.9, 0.999) by 3.2 lr at first and by 6.6 lr at the most, in the 12th step; with (0.9, 0.95) by
0.45 lr and 1.1 lr. So `new_moments: zero` is harmless at β₂ = 0.95, and makes the steps of new entries several times
too long at 0.999. `mean` sets their second moment to the mean over the tensor's inherited entries: the first update is
(1 − β₁) · lr · g/√mean, and they move as entries with gradients of a usual size do.
"""

import os
import pickle
from collections.abc import Mapping, Sequence
from copy import deepcopy
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Trainer

from hf_progressive.growth.growth_plan import GrowthPlan
from hf_progressive.growth.hidden_matrices import hidden_matrices
from hf_progressive.growth.tensor_plan import TensorPlan

_POWERS = {"exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2, "momentum_buffer": 1}
"""Adam's moments, Muon's momentum, and the power of the gradient that each averages."""


_OF_A_DAMAGED_PICKLE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError)


def read_optimizer_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read an optimizer's state dict, such as Trainer's `optimizer.pt`, without running code that the file may carry.

    The tensors are mapped from the file and not yet in memory. What is no such state is a ValueError.
    """
    if Path(path).is_dir():
        raise IsADirectoryError(f"{path}: is a folder; give the optimizer.pt in it")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file; Trainer calls it optimizer.pt") from None
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path}: not a readable optimizer state (it holds other things than tensors and numbers, or is damaged);"
            " take Trainer's optimizer.pt"
        ) from None
    except (RuntimeError, EOFError, *_OF_A_DAMAGED_PICKLE) as error:
        reason = str(error).splitlines()[0] if str(error) else "truncated"
        raise ValueError(f"{path}: not a readable optimizer state ({reason}); take Trainer's optimizer.pt") from None
    if not isinstance(state, dict) or not {"state", "param_groups"} <= set(state):
        raise ValueError(f"{path}: has no 'state' and 'param_groups'; take Trainer's optimizer.pt")
    return state


def grow_optimizer_state(state: Mapping[str, Any], plan: GrowthPlan) -> dict[str, Any]:
    """Grow the state of Adam, AdamW, or Muon beside AdamW along the plan that grew the weights.

    Args:
        state: The parent's `state_dict()`. Its parameters may be numbered, as `torch.optim` and Trainer number them,
            or named, as `torch.distributed.checkpoint.state_dict.get_optimizer_state_dict` with
            `StateDictOptions(full_state_dict=True)` gathers them from FSDP.
        plan: The plan that grew the weights.

    Returns:
        The child's state in the same form, its parameters grouped and ordered as Trainer does. Moments are scaled as
        gradients are; `step` is kept, and starts at 0 for what inherits nothing. On new entries moments are zero, but
        the second one is the mean of the inherited ones under the option `new_moments: mean`.

    Raises:
        ValueError: The groups are not those Trainer builds for the parent, or the state is of another optimizer.
    """
    with_muon = has_muon(state["param_groups"])
    parents, children = (parameter_groups(c, muon=with_muon) for c in (plan.source_config, plan.target_config))
    entries = entries_by_name(state, parents)
    _require_known(entries, parents[2] if with_muon else [])
    # What an entry holds depends on the group: Muon's is the third.
    examples = {
        name: next((entries[other] for other in members if entries[other]), {})
        for members, grown in zip(_by_optimizer(parents), _by_optimizer(children), strict=True)
        for name in grown
    }
    tensors = {tensor.name: tensor for tensor in plan.tensors}
    names = [*chain(*children)]
    of_muon = [{*chain(*groups[2:])} for groups in (parents, children)]
    named = any(isinstance(key, str) for key in state["state"])
    keys = {name: name if named else index for index, name in enumerate(names)}
    grown = {}
    for name in names:
        tensor = tensors[name]
        # Experts are AdamW's, also where Muon trained the dense matrices that they come from.
        if tensor.heir and (tensor.sources[0] in of_muon[0]) == (name in of_muon[1]):
            entry = _grown_entry(plan, tensor, [entries[source] for source in tensor.sources])
        else:
            entry = _new_entry(tensor, examples[name])
        if entry:
            grown[keys[name]] = entry
    groups = [
        {**group, "params": [keys[name] for name in members]}
        for group, members in zip(state["param_groups"], children, strict=True)
    ]
    return {**state, "state": grown, "param_groups": groups}


def has_muon(groups: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether one of an optimizer's groups is Muon's (`hf_progressive.training.muon`)."""
    return any(group.get("use_muon") for group in groups)


def parameter_groups(config: Any, *, muon: bool = False) -> tuple[list[str], ...]:
    """Name a model's parameters as Trainer's optimizer orders them: those with weight decay, those without.

    With Muon, what it trains is left out of these two and is the third.
    """
    with torch.device("meta"):
        return groups_of_model(AutoModelForCausalLM.from_config(config), muon=muon)


def groups_of_model(model: Any, *, muon: bool = False) -> tuple[list[str], ...]:
    """Name a model's trainable parameters as Trainer's optimizer orders them; see `parameter_groups`."""
    # A method of Trainer that does not look at the instance; asking it keeps in step with the installed version.
    decayed = set(Trainer.get_decay_parameter_names(None, model))
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    matrices = [name for name in hidden_matrices(model) if name in set(trained)] if muon else []
    names = [name for name in trained if name not in set(matrices)]
    groups = [name for name in names if name in decayed], [name for name in names if name not in decayed]
    return (*groups, matrices) if muon else groups


def _by_optimizer(groups: tuple[list[str], ...]) -> tuple[list[str], list[str]]:
    # Adam's, then Muon's.
    return [*groups[0], *groups[1]], [*chain(*groups[2:])]


def entries_by_name(state: Mapping[str, Any], groups: tuple[list[str], ...]) -> dict[str, dict[str, Any]]:
    """Return what an optimizer's state dict keeps of each parameter, whether it numbers or names them.

    A state whose groups are not those of Trainer is a ValueError.
    """
    found = [group["params"] for group in state["param_groups"]]
    if any(isinstance(key, str) for keys in found for key in keys):
        fits = [set(keys) for keys in found] == [set(names) for names in groups]
        names_of = {name: name for names in groups for name in names}
    else:
        fits = [len(keys) for keys in found] == [len(names) for names in groups]
        pairs = zip(found, groups, strict=False)
        names_of = {name: key for keys, names in pairs for key, name in zip(keys, names, strict=False)}
    if not fits:
        raise ValueError(
            f"the optimizer's groups hold {[len(keys) for keys in found]} parameters, Trainer's for this model hold"
            f" {[len(names) for names in groups]}; take the state that Trainer saved for all parameters of the parent"
        )
    return {name: state["state"].get(key, {}) for name, key in names_of.items()}


def _require_known(entries: Mapping[str, Mapping[str, Any]], of_muon: Sequence[str]) -> None:
    for name, entry in entries.items():
        known = {"momentum_buffer"} if name in set(of_muon) else {"step", *_POWERS} - {"momentum_buffer"}
        if unknown := [key for key in entry if key not in known]:
            raise ValueError(
                f"the optimizer keeps {', '.join(unknown)}; only the state of Adam, AdamW and Muon can grow"
            )


def _grown_entry(plan: GrowthPlan, tensor: TensorPlan, parents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    # The step is copied: an optimizer counts it up in place and takes the loaded tensor for its own.
    grown = {
        name: deepcopy(value)
        if name == "step"
        else tensor.carry(*(entry[name] for entry in parents), power=_POWERS[name])
        for name, value in parents[0].items()
    }
    if plan.options.new_moments == "mean" and not tensor.is_copy:
        inherited = tensor.inherited()
        for name in grown.keys() & _POWERS.keys():
            if _POWERS[name] == 2:
                grown[name].masked_fill_(~inherited, grown[name][inherited].mean())
    return grown


def _new_entry(tensor: TensorPlan, example: Mapping[str, Any]) -> dict[str, Any]:
    zeros: dict[str, Any] = {name: example[name].new_zeros(tensor.shape) for name in _POWERS if name in example}
    return {**({"step": example["step"] * 0} if "step" in example else {}), **zeros}
