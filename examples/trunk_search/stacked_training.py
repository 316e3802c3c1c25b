"""Training steps of many models at once: AdamW and clipping for each, one recorded graph for all on a GPU."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from architectures import Parts, Table
from network import Network
from torch import Tensor
from trunks import WARMUP_FRACTION, Group

BETAS = (0.9, 0.95)
ADAM_EPS = 1e-8
WEIGHT_DECAY = 0.1  # of matrices
CLIP_NORM = 1.0
CLIP_EPS = 1e-6  # as torch.nn.utils.clip_grad_norm_
COLUMNS = 4
STEPS_AT_ONCE = 50
WARMUP_STEPS = 3  # before a graph is recorded: they compile


class Reading(NamedTuple):
    """What the models read: stored blocks, each seed in an order of its own."""

    blocks: Tensor
    """(blocks, context), 16-bit integers."""

    orders: Tensor
    """(different seeds, blocks read)."""

    seed_rows: Tensor
    """(R,): which order a model reads in."""


def step_table(
    group: Group, stage: int, first: int, last: int, *, finished_at: int | None, decay_steps: int, grown_at: int | None
) -> Tensor:
    """Return what the steps from `first` to before `last` need, (steps, R, 4).

    The rate of inherited entries, that of new ones, and the two corrections of Adam's biases, 1/(1 − β₁ⁿ) and
    1/√(1 − β₂ⁿ). Moments that were grown have none left.

    Args:
        group: The group.
        stage: The stage, from 0.
        first: The first step.
        last: The step after the last.
        finished_at: The step at which the rate is 0; None keeps it constant.
        decay_steps: Over how many steps it falls until then.
        grown_at: The first step after the last growth; None before any.
    """
    trunk = group.trunk
    steps = np.arange(first, last, dtype=np.float64)[:, None]
    peaks = np.array([rate for _, rate in group.models])[None]
    relative_depth = trunk.stages[stage].layers / trunk.stages[-1].layers
    rate = peaks * relative_depth**trunk.learning_rate_by_depth * np.ones_like(steps)
    if finished_at is not None:
        rate = rate * np.minimum(1.0, (finished_at - steps) / decay_steps)
    if grown_at is None:
        inherited = new = rate * np.minimum(1.0, (steps + 1) / max(1, round(WARMUP_FRACTION * trunk.steps)))
        taken = steps + 1
    else:
        since = steps - grown_at
        rising = np.minimum(1.0, (since + 1) / max(1, round(trunk.rewarm_fraction * trunk.steps)))
        inherited = rate * (1.0 if trunk.rewarm == "new" else rising)
        young = since < trunk.new_rate_fraction * trunk.steps
        new = rate * rising * np.where(young, trunk.new_rate, 1.0)
        taken = since + 1 if trunk.moments == "fresh" else np.full_like(steps, np.inf)
    corrections = [1 / (1 - BETAS[0] ** taken), 1 / np.sqrt(1 - BETAS[1] ** taken)]
    columns = [inherited, new, *(np.broadcast_to(column, rate.shape) for column in corrections)]
    return torch.tensor(np.stack(columns, -1), dtype=torch.float32)


def adamw(
    weights: Tensor, mean: Tensor, square: Tensor, gradient: Tensor, row: Tensor, decay: Tensor, new: Tensor,
    clip: Tensor, separate: bool,
) -> None:  # fmt: skip
    """Take one step in place. All (…, R, entries); row: (R, 4), clip: (R, 1), decay and new: (…, 1, entries)."""
    gradient = gradient * clip
    mean.lerp_(gradient, 1 - BETAS[0])
    square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
    rate = row[..., 0:1]
    if separate:
        rate = rate + new * (row[..., 1:2] - rate)
    step = row[..., 2:3] * mean / (square.sqrt() * row[..., 3:4] + ADAM_EPS)
    weights.mul_(1 - rate * decay).sub_(rate * step)


class StackedTraining:
    """The models of a group at one size: weights, Adam's state, and the step, recorded once on a GPU.

    Args:
        network: The size.
        weights: Where the models are; they are trained in place.
        reading: What they read.
        batch: Sequences per step.
        longest: The most steps that a table may have.
    """

    def __init__(self, network: Network, weights: Parts, reading: Reading, *, batch: int, longest: int) -> None:
        device, models = network.device, weights.top.shape[0]
        self.network, self.reading, self.batch = network, reading, batch
        self.weights = Parts(*(part.contiguous() for part in weights))
        self.first_moments = Parts(*(torch.zeros_like(part) for part in self.weights))
        self.second_moments = Parts(*(torch.zeros_like(part) for part in self.weights))
        architecture = network.architecture
        self.decay = Parts(_decayed(architecture.top, device)[None], _decayed(architecture.layer, device)[None, None])
        self.new = Parts(*(torch.zeros_like(part) for part in self.decay))  # 1 where the last growth added an entry
        self.separate_rates = False
        self.table = torch.zeros(longest, models, COLUMNS, device=device)
        self.row = torch.zeros(1, dtype=torch.long, device=device)
        self.step = torch.zeros(1, dtype=torch.long, device=device)
        self.sequences = torch.arange(batch, device=device)
        self.graph: torch.cuda.CUDAGraph | None = None

    def take_step(self) -> None:
        """Take the step that stands next in the table; nothing is read from the device."""
        blocks, orders, seed_rows = self.reading
        ids = blocks[orders[:, self.step * self.batch + self.sequences]][seed_rows].long()  # (R, batch, context)
        with torch.enable_grad():
            leaves = Parts(*(part.detach().requires_grad_() for part in self.weights))
            gradients = torch.autograd.grad(self.network.loss(leaves, ids), leaves)
        with torch.no_grad():
            norms = (gradients[0].square().sum(1) + gradients[1].square().sum((0, 2))).sqrt()
            clip = (CLIP_NORM / (norms + CLIP_EPS)).clamp(max=1.0)[:, None]
            row = self.table.index_select(0, self.row)[0]
            update = self.network.execution.of(adamw, dynamic=True)
            states = (self.weights, self.first_moments, self.second_moments, gradients, self.decay, self.new)
            for weights, mean, square, gradient, decay, new in zip(*states, strict=True):
                update(weights, mean, square, gradient, row, decay, new, clip, self.separate_rates)
            self.row += 1
            self.step += 1

    def _state(self) -> list[Tensor]:
        return [*self.weights, *self.first_moments, *self.second_moments, self.step]

    def saved(self) -> list[Tensor]:
        """Return a copy of the state, to which `restore` goes back."""
        return [tensor.clone() for tensor in self._state()]

    def restore(self, saved: list[Tensor]) -> None:
        for tensor, value in zip(self._state(), saved, strict=True):
            tensor.copy_(value)

    def record(self) -> None:
        """Record the step as a graph, if this is a GPU; the state stays as it is."""
        if self.network.device.type != "cuda":
            return
        saved = self.saved()
        for _ in range(WARMUP_STEPS):
            self.take_step()
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        # On the group's own stream: cuBLAS has one workspace per stream, and several groups' graphs run side by side.
        with torch.cuda.graph(self.graph, None, torch.cuda.current_stream(), "thread_local"):
            self.take_step()
        self.restore(saved)
        torch.cuda.synchronize()

    def run(self, table: Tensor) -> Iterator[None]:
        """Take a table's steps, pausing now and then so that other groups can queue theirs."""
        self.table[: len(table)].copy_(table)
        self.row.zero_()
        for start in range(0, len(table), STEPS_AT_ONCE):
            for _ in range(min(STEPS_AT_ONCE, len(table) - start)):
                if self.graph is None:
                    self.take_step()
                else:
                    self.graph.replay()
            yield


def _decayed(table: Table, device: torch.device) -> Tensor:
    kinds = [torch.full((kind.entries,), WEIGHT_DECAY * kind.is_matrix) for kind in table]
    return torch.cat(kinds).to(device)


def reading_of(blocks: Tensor, seeds: list[int], count: int) -> Reading:
    """Give each seed its order of the blocks, again and again until `count` are read."""
    different = sorted(set(seeds))
    orders = np.zeros((len(different), count), dtype=np.int64)
    for row, seed in enumerate(different):
        draw = np.random.default_rng(50 + seed)
        passes = [draw.permutation(len(blocks)) for _ in range(-(-count // len(blocks)))]
        orders[row] = np.concatenate(passes)[:count]
    return Reading(
        blocks,
        torch.from_numpy(orders).to(blocks.device),
        torch.tensor([different.index(seed) for seed in seeds], device=blocks.device),
    )
