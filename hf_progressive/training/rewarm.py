"""A warm-up for the entries alone that a growth added, while those that were inherited learn at the full rate.

An optimizer has one rate for a whole tensor. So it steps at the full rate, and of the step of a new entry a share is
then taken: w := w_before + s·(w_after − w_before). For optimizers whose step is proportional to the rate, as AdamW's
and Muon's with their decoupled weight decay are, this is the step at s times the rate. Source: SPARKLING,
arXiv 2602.02472, which re-warms the new channels only.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from hf_progressive.growth.new_entries import new_entries
from hf_progressive.penalty.shards import ParameterShard, shard_of


class RewarmNewEntries(TrainerCallback):
    """Let new entries take the share of each step that the stock scheduler's linear warm-up would give them.

    It needs an engine that leaves the optimizer's step to Trainer: one process, DDP or FSDP2. Nothing is read from the
    device, and nothing is held once the warm-up is over.

    Args:
        model: Returns the model as its engine has prepared it.
        init: The initial checkpoint, whose growth.json tells which entries are new.
        steps: Length of the warm-up.
        floor: The share at the first step.
    """

    def __init__(self, model: Callable[[], nn.Module], init: Path, *, steps: int, floor: float = 0.0) -> None:
        self._model, self._init, self._steps, self._floor = model, init, steps, floor
        self._slowed: list[tuple[ParameterShard, Tensor | None]] = []  # with masks; None where all entries are new
        self._before: list[Tensor] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._slowed, self._before = [], []
        if state.global_step >= self._steps:
            return
        entries = new_entries(self._init)
        for name, parameter in self._model().named_parameters():
            shard = shard_of(parameter)
            mask = entries[name].of_shard(shard.start, shard.length)
            if mask.any():
                self._slowed.append((shard, None if mask.all() else mask.to(shard.weights().device)))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= self._steps:
            self._slowed = []
        self._before = [shard.weights().clone() for shard, _ in self._slowed]

    @torch.no_grad()
    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        share = self._floor + (1 - self._floor) * state.global_step / self._steps
        for (shard, mask), before in zip(self._slowed, self._before, strict=True):
            weights = shard.weights()
            slowed = before.lerp(weights, share)
            weights.copy_(slowed if mask is None else torch.where(mask, slowed, weights))
        self._before = []
