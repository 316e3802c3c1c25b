"""Training a part of a grown model: its new layers, its new entries, or what patterns name; the rest keeps its bits.

LLaMA Pro (arXiv 2401.02415) trains the new layers alone, so that a model learns a domain and forgets nothing else.
"""

import os
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback

from hf_progressive.distributed.model_in_memory import require_in_memory
from hf_progressive.growth.new_entries import NewEntries, new_entries, recorded_entries
from hf_progressive.hub.names import GROWTH
from hf_progressive.penalty.shards import ParameterShard, shard_of

_WRAPPERS = ("module.", "_orig_mod.")
_NAMES_SHOWN = 4


def frozen_after_growth(
    model: PreTrainedModel, growth_json: str | os.PathLike[str], *, trainable: str | Sequence[str] = "new_layers"
) -> list[TrainerCallback]:
    """Freeze what a grown model has from its parent, for training in any Trainer.

    What is frozen keeps its bits, whatever the optimizer and its weight decay. Call it before the Trainer is built,
    whose optimizer then holds the other parameters alone:

        model = AutoModelForCausalLM.from_pretrained("grown")
        Trainer(model, args, train_dataset=blocks, callbacks=frozen_after_growth(model, "grown/growth.json"))

    Args:
        model: The grown model, of which `requires_grad` is set.
        growth_json: The record that growth wrote, or the folder it is in.
        trainable: `"new_layers"`: the parameters that inherit nothing, which are those of new layers, copies among
            them (and the routers of an upcycled model). `"new_entries"`: every entry that the parent did not have.
            A list: parameters with names that match one of its patterns, such as `"model.layers.4.*"`.

    Returns:
        Callbacks for the Trainer, without which its result is another: of `"new_entries"` one, which takes old entries
        out of gradients and puts them back after each step; otherwise none. It takes the memory of a second copy of
        the parameters that are new in part, and needs an engine that leaves the optimizer's step to Trainer (one
        process, DDP or FSDP2). Under FSDP2 old entries still count in the norm that clipping looks at.

    Raises:
        FileNotFoundError: There is no such record.
        ValueError: It is another model's, or was written before it told what is new; or nothing would be trained.

    Source: Wu et al. 2024, arXiv 2401.02415, for new layers; SPARKLING, arXiv 2602.02472, trains new entries apart.
    """
    require_in_memory(model)
    path = Path(growth_json)
    path = path / GROWTH if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; growth writes one beside the weights, so give the folder of a checkpoint that grew"
        )
    return restrict_training(model, recorded_entries(path, model.config), trainable, called="trainable")


def restrict_training(
    model: nn.Module,
    entries: Mapping[str, NewEntries],
    trainable: str | Sequence[str],
    *,
    called: str = "training.trainable",
) -> list[TrainerCallback]:
    """Freeze a model's other parameters by what a growth added; `frozen_after_growth` says more."""
    # A list's patterns are for names as they are; what is new has the names of the model before it was wrapped.
    parameters = {
        name if not isinstance(trainable, str) else _unwrapped(name): parameter
        for name, parameter in model.named_parameters()
    }
    chosen = trainable_names(list(parameters), entries, trainable, called=called)
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in chosen)
    return [TrainNewEntries(entries)] if trainable == "new_entries" else []


def restrict_run(model: nn.Module, init: Path, trainable: str | Sequence[str]) -> list[TrainerCallback]:
    """Freeze a rung's model, if it was grown: first rungs and baselines were not, and train all."""
    if trainable == "all" or not (init / GROWTH).is_file():
        return []
    return restrict_training(model, new_entries(init), trainable)


def trainable_names(
    names: Sequence[str],
    entries: Mapping[str, NewEntries],
    trainable: str | Sequence[str],
    *,
    called: str = "training.trainable",
) -> set[str]:
    """Return the names of the parameters to train; `called` is what the user calls this choice.

    Raises:
        ValueError: There are none, a pattern matches none, or a text is none of the three.
    """
    if trainable == "all":
        return set(names)
    if isinstance(trainable, str):
        if trainable not in ("new_layers", "new_entries"):
            raise ValueError(
                f"{called}: {trainable!r} is not known; take all, new_layers or new_entries, or a list of patterns"
            )
        whole = trainable == "new_layers"
        new = {name for name, entry in entries.items() if (entry.whole if whole else entry.count)}
        chosen = new & set(names)
        if not chosen:
            what = "no layer is new" if whole else "no entry is new"
            remedy = "grow it so, or train all"
            if called == "trainable" and whole and any(entries[name].count for name in entries.keys() & set(names)):
                remedy = 'take trainable="new_entries"'
            raise ValueError(f"{called}: {trainable}, but {what} in this growth; {remedy}")
        return chosen
    chosen = set()
    for pattern in trainable:
        found = {name for name in names if fnmatchcase(name, pattern)}
        if not found:
            shown = ", ".join(names[:_NAMES_SHOWN])
            raise ValueError(f"{called}: {pattern!r} matches no parameter; their names are like {shown}, …")
        chosen |= found
    if not chosen:
        raise ValueError(f"{called}: the list is empty, which freezes the whole model; name patterns, or take all")
    return chosen


def _unwrapped(name: str) -> str:
    for prefix in _WRAPPERS:
        name = name.removeprefix(prefix)
    return name


class TrainNewEntries(TrainerCallback):
    """Keep the old entries of parameters that are new in part: out of the gradients, and as they were after a step."""

    def __init__(self, entries: Mapping[str, NewEntries]) -> None:
        self._entries = entries
        self._held: list[tuple[ParameterShard, Tensor]] = []
        self._before: list[Tensor] = []
        self._hooks: list[Any] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.on_train_end(args, state, control)
        for name, parameter in kwargs["model"].named_parameters():
            name = _unwrapped(name)
            if not parameter.requires_grad or name not in self._entries:
                continue
            shard = shard_of(parameter)
            mask = self._entries[name].of_shard(shard.start, shard.length)
            if mask.all():
                continue
            mask = mask.to(shard.weights().device)
            self._held.append((shard, mask))
            if shard.is_whole:
                new = mask.view(parameter.shape)
                self._hooks.append(parameter.register_hook(lambda gradient, new=new: gradient * new))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for shard, mask in self._held:
            shard.gradient().mul_(mask)
            shard.store_gradient()
        self._before = [shard.weights().clone() for shard, _ in self._held]

    @torch.no_grad()
    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for (shard, mask), before in zip(self._held, self._before, strict=True):
            weights = shard.weights()
            weights.copy_(torch.where(mask, weights, before))
        self._before = []

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        self._held, self._before, self._hooks = [], [], []
