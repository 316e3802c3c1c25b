"""Low logits for new tokens: by a bias of the output head, or by what the hidden states of a text have in common.

A new row near the mean of the old has a logit near the mean of the old, and what the new tokens' probabilities add up
to is missing from the old. No row lowers its logit in every hidden state, since behind an RMS norm −h is as good a
state as h. The states of texts have a mean h̄ that is far from zero, though. With S their covariance and D their width,

    w = w̄ − c·u / (u·h̄),   u = (S + κ·I)⁻¹ h̄,   κ = tr(S)/D,                                                       (1)

has a logit lower by c nat in the mean over them, and by nearly as much in each: u is the direction along which states
vary least for the mean that they have (Fisher's linear discriminant), and κ keeps it from what a few tokens have by
chance. Noise tells new rows apart; it is kept to one nat, for e^(σ²/2) is what noise of σ nat multiplies
probabilities by. Old rows, and with them old logits, stay as they are.
"""

import functools
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_progressive.growth.family_table import Family, WeightRule
from hf_progressive.growth.growth_plan import GrowthPlan
from hf_progressive.growth.operators import Lowered
from hf_progressive.growth.stock_model import load_stock, stock_logits, where_it_fits
from hf_progressive.growth.tensor_plan import TensorPlan
from hf_progressive.growth.verify import GrowthCheck

logger = logging.getLogger(__name__)

_READ_FOR = 8  # sequences that the direction is taken from
_NOISE = 1.0  # nat, at most


def require_rows_to_lower(plan: GrowthPlan, low_logits: float, has_text: bool) -> None:
    """Raise a ValueError unless the logits of new tokens can be lowered by so many nat."""
    if type(low_logits) not in (int, float) or not 0 < low_logits < math.inf:
        raise ValueError(
            f"low_logits={low_logits!r}: expected a number > 0, in nat; 10 is enough for most vocabularies"
        )
    if not any(plan.axes["vocab"].new()):
        raise ValueError(f"low_logits={low_logits:g}: the vocabulary does not grow, so no logit is new; leave it out")
    if not plan.tensor(_head(plan).name).sources:
        raise ValueError(f"low_logits={low_logits:g}: {plan.method!r} inherits no output head; leave it out")
    if _bias(plan) is None and not has_text:
        raise ValueError(
            f"low_logits={low_logits:g}: the output head has no bias, and only on a text do hidden states have a mean"
            " to lower logits by; give text= (--text FILE)"
        )


def warn_of_no_gain(check: GrowthCheck, low_logits: float) -> None:
    """Warn where old predictions lose more to new tokens than without lower logits: equation 1 is about the mean."""
    before = check.new_token_loss_at_mean
    if before is not None and check.new_token_loss > before:
        logger.warning(
            "low_logits=%g: old predictions lose %.2g nat a token to new tokens, %.2g without it: the text's states"
            " have too little in common; take a smaller number or a longer text, or leave it out",
            low_logits, check.new_token_loss, before
        )  # fmt: skip


