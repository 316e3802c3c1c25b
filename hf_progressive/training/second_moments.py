"""Adam's second moments by parameter name, from an optimizer at work or from what a training left on disk."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import AutoConfig

from hf_progressive import storage
from hf_progressive.growth.grow import OPTIMIZER_NAME
from hf_progressive.growth.optimizer import (
    entries_by_name,
    groups_of_model,
    has_muon,
    parameter_groups,
    read_optimizer_state,
)

_GATHERED_NAME = "optimizer.bin"
"""What FSDP saves an optimizer's whole state as."""
_STATE_NAME = "trainer_state.json"
_PARTS_OF_ADAM = {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"}
_PARTS_OF_MUON = {"momentum_buffer"}


@dataclass(frozen=True, kw_only=True)
class SecondMoment:
    """The running mean of a parameter's squared gradients, as Adam keeps it."""

    average: Tensor
    """`exp_avg_sq`, before bias correction."""

    steps: float
    """Optimizer steps that went into it."""

    beta: float
    """β₂, its decay rate per step."""

    @property
    def weight(self) -> float:
        """The sum of the squared gradients' weights in the average, 1 − β₂ᵗ; 0 before the first step."""
        return float(1.0 - self.beta**self.steps)


@dataclass(frozen=True, kw_only=True)
class SecondMoments:
    """What an optimizer keeps of a model's squared gradients."""

    moments: Mapping[str, SecondMoment]
    """By parameter name."""

    missing: Sequence[str] = ()
    """Parameters that it trains without a second moment: Muon's matrices, and what has had no gradient."""

    gradient_norms: Mapping[int, float] = field(default_factory=dict)
    """The whole gradient's norm before clipping by step, where training logged it."""


def read_second_moments(source: Optimizer | str | os.PathLike[str], model: nn.Module | None) -> SecondMoments:
    """Read Adam's second moments; for arguments and errors see `fisher_from_optimizer`."""
    if isinstance(source, str | os.PathLike):
        return _of_file(Path(source), model)
    if model is None:
        raise ValueError("an optimizer knows its parameters by no name; pass the model that it trains")
    return _of_optimizer(getattr(source, "optimizer", source), model)


def _of_optimizer(optimizer: Any, model: nn.Module) -> SecondMoments:
    # Accelerate's wrapper is taken off already. Under FSDP2 parameters and state are DTensors.
    groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter in groups}
    if not trained:
        raise ValueError(
            "the optimizer holds none of the model's parameters; pass the model as its engine has prepared it"
            " (trainer.model), and mind that DeepSpeed and FSDP 1 hand flattened copies to the optimizer"
        )
    return _collected(
        {name: (optimizer.state.get(parameter, {}), groups[parameter]) for name, parameter in trained.items()}
    )


def _of_file(path: Path, model: nn.Module | None) -> SecondMoments:
    file = _state_file(path)
    state = read_optimizer_state(file)
    muon = has_muon(state["param_groups"])
    if model is not None:
        groups = groups_of_model(model, muon=muon)
    elif (file.parent / "config.json").is_file():
        groups = parameter_groups(AutoConfig.from_pretrained(file.parent), muon=muon)
    else:
        raise ValueError(f"{file.parent}: has no config.json to name the parameters by; pass the model")
    entries = entries_by_name(state, groups)
    settings = {name: group for names, group in zip(groups, state["param_groups"], strict=True) for name in names}
    collected = _collected({name: (entry, settings[name]) for name, entry in entries.items()})
    return SecondMoments(
        moments=collected.moments, missing=collected.missing, gradient_norms=_logged_norms(file.parent / _STATE_NAME)
    )


def _state_file(path: Path) -> Path:
    # The optimizer's state itself, or that of a checkpoint.
    if path.is_file():
        return path
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder; name a checkpoint's folder or its {OPTIMIZER_NAME}")
    for name in (OPTIMIZER_NAME, _GATHERED_NAME):
        if (path / name).is_file():
            return path / name
    if (path / "optimizer_0").is_dir():
        hint = "holds the optimizer's state in FSDP's shards; save it with FULL_STATE_DICT"
    elif (path / "latest").is_file() or any(path.glob("global_step*")):
        hint = "holds the optimizer's state in DeepSpeed's flattened parts, which carry no names"
    else:
        raise FileNotFoundError(f"{path}: holds no {OPTIMIZER_NAME}; name a checkpoint that Trainer saved to resume")
    raise ValueError(f"{path}: {hint}; or pass the optimizer in the run that has it, or estimate_fisher's result")


def _logged_norms(file: Path) -> dict[int, float]:
    if not file.is_file():
        return {}
    with storage.ReadingFromOutside(str(file), "copy it again from where Trainer saved it"):
        return gradient_norms(storage.read_json(file).get("log_history", ()))


def gradient_norms(log: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """Return the gradient's norm before clipping by step, from what a trainer logged."""
    return {int(entry["step"]): float(entry["grad_norm"]) for entry in log if entry.get("grad_norm") is not None}


def _collected(entries: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]]) -> SecondMoments:
    moments, missing = {}, []
    for name, (entry, group) in entries.items():
        _require_adam(name, entry, group)
        if "exp_avg_sq" in entry:
            steps, beta = float(entry["step"]), float(group["betas"][1])
            moments[name] = SecondMoment(average=entry["exp_avg_sq"], steps=steps, beta=beta)
        else:
            missing.append(name)
    return SecondMoments(moments=moments, missing=missing)


def _require_adam(name: str, entry: Mapping[str, Any], group: Mapping[str, Any]) -> None:
    known = _PARTS_OF_MUON if group.get("use_muon") else _PARTS_OF_ADAM
    unknown = sorted(str(key) for key in entry if key not in known)
    average = entry.get("exp_avg_sq")
    if unknown or (average is not None and ("betas" not in group or not average.dtype.is_floating_point)):
        keeps = ", ".join(unknown) or f"a second moment in {getattr(average, 'dtype', None)}"
        raise ValueError(
            f"the optimizer keeps {keeps} of {name}; Ω can be read from Adam's or AdamW's own state, not from an"
            " 8-bit, factored or other optimizer's: take estimate_fisher"
        )
