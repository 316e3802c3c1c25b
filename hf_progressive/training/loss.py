"""The loss: a causal language model's, without the logits that a training step does not need.

A stock model returns logits beside the loss: compiled code must write them, and Accelerate copies them to float32. The
stock loss makes a float32 copy of its own, and its gradient another. Where only the loss is asked for, the logits are
let go inside the forward pass; where they would be large, loss and gradient are formed for some rows at a time, so
that no more than those rows' logits exist.
"""

import functools
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.modeling_outputs import CausalLMOutput

from hf_progressive.data.blocks import NOT_PREDICTED
from hf_progressive.distributed.working_dtype import working_dtype

LARGE_LOGITS_BYTES = 4 << 30
"""Bytes of float32 logits of a micro-batch from which on they are formed in parts."""
PART_BYTES = 1 << 30
"""Bytes of float32 logits formed at once."""

_PLAIN = {"gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma", "smollm3", "gpt_neox", "opt"}
_PLAIN |= {"phi3", "falcon", "olmo2", "olmo3"}
_DIVIDED = {"granite"}  # by logits_scaling
_SOFT_CAPPED = {"nanochat", "gemma2", "gemma3_text"}  # at final_logit_softcapping
_INPUTS = {"input_ids", "labels", "attention_mask", "position_ids", "num_items_in_batch"}


def return_loss_alone(model: nn.Module) -> bool:
    """Give a stock model's forward pass the option `loss_alone`, with which it returns the loss and nothing else.

    Return whether it has the option now: not where something has already changed its forward pass.
    """
    if not isinstance(model, PreTrainedModel) or "forward" in vars(model):
        return False
    stock = type(model).forward

    @functools.wraps(stock)
    def forward(self: Any, *args: Any, loss_alone: bool = False, **inputs: Any) -> Any:
        if not loss_alone:
            return stock(self, *args, **inputs)
        if not args and _forms_parts(self, inputs):
            return CausalLMOutput(loss=_loss_in_parts(self, **inputs))
        output = stock(self, *args, **inputs)
        return CausalLMOutput(loss=output["loss"] if isinstance(output, dict) else output[0])

    model.forward = MethodType(forward, model)
    # Found out once: a class whose name tells no loss warns in every pass, and a warning interrupts compiled code.
    model.loss_function = model.loss_function
    return True


