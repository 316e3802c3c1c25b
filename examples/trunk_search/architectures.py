"""Llama and GPT-2 in their stock shapes, as tables of tensors that hold any number of models at once.

The parameters of *R* models are two tensors: what stands outside of the layers, (R, entries), and the layers,
(L, R, entries). A table says what the entries are, and what each dimension of a tensor is made of, which is all that
growth must know.
"""

import functools
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from transformers import GPT2Config, LlamaConfig, PretrainedConfig

from hf_progressive.training.flops import flops_per_token

CONTEXT = 128
VOCABULARY = 1024
INITIAL_STD = 0.02
ROTARY_BASE = 10_000.0

Family = Literal["llama", "gpt2"]
Role = Literal["write", "read"]
Axis = Literal["stream", "normed", "gain", "final_gain", "shift", "final_shift", "heads", "mlp"]
NORM_EPS: dict[Family, float] = {"llama": 1e-6, "gpt2": 1e-5}


class Dimension(NamedTuple):
    """What a dimension of a tensor is made of."""

    role: Role
    """Whether the tensor writes these units or reads them."""

    axis: Axis
    """The residual stream, what a norm makes of it, a norm's gains and shifts, heads, or the MLP's units."""

    repeats: int = 1
    """How often the axis stands there: queries, keys and values are one tensor, and so are gate and up."""


class Kind(NamedTuple):
    """A tensor that each model, or each layer, has."""

    name: str
    shape: tuple[int, ...]
    dimensions: tuple[Dimension | None, ...]
    """None where nothing grows: tokens and positions."""

    @property
    def is_matrix(self) -> bool:
        """Whether it decays and is drawn; gains begin at 1, shifts and biases at 0."""
        return len(self.shape) == 2

    @property
    def entries(self) -> int:
        return math.prod(self.shape)


Table = tuple[Kind, ...]


class Parts(NamedTuple):
    """Something that every entry of every model has: its value, Adam's moments, or whether it is new."""

    top: Tensor
    """(R, entries)"""

    layers: Tensor
    """(L, R, entries)"""


CLOSING = ("attention_out", "attention_out_bias", "mlp_out", "mlp_out_bias")
"""What ends a layer's branch: with zeros there the layer adds nothing."""