def split_text(tokens: Tensor, sequences: int, length: int) -> tuple[Tensor, Tensor]:
    """Divide a text into what the loss is measured on and what the direction is taken from, so that none serves both.

    The first is `sequences` of `length` tokens, or half of a shorter text; the second stands behind it.
    """
    measured = min(sequences * length, len(tokens) // 2)
    return tokens[: max(measured, 1)], tokens[measured : measured + _READ_FOR * length]


def with_low_logits(
    plan: GrowthPlan, low_logits: float, source: Path, read: Tensor | None, *, length: int, dtype: torch.dtype
) -> GrowthPlan:
    """Return the plan with the logits of new tokens lower by `low_logits` nat in the mean over a text.

    Args:
        plan: A plan by which the vocabulary grows.
        low_logits: c in equation 1.
        source: The parent's folder.
        read: Tokens of a text, (T,), read `length` at a time; not needed where the head has a bias, which lowers
            logits by c for every state.
        length: Tokens in a sequence.
        dtype: The arithmetic of the parent.
    """
    rule = _bias(plan)
    if rule is not None:
        lowered = Lowered(index=0, shift=torch.tensor([-low_logits], dtype=torch.float64))
    else:
        assert read is not None
        rule = _head(plan)
        measure = functools.partial(_states, source, dtype, torch.split(read, length))
        states, slope = where_it_fits(measure, "the parent")
        shift = -low_logits / slope * direction(states)
        index = next(i for i, dim in enumerate(rule.dims) if "vocab" in dim.axes)
        size = states.square().sum(-1).mean().sqrt().item()  # of a state, root mean square
        lowered = Lowered(index=index, shift=shift.unsqueeze(index), noise=_NOISE / (slope * size))

    def told(tensor: TensorPlan) -> TensorPlan:
        if tensor.name != rule.name:
            return tensor
        words = f"{tensor.rule}; new logits lowered by {low_logits:g} nat"
        return replace(
            tensor, lowered=lowered, rule=words, pieces=tuple(replace(p, lowered=lowered) for p in tensor.pieces)
        )

    return replace(plan, tensors=tuple(map(told, plan.tensors)))


def direction(states: Tensor) -> Tensor:
    """Return u / (u·h̄) of equation 1: what has the product 1 with the mean of hidden states, and nearly 1 with each.

    Args:
        states: (T, D), in float64.

    Returns:
        (D,).

    >>> direction(torch.tensor([[1.0, 2.0], [1.0, -2.0]], dtype=torch.float64))
    tensor([1., 0.], dtype=torch.float64)
    """
    count, width = states.shape
    mean = states.mean(0)
    apart = states - mean  # S = apartᵀ·apart / T
    ridge = apart.square().sum().item() / (count * width) or 1.0
    # (S + κI)⁻¹ h̄ by the Woodbury identity: a system of T tokens, however wide the model.
    inner = apart @ apart.T + count * ridge * torch.eye(count, dtype=states.dtype)
    found: Tensor = (mean - apart.T @ torch.linalg.solve(inner, apart @ mean)) / ridge
    return found / (found @ mean)


# Final hidden states (T, D) of the blocks of a text, and how far a logit moves with what the head makes: soft caps and
# divisors (Granite) stand between the two.
def _states(
    source: Path, dtype: torch.dtype, blocks: tuple[Tensor, ...], device: torch.device
) -> tuple[Tensor, float]:
    model, _ = load_stock(source, dtype, device, None)
    seen: list[Tensor] = []

    def keep(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.append(inputs[0][0].detach())

    head = model.get_output_embeddings()
    with head.register_forward_pre_hook(keep):
        for block in blocks:
            logits = stock_logits(model, block[None])  # (length, V)
    with torch.no_grad():
        made = (head.weight @ seen[-1][-1].to(head.weight.dtype)).double()  # (V,)
    slope = (logits[-1] @ made / made.square().sum()).item()
    return torch.cat(seen).double().cpu(), slope


def _head(plan: GrowthPlan) -> WeightRule:
    """Return the rule of the matrix that makes the logits: the head's own, or the embedding's that it is tied to."""
    rule = next(rule for rule in _writing_vocab(plan.family) if len(rule.dims) > 1)
    if rule.exists(plan.target_config):
        return rule
    return next(other for other in plan.family.rules if other.name == rule.tied_to)


def _bias(plan: GrowthPlan) -> WeightRule | None:
    rules = (rule for rule in _writing_vocab(plan.family) if len(rule.dims) == 1)
    return next((rule for rule in rules if rule.exists(plan.target_config)), None)


def _writing_vocab(family: Family) -> list[WeightRule]:
    return [rule for rule in family.rules if any(dim.role == "write" and "vocab" in dim.axes for dim in rule.dims)]
