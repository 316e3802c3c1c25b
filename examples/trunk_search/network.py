"""The forward pass of many models at once: every product of weights is one batched product over the models."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from architectures import CONTEXT, NORM_EPS, ROTARY_BASE, VOCABULARY, Architecture, Parts, named
from torch import Tensor
from torch.nn import functional

VALIDATED_TOKENS = 80_000  # at once, of all models: their logits fit
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How the arithmetic is carried out."""

    compiled: bool = False
    """Compile blocks, loss and optimizer."""

    bfloat16_attention: bool = False
    """Attention in bfloat16."""

    bfloat16_products: bool = False
    """Products of weights in bfloat16, as autocast has them; weights, residual stream and norms stay in float32."""

    @property
    def bfloat16(self) -> tuple[bool, bool]:
        """Of products, and of attention."""
        return self.bfloat16_products, self.bfloat16_attention

    def of(self, function: Function, *, dynamic: bool = False) -> Function:
        """Return a function as it is to be called."""
        return _compiled(function, dynamic) if self.compiled else function


@functools.cache
def _compiled(function: Any, dynamic: bool) -> Any:
    return torch.compile(function, dynamic=dynamic)


def rotary(head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines, both (context, head_dim)."""
    frequencies = ROTARY_BASE ** -(torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = torch.arange(CONTEXT, dtype=torch.float32)[:, None] * frequencies
    angles = torch.cat([angles, angles], -1)
    return angles.cos().to(device), angles.sin().to(device)


def rms_norm(x: Tensor, gain: Tensor, eps: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * gain[:, None]


def layer_norm(x: Tensor, gain: Tensor, shift: Tensor, eps: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps) * gain[:, None] + shift[:, None]


def product(x: Tensor, matrices: Tensor, bfloat16: bool, bias: Tensor | None = None) -> Tensor:
    """(R, n, in) times the transposes of (R, out, in), plus (R, out): (R, n, out)."""
    if bfloat16:
        x, matrices = x.bfloat16(), matrices.bfloat16()
        bias = None if bias is None else bias.bfloat16()
    matrices = matrices.transpose(1, 2)
    return torch.bmm(x, matrices) if bias is None else torch.baddbmm(bias[:, None], x, matrices)


def attention(q: Tensor, k: Tensor, v: Tensor, bfloat16: bool) -> Tensor:
    """(sequences, context, heads, head_dim), causal."""
    precision = torch.bfloat16 if bfloat16 else torch.float32
    q, k, v = (part.transpose(1, 2).to(precision) for part in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True).float().transpose(1, 2)


def llama_block(
    x: Tensor, gain_1: Tensor, qkv: Tensor, attention_out: Tensor, gain_2: Tensor, mlp_in: Tensor, mlp_out: Tensor,
    cosines: Tensor, sines: Tensor, eps: Tensor, head_dim: int, bfloat16: tuple[bool, bool],
) -> Tensor:  # fmt: skip
    """x: (R, sequences · context, width); bfloat16: products, attention."""
    models, tokens, width = x.shape
    heads, sequences = width // head_dim, models * tokens // CONTEXT
    low, low_attention = bfloat16
    parts = product(rms_norm(x, gain_1, eps), qkv, low).view(sequences, CONTEXT, 3, heads, head_dim)
    turned = parts[:, :, :2]
    first, second = turned.chunk(2, -1)
    turned = turned * cosines[:, None, None] + torch.cat([-second, first], -1) * sines[:, None, None]
    mixed = attention(turned[:, :, 0], turned[:, :, 1], parts[:, :, 2], low_attention).reshape(models, tokens, width)
    x = x + product(mixed, attention_out, low)
    gate, up = product(rms_norm(x, gain_2, eps), mlp_in, low).chunk(2, -1)
    return x + product(functional.silu(gate) * up, mlp_out, low)


def gpt2_block(
    x: Tensor, gain_1: Tensor, shift_1: Tensor, qkv: Tensor, qkv_bias: Tensor, attention_out: Tensor,
    attention_out_bias: Tensor, gain_2: Tensor, shift_2: Tensor, mlp_in: Tensor, mlp_in_bias: Tensor, mlp_out: Tensor,
    mlp_out_bias: Tensor, eps: Tensor, head_dim: int, bfloat16: tuple[bool, bool],
) -> Tensor:  # fmt: skip
    """x: (R, sequences · context, width); bfloat16: products, attention."""
    models, tokens, width = x.shape
    heads, sequences = width // head_dim, models * tokens // CONTEXT
    low, low_attention = bfloat16
    parts = product(layer_norm(x, gain_1, shift_1, eps), qkv, low, qkv_bias)
    parts = parts.view(sequences, CONTEXT, 3, heads, head_dim)
    mixed = attention(parts[:, :, 0], parts[:, :, 1], parts[:, :, 2], low_attention).reshape(models, tokens, width)
    x = x + product(mixed, attention_out, low, attention_out_bias)
    hidden = product(layer_norm(x, gain_2, shift_2, eps), mlp_in, low, mlp_in_bias)
    hidden = functional.gelu(hidden, approximate="tanh")
    return x + product(hidden, mlp_out, low, mlp_out_bias)


def summed_loss(
    x: Tensor, gain: Tensor, shift: Tensor | None, embedding: Tensor, eps: Tensor, ids: Tensor, bfloat16: bool
) -> Tensor:
    """Return the sum over the models of each one's mean loss, so that no model's gradient depends on another."""
    models, sequences, _ = ids.shape
    normed = rms_norm(x, gain, eps) if shift is None else layer_norm(x, gain, shift, eps)
    logits = product(normed, embedding, bfloat16).float()
    targets = functional.pad(ids[:, :, 1:], (0, 1), value=-100)
    total = functional.cross_entropy(
        logits.view(models * sequences * CONTEXT, VOCABULARY), targets.reshape(-1), ignore_index=-100, reduction="sum"
    )
    return total / (sequences * (CONTEXT - 1))


class Network:
    """One architecture: parameters and tokens in, hidden states, losses and bits per byte out.

    Args:
        architecture: The size.
        device: Where it runs.
        execution: How.
        norm_eps: ε of the norms, which exact growth in width rescales; None takes the family's.
    """

    def __init__(
        self,
        architecture: Architecture,
        device: torch.device,
        execution: Execution | None = None,
        norm_eps: float | None = None,
    ) -> None:
        self.architecture, self.device, self.execution = architecture, device, execution or Execution()
        self.norm_eps = NORM_EPS[architecture.family] if norm_eps is None else norm_eps
        self.eps = torch.tensor(self.norm_eps, device=device)  # a float would be compiled in, once for each value
        self.rotary = rotary(architecture.head_dim, device) if architecture.family == "llama" else ()

    def _hidden(self, top: dict[str, Tensor], layers: Tensor, ids: Tensor, execution: Execution) -> Tensor:
        models, sequences, context = ids.shape
        # One look-up in all models' tables: index_select's backward pass needs no sort.
        rows = ids.reshape(models, -1) + torch.arange(models, device=ids.device)[:, None] * VOCABULARY
        table = top["embedding"].reshape(models * VOCABULARY, -1)
        x = table.index_select(0, rows.reshape(-1)).view(models, sequences * context, -1)
        if self.architecture.family == "gpt2":
            x = x.view(models, sequences, context, -1) + top["positions"][:, None]
            x = x.view(models, sequences * context, -1)
        block: Callable[..., Tensor] = llama_block if self.architecture.family == "llama" else gpt2_block
        block = execution.of(block)
        rest = (*self.rotary, self.eps, self.architecture.head_dim, execution.bfloat16)
        for layer in layers.unbind(0):
            x = block(x, *named(layer, self.architecture.layer).values(), *rest)
        return x

    def loss(self, weights: Parts, ids: Tensor) -> Tensor:
        """Return the sum of the models' mean losses. ids: (R, sequences, context)."""
        top = named(weights.top, self.architecture.top)
        x = self._hidden(top, weights.layers, ids, self.execution)
        loss = self.execution.of(summed_loss)
        return loss(
            x,
            top["final_gain"],
            top.get("final_shift"),
            top["embedding"],
            self.eps,
            ids,
            self.execution.bfloat16_products,
        )

    @torch.no_grad()
    def logits(self, weights: Parts, ids: Tensor) -> Tensor:
        """(R, sequences, context) → (R, sequences, context, vocabulary); not compiled, products in float32."""
        top = named(weights.top, self.architecture.top)
        x = self._hidden(top, weights.layers, ids, Execution(bfloat16_attention=self.execution.bfloat16_attention))
        shift = top.get("final_shift")
        gain = top["final_gain"]
        normed = rms_norm(x, gain, self.eps) if shift is None else layer_norm(x, gain, shift, self.eps)
        return torch.bmm(normed, top["embedding"].transpose(1, 2)).view(*ids.shape, VOCABULARY)

    @torch.no_grad()
    def bits_per_byte(self, weights: Parts, blocks: Tensor, byte_lengths: Tensor) -> list[float]:
        """Validate every model on the same blocks.

        Args:
            weights: The models.
            blocks: (blocks, context).
            byte_lengths: UTF-8 bytes that each token stands for.

        Returns:
            Bits per byte of all tokens but each block's first, per model.
        """
        models = weights.top.shape[0]
        at_once = max(1, VALIDATED_TOKENS // (models * CONTEXT))
        nats = torch.zeros(models, device=self.device, dtype=torch.float64)
        for start in range(0, len(blocks), at_once):
            ids = blocks[start : start + at_once].long()[None].expand(models, -1, -1)
            logits = self.logits(weights, ids)[:, :, :-1].reshape(-1, VOCABULARY)
            losses = functional.cross_entropy(logits, ids[:, :, 1:].reshape(-1), reduction="none")
            nats += losses.view(models, -1).sum(1).double()
        read = byte_lengths[blocks[:, 1:].long()].sum()
        found: list[float] = (nats / math.log(2) / read).tolist()
        return found