GAINS = ("gain_1", "gain_2", "final_gain")


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One size of one family."""

    family: Family
    layers: int
    width: int
    head_dim: int = 8

    @property
    def mlp_width(self) -> int:
        """4·width (GPT-2), or 8/3 of it, rounded up to a multiple of 8 (Llama)."""
        return 4 * self.width if self.family == "gpt2" else -(-self.width // 3) * 8

    @property
    def top(self) -> Table:
        """What stands outside of the layers; the head is the embedding."""
        width = self.width
        stream = Dimension("write", "stream")
        embedding = Kind("embedding", (VOCABULARY, width), (None, stream))
        gain = Kind("final_gain", (width,), (Dimension("write", "final_gain"),))
        if self.family == "llama":
            return embedding, gain
        positions = Kind("positions", (CONTEXT, width), (None, stream))
        return embedding, positions, gain, Kind("final_shift", (width,), (Dimension("write", "final_shift"),))

    @property
    def layer(self) -> Table:
        """What a layer has, in the order in which it is used."""
        width, mlp = self.width, self.mlp_width
        parallel = 2 if self.family == "llama" else 1  # gate and up
        stream, normed = Dimension("write", "stream"), Dimension("read", "normed")
        qkv, hidden = Dimension("write", "heads", 3), Dimension("write", "mlp", parallel)
        table = (
            Kind("gain_1", (width,), (Dimension("write", "gain"),)),
            Kind("shift_1", (width,), (Dimension("write", "shift"),)),
            Kind("qkv", (3 * width, width), (qkv, normed)),
            Kind("qkv_bias", (3 * width,), (qkv,)),
            Kind("attention_out", (width, width), (stream, Dimension("read", "heads"))),
            Kind("attention_out_bias", (width,), (stream,)),
            Kind("gain_2", (width,), (Dimension("write", "gain"),)),
            Kind("shift_2", (width,), (Dimension("write", "shift"),)),
            Kind("mlp_in", (parallel * mlp, width), (hidden, normed)),
            Kind("mlp_in_bias", (mlp,), (hidden,)),
            Kind("mlp_out", (width, mlp), (stream, Dimension("read", "mlp"))),
            Kind("mlp_out_bias", (width,), (stream,)),
        )
        if self.family == "gpt2":
            return table
        return tuple(kind for kind in table if kind.is_matrix or kind.name in GAINS)

    @property
    def parameters(self) -> int:
        return sum(kind.entries for kind in self.top) + self.layers * sum(kind.entries for kind in self.layer)

    @property
    def flops_per_token(self) -> int:
        """Training FLOPs, counted on the stock class as the package counts them everywhere."""
        return _flops_per_token(self)

    def initial_std(self, kind: Kind) -> float:
        """Return what a matrix is drawn with."""
        if self.family == "gpt2" and kind.name in CLOSING:
            return INITIAL_STD / math.sqrt(2 * self.layers)
        return INITIAL_STD

    def config(self, norm_eps: float | None = None) -> PretrainedConfig:
        """Return the stock class's configuration."""
        heads = self.width // self.head_dim
        eps = NORM_EPS[self.family] if norm_eps is None else norm_eps
        common = {"vocab_size": VOCABULARY, "use_cache": False, "bos_token_id": 0, "eos_token_id": 0}
        if self.family == "gpt2":
            return GPT2Config(
                **common, n_embd=self.width, n_layer=self.layers, n_head=heads, n_positions=CONTEXT,
                layer_norm_epsilon=eps, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            )  # fmt: skip
        return LlamaConfig(
            **common, hidden_size=self.width, num_hidden_layers=self.layers, num_attention_heads=heads,
            num_key_value_heads=heads, head_dim=self.head_dim, intermediate_size=self.mlp_width,
            max_position_embeddings=CONTEXT, tie_word_embeddings=True, rms_norm_eps=eps,
        )  # fmt: skip


@functools.cache
def _flops_per_token(architecture: Architecture) -> int:
    return flops_per_token(architecture.config(), CONTEXT)


def named(flat: Tensor, table: Table) -> dict[str, Tensor]:
    """(…, entries) → (…, *shape) by name."""
    sizes = [kind.entries for kind in table]
    parts = torch.split_with_sizes(flat, sizes, dim=-1)
    return {kind.name: part.view(*part.shape[:-1], *kind.shape) for kind, part in zip(table, parts, strict=True)}


def flat(tensors: dict[str, Tensor], table: Table, lead: int) -> Tensor:
    """(…, *shape) by name → (…, entries), with `lead` dimensions in front."""
    return torch.cat([tensors[kind.name].reshape(*tensors[kind.name].shape[:lead], -1) for kind in table], dim=-1)


def initial(architecture: Architecture, seeds: list[int]) -> Parts:
    """Draw models as the stock class does, one per seed; equal seeds give equal models."""
    drawn = {seed: _initial_of(architecture, seed) for seed in sorted(set(seeds))}
    tops, layers = zip(*(drawn[seed] for seed in seeds), strict=True)
    return Parts(torch.stack(tops), torch.stack(layers, dim=1))


def _initial_of(architecture: Architecture, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 + seed)

    def draw(table: Table) -> Tensor:
        return torch.cat([one(kind).reshape(-1) for kind in table])

    def one(kind: Kind) -> Tensor:
        if kind.is_matrix:
            return torch.empty(kind.shape).normal_(0, architecture.initial_std(kind), generator=generator)
        return torch.ones(kind.shape) if kind.name in GAINS else torch.zeros(kind.shape)

    top = draw(architecture.top)
    return top, torch.stack([draw(architecture.layer) for _ in range(architecture.layers)])