def causal_loss(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    *,
    divisor: float = 1.0,
    soft_cap: float | None = None,
) -> Tensor:
    """Sum the cross-entropy of targets, their logits formed for some rows at a time.

    The logits z = head · h / divisor, or c · tanh(z / c) under a soft cap c, are computed in the dtype of autocast, or
    of `hidden`; the loss and its gradient with respect to them in at least float32.

    Args:
        hidden: h: (rows, width).
        head: The output head's weight: (vocabulary, width).
        targets: (rows,); −100 is no target.
        divisor: By what the logits are divided.
        soft_cap: The soft cap; None for none.

    Returns:
        A scalar, in at least float32.

    >>> h, head = torch.eye(3), torch.zeros(4, 3)
    >>> round(float(causal_loss(h, head, torch.tensor([0, 1, -100]))), 4)  # 2 · ln 4
    2.7726
    """
    rows = max(1, PART_BYTES // (4 * head.shape[0]))
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    needs_gradient = torch.is_grad_enabled() and (hidden.requires_grad or head.requires_grad)
    loss: Tensor = _loss_in_rows(hidden, head, targets, dtype, rows, divisor, soft_cap, needs_gradient)
    return loss


class _LossInParts(torch.autograd.Function):
    """The gradient is formed beside the loss, of which it is a multiple: no logits are kept or formed again."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        targets: Tensor,
        dtype: torch.dtype,
        rows: int,
        divisor: float,
        soft_cap: float | None,
        needs_gradient: bool,
    ) -> Tensor:
        exact = working_dtype(dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            weight = head.detach().to(dtype)
            loss = torch.zeros((), dtype=exact, device=hidden.device)
            hidden_parts: list[Tensor] = []
            head_gradient = torch.zeros_like(head, dtype=exact) if needs_gradient else None
            for part, wanted in zip(torch.split(hidden.detach(), rows), torch.split(targets, rows), strict=True):
                features = part.to(dtype)
                logits = features @ weight.T  # (part, vocabulary)
                if divisor != 1.0:
                    logits = logits / divisor
                if soft_cap is not None:
                    bent = torch.tanh(logits / soft_cap)
                    logits = bent * soft_cap
                exact_logits = logits.to(exact)
                normalizer = exact_logits.logsumexp(-1, keepdim=True)  # (part, 1)
                counts = (wanted != NOT_PREDICTED).unsqueeze(-1)
                chosen = wanted.clamp_min(0).unsqueeze(-1)
                loss = loss + torch.where(counts, normalizer - exact_logits.gather(-1, chosen), 0.0).sum()
                if head_gradient is None:
                    continue
                slope = torch.where(counts, _probabilities_less_targets(exact_logits, normalizer, chosen), 0.0)
                if soft_cap is not None:
                    slope = slope * (1.0 - bent.to(exact).square())
                slope = (slope / divisor).to(dtype)
                hidden_parts.append((slope @ weight).to(hidden.dtype))
                head_gradient.add_(slope.T @ features)
        if head_gradient is not None:
            ctx.save_for_backward(torch.cat(hidden_parts), head_gradient.to(head.dtype))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        hidden_gradient, head_gradient = ctx.saved_tensors
        for_hidden = (hidden_gradient * grad_output).to(hidden_gradient.dtype)
        for_head = (head_gradient * grad_output).to(head_gradient.dtype)
        return for_hidden, for_head, None, None, None, None, None, None


def _probabilities_less_targets(logits: Tensor, normalizer: Tensor, chosen: Tensor) -> Tensor:
    probabilities = (logits - normalizer).exp()
    if torch.compiler.is_compiling():  # by entries, so that all of it becomes one kernel
        at_target = torch.arange(logits.shape[-1], device=logits.device) == chosen
        return probabilities - at_target.to(logits.dtype)
    return probabilities.scatter_add_(-1, chosen, logits.new_full((), -1.0).expand_as(chosen))


_loss_in_rows: Callable[..., Any] = _LossInParts.apply


def _forms_parts(model: PreTrainedModel, inputs: dict[str, Any]) -> bool:
    labels, config = inputs.get("labels"), model.config
    if config.model_type not in _PLAIN | _DIVIDED | _SOFT_CAPPED:  # which may have no vocabulary at all
        return False
    if labels is None or 4 * labels.numel() * config.vocab_size < LARGE_LOGITS_BYTES or inputs.keys() - _INPUTS:
        return False
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or head.bias is not None or model.loss_function is not ForCausalLMLoss:
        return False
    # An engine that divides the head gathers it for the head's own forward pass alone.
    return not isinstance(head.weight, DTensor) and not hasattr(head.weight, "ds_tensor")


def _loss_in_parts(
    model: PreTrainedModel, *, labels: Tensor, num_items_in_batch: Tensor | int | None = None, **inputs: Any
) -> Tensor:
    config = model.config
    hidden = model.base_model(**inputs, use_cache=False).last_hidden_state  # (B, T, D)
    targets = functional.pad(labels, (0, 1), value=NOT_PREDICTED)[..., 1:].flatten().to(hidden.device)
    total = causal_loss(
        hidden.flatten(0, -2),
        model.get_output_embeddings().weight,
        targets,
        divisor=config.logits_scaling if config.model_type in _DIVIDED else 1.0,
        soft_cap=config.final_logit_softcapping if config.model_type in _SOFT_CAPPED else None,
    )
    if num_items_in_batch is None:
        return total / (targets != NOT_PREDICTED).sum()
    if isinstance(num_items_in_batch, Tensor):
        num_items_in_batch = num_items_in_batch.to(total.device)
    return total / num_items_in_batch
