"""An optimizer's state, whole: gathered from the engine that divides it, and put back into one.

Without an engine, or under DDP, it is what Trainer saves, its parameters numbered. FSDP2 has it in shards; gathered,
its parameters go by their names (https://docs.pytorch.org/docs/stable/distributed.checkpoint.html). Growth takes both.
"""

from collections.abc import Mapping
from itertools import chain
from typing import Any

from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor

from hf_progressive.growth.optimizer import has_muon, parameter_groups


def whole_optimizer_state(model: nn.Module, optimizer: Any) -> dict[str, Any]:
    """Return the state of all parameters; where the model is divided, every process must call, and the first has it.

    The model is as its engine has prepared it; the optimizer may be in Accelerate's wrapper.
    """
    if not _is_divided(model):
        state: dict[str, Any] = optimizer.state_dict()
        return state
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    gathered: dict[str, Any] = get_optimizer_state_dict(model, _bare(optimizer), options=options)
    return gathered


def load_moments(model: Any, optimizer: Any, state: Mapping[str, Any]) -> None:
    """Put moments into an optimizer whose learning rate and weight decay stay as they are; every process must call.

    `state` holds all parameters, by number or by name, whichever engine it was gathered from. One that another kind of
    optimizer left is a ValueError.
    """
    moments = state["state"]
    of_muon, wants_muon = (has_muon(groups) for groups in (state["param_groups"], optimizer.param_groups))
    if of_muon is not wants_muon:
        kinds = {True: "Muon", False: "AdamW"}
        raise ValueError(
            f"the moments are {kinds[of_muon]}'s, and this run trains with {kinds[wants_muon]}; train with the same"
            " optimizer, or begin with fresh moments"
        )
    names = [*chain(*parameter_groups(model.config, muon=wants_muon))]
    if not _is_divided(model):
        if any(isinstance(key, str) for key in moments):
            moments = {number: moments[name] for number, name in enumerate(names) if name in moments}
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
        return
    if not any(isinstance(key, str) for key in moments):
        moments = {names[number]: moment for number, moment in moments.items()}
    options = StateDictOptions(full_state_dict=True)
    own = get_optimizer_state_dict(model, _bare(optimizer), options=StateDictOptions())["param_groups"]
    loaded: Any = {"state": moments, "param_groups": own}
    set_optimizer_state_dict(model, _bare(optimizer), loaded, options=options)


def _is_divided(model: nn.Module) -> bool:
    return any(isinstance(parameter.data, DTensor) for parameter in model.parameters())


def _bare(optimizer: Any) -> Any:
    return getattr(optimizer, "optimizer", optimizer)
