"""Growth of many models at once: the package's rules for units and layers, applied to stacked tensors.

A test compares it with the package's own growth. Residual channels are padded, never copied: `split` copies heads and
MLP units, so that it is the package's up to twice the width, where that pads them too.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from architectures import CLOSING, GAINS, INITIAL_STD, Architecture, Axis, Dimension, Kind, Parts, flat, named
from network import Network
from numpy.typing import NDArray
from torch import Tensor
from trunks import Depth, Trunk

from hf_progressive.growth.layers import LayerOrigin
from hf_progressive.growth.methods import DEPTH_METHODS
from hf_progressive.growth.options import GrowthOptions
from hf_progressive.growth.units import append_units, split_units

SPLIT_NOISE = 0.1  # as a share of the RMS, as in the package

Noise = Callable[[tuple[int, ...], tuple[int, ...]], Tensor]


class Grown(NamedTuple):
    """What growth makes."""

    network: Network
    weights: Parts
    first_moments: Parts
    second_moments: Parts
    new: Parts
    """1 where an entry has no parent, else 0: (1, entries) and (L, 1, entries)."""


class Units(NamedTuple):
    """What a dimension's entries come from."""

    source: Tensor
    """The parent's entry, or 0 where there is none."""

    inherited: Tensor
    """Whether there is one."""

    value: Tensor
    """Factor of the weights."""

    gradient: Tensor
    """Factor of their gradients."""


def layer_origins(old: int, new: int, depth: Depth) -> list[LayerOrigin]:
    """Return what each layer comes from."""
    if old == new:
        return [LayerOrigin(layer) for layer in range(old)]
    rule, _ = DEPTH_METHODS["insert" if depth == "random" else depth]
    return list(rule(old, new, GrowthOptions()))


@dataclass(frozen=True, kw_only=True)
class Widening:
    """From one width to another.

    Attributes:
        trunk: How it grows.
        old: The parent's architecture.
        new: The child's.
        norm_factor: Of gains: what makes a norm give the old channels what it gave them before.
        device: Where tensors are.
    """

    trunk: Trunk
    old: Architecture
    new: Architecture
    norm_factor: float
    device: torch.device

    def units(self, dimension: Dimension) -> Units:
        """Tell what the entries of a dimension come from."""
        role, axis, repeats = dimension
        source, share = self._origins(axis)
        old = self.old.mlp_width if axis == "mlp" else self.old.width
        source = np.concatenate([np.where(source >= 0, source + index * old, -1) for index in range(repeats)])
        share = np.tile(share, repeats)
        one = np.ones(len(source))
        # A unit's copies are written alike, and read in shares: each copy's gradient is that share of the unit's.
        value, gradient = (one, share) if role == "write" else (share, one)
        if axis in ("gain", "final_gain"):
            value, gradient = value * self.norm_factor, gradient / self.norm_factor

        def tensor(array: NDArray[np.float64]) -> Tensor:
            return torch.tensor(np.where(source >= 0, array, 0.0), dtype=torch.float32, device=self.device)

        return Units(
            torch.tensor(np.maximum(source, 0), device=self.device),
            torch.tensor(source >= 0, device=self.device),
            tensor(value),
            tensor(gradient),
        )

    def _origins(self, axis: Axis) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        rule = split_units if self.trunk.width == "split" and axis in ("heads", "mlp") else append_units
        if axis == "mlp":
            origins, size = rule(self.old.mlp_width, self.new.mlp_width), 1
        elif axis == "heads":
            size = self.old.head_dim
            origins = rule(self.old.width // size, self.new.width // size)
        else:
            origins, size = rule(self.old.width, self.new.width), 1
        first = np.array([-1 if unit.source is None else unit.source * size for unit in origins])
        entries = np.where(first[:, None] >= 0, first[:, None] + np.arange(size), -1).reshape(-1)
        return entries, np.repeat(np.array([unit.share for unit in origins]), size)

    def place(self, x: Tensor, kind: Kind, gradient_power: int = 0) -> Tensor:
        """(…, *old shape) → (…, *new shape), 0 where nothing is inherited.

        Args:
            x: Weights, or with a power of 1 or 2 first or second moments.
            kind: The child's tensor.
            gradient_power: To which power the gradients' factors go; 0 takes the weights' factors.
        """
        lead = x.ndim - len(kind.dimensions)
        for index, dimension in enumerate(kind.dimensions):
            if dimension is None:
                continue
            units = self.units(dimension)
            factor = units.value if gradient_power == 0 else units.gradient**gradient_power
            x = x.index_select(lead + index, units.source) * along(factor, lead + index, x.ndim)
        return x

    def inherited(self, kind: Kind) -> Tensor:
        """Tell which entries of a tensor have a parent."""
        mask = torch.ones(kind.shape, dtype=torch.bool, device=self.device)
        for index, dimension in enumerate(kind.dimensions):
            if dimension is not None:
                mask &= along(self.units(dimension).inherited, index, mask.ndim)
        return mask

    def weights(self, x: Tensor, kind: Kind, noise: Noise) -> Tensor:
        """Widen one tensor of all models. x: (…, *old shape)."""
        placed, inherited = self.place(x, kind), self.inherited(kind)
        averaged = self.new.family == "gpt2" and self.trunk.width != "scaled"  # a LayerNorm's new channels: the mean
        if not kind.is_matrix:
            if kind.name in GAINS:
                return torch.where(inherited, placed, placed[..., inherited].mean(-1, keepdim=True))
            if averaged and kind.name in CLOSING:
                return torch.where(inherited, placed, x.mean(-1, keepdim=True))
            return placed
        lead = x.shape[: x.ndim - 2]
        rms = x.square().mean(dim=(-2, -1), keepdim=True).sqrt()
        drawn = noise(lead[:-1], kind.shape)
        if self.trunk.width == "scaled":
            return torch.where(inherited, placed, drawn * self.trunk.new_scale * rms)
        if self.trunk.width == "split" and kind.name in CLOSING:
            placed = placed + self._zero_sum(noise(lead[:-1], kind.shape) * SPLIT_NOISE * rms, kind)
        for role in ("read", "write"):
            for index, dimension in enumerate(kind.dimensions):
                if dimension is None or dimension.role != role:
                    continue
                units, axis = self.units(dimension), len(lead) + index
                if dimension.axis == "normed" or (role == "write" and dimension.axis in ("heads", "mlp")):
                    fill = drawn * INITIAL_STD  # nothing reads what it makes, or it reads zeros
                elif role == "write" and averaged:
                    fill = placed.index_select(axis, units.inherited.nonzero()[:, 0]).mean(axis, keepdim=True)
                else:
                    fill = torch.zeros((), device=self.device)
                placed = torch.where(along(units.inherited, index, 2), placed, fill)
        return placed

    def _zero_sum(self, noise: Tensor, kind: Kind) -> Tensor:
        """Make noise on the readers of copies add up to 0 over the copies of a unit."""
        dimension = kind.dimensions[1]
        assert dimension is not None
        source = self.units(dimension).source
        sums = torch.zeros(*noise.shape[:-1], int(source.max()) + 1, device=self.device).index_add_(-1, source, noise)
        return noise - (sums / torch.bincount(source)).index_select(-1, source)


def along(values: Tensor, axis: int, ndim: int) -> Tensor:
    """Shape a vector so that it stands along one of the dimensions."""
    return values.view([-1 if index == axis else 1 for index in range(ndim)])


def seeded_noise(seeds: list[int], salt: int, device: torch.device) -> Noise:
    """Return a function that draws (*lead, R, *shape): models of one seed get the same."""
    different = sorted(set(seeds))
    generators = [torch.Generator().manual_seed(7919 * (seed + 1) + salt) for seed in different]
    models = torch.tensor([different.index(seed) for seed in seeds], device=device)

    def draw(lead: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
        drawn = [torch.randn(*lead, *shape, generator=generator) for generator in generators]
        return torch.stack(drawn, dim=len(lead)).to(device).index_select(len(lead), models)

    return draw


def grow(
    network: Network,
    new: Architecture,
    trunk: Trunk,
    weights: Parts,
    first_moments: Parts,
    second_moments: Parts,
    *,
    seeds: list[int],
    salt: int,
) -> Grown:
    """Grow all models of a group.

    Args:
        network: The parent's.
        new: The child's architecture.
        trunk: How it grows.
        weights: The parents' weights.
        first_moments: Adam's.
        second_moments: Adam's.
        seeds: Each model's.
        salt: What makes one growth's draws differ from another's of the same seed.
    """
    old, device = network.architecture, network.device
    ratio = old.width / new.width
    if trunk.width == "scaled":  # the new channels add new_scale² per channel to the mean square
        norm_factor, norm_eps = math.sqrt(ratio + trunk.new_scale**2 * (1 - ratio)), network.norm_eps
    else:
        norm_factor, norm_eps = math.sqrt(ratio), network.norm_eps * ratio
    widening = Widening(trunk=trunk, old=old, new=new, norm_factor=norm_factor, device=device)
    wider = new.width != old.width
    noise = seeded_noise(seeds, salt, device)
    origins = layer_origins(old.layers, new.layers, trunk.depth)

    made: list[tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor], list[Tensor]]] = []
    tables = ((old.top, new.top), (old.layer, new.layer))
    for part, (before, after) in enumerate(tables):
        values, means, squares = (named(stack[part], before) for stack in (weights, first_moments, second_moments))
        flags = []
        for kind in after:
            value, mean, square = values[kind.name], means[kind.name], squares[kind.name]
            inherited = torch.ones(kind.shape, dtype=torch.bool, device=device)
            usual = square.mean(dim=tuple(range(part + 1, square.ndim)), keepdim=True)
            if wider:
                value = widening.weights(value, kind, noise)
                mean, square = widening.place(mean, kind, 1), widening.place(square, kind, 2)
                inherited = widening.inherited(kind)
                square = torch.where(inherited, square, usual)
            is_new = (~inherited).float().reshape(1, -1)
            if part == 1:
                source, heir = _indices(origins, device)
                value = value.index_select(0, source)
                stays = along(heir, 0, value.ndim)
                if trunk.depth == "random" and kind.is_matrix and new.layers > old.layers:
                    drawn = noise((new.layers,), kind.shape) * new.initial_std(kind)
                    value = torch.where(stays, value, drawn)
                elif kind.name in CLOSING:
                    silent = torch.tensor([layer.silent for layer in origins], device=device)
                    value = value * along(~silent, 0, value.ndim)
                mean = mean.index_select(0, source) * stays
                square = torch.where(stays, square.index_select(0, source), usual.index_select(0, source))
                is_new = torch.where(heir[:, None], is_new, 1.0)
            kept = 1.0 if trunk.moments == "grown" else 0.0
            values[kind.name], means[kind.name], squares[kind.name] = value, mean * kept, square * kept
            flags.append(is_new)
        made.append((values, means, squares, flags))
    (top, top_means, top_squares, top_new), (layers, means, squares, layers_new) = made
    return Grown(
        Network(new, device, network.execution, norm_eps if wider else network.norm_eps),
        Parts(flat(top, new.top, 1), flat(layers, new.layer, 2)),
        Parts(flat(top_means, new.top, 1), flat(means, new.layer, 2)),
        Parts(flat(top_squares, new.top, 1), flat(squares, new.layer, 2)),
        Parts(torch.cat(top_new, -1), torch.cat(layers_new, -1)[:, None]),
    )


def _indices(origins: list[LayerOrigin], device: torch.device) -> tuple[Tensor, Tensor]:
    source = torch.tensor([layer.source or 0 for layer in origins], device=device)
    return source, torch.tensor([layer.heir for layer in origins], device=device)
