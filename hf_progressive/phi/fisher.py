"""Diagonal Fisher information of a causal language model, from per-sequence gradients.

With the negative log-likelihood ℓ_nt of token t of sequence n, T_n tokens in it and everything squared entry by entry,

- `definition="sequence"` is  Ω = Σ_n (∇ Σ_t ℓ_nt)² / Σ_n T_n,  the information of whole sequences, per token;
- `definition="token"` is  Ω = Σ_n Σ_t (∇ ℓ_nt)² / Σ_n T_n,  the information of single tokens given what precedes them.

Both are in nat² per token over squared weight, so that ½ Σ_i Ω_i ΔW_i² compares with a loss in nats per token. They
differ in the products of different tokens' gradients within a sequence.

The average gradient must not be taken before the square: (Σ_n g_n / N)² is the square of a mean, which is nearly zero
where training has converged and in expectation falls as 1/N with the batch, while the Fisher information, the mean of
squares Σ_n g_n² / N, does neither.
"""

import contextlib
import functools
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from hf_progressive.phi.capture import UnfitLayerError
from hf_progressive.phi.likelihood import (
    LabelKind,
    SequenceBatch,
    evaluation_mode,
    forward_logits,
    read_batch,
    sample_targets,
    token_nll,
)
from hf_progressive.phi.per_sequence import PerSequenceSquares

logger = logging.getLogger(__name__)

Definition = Literal["sequence", "token"]
"""Which gradients are squared: those of whole sequences, or those of single tokens."""


def estimate_fisher(
    model: nn.Module,
    batches: Iterable[Tensor | Mapping[str, Tensor]],
    *,
    kind: LabelKind = "empirical",
    definition: Definition = "sequence",
    normalize: Literal["mean"] | None = None,
    batched: bool = True,
    reduce: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Tensor]:
    """Estimate the diagonal of a causal language model's Fisher information.

    Args:
        model: A causal language model of Transformers, on any device and in any floating dtype.
        batches: Batches of token ids (B, T), or mappings with `input_ids` and optionally `labels` and
            `attention_mask`. The size of a batch does not change the result.
        kind: "empirical" takes the data's own tokens as targets, as Kirkpatrick et al. (2017,
            https://arxiv.org/abs/1612.00796) and most uses of elastic weight consolidation do; "true" samples each
            target from the model's distribution, which makes this an estimate of the Fisher information itself
            (the difference: Kunstner et al. 2019, https://arxiv.org/abs/1905.12558).
        definition: Whose gradients are squared; see the module's first lines.
        normalize: None keeps nats; "mean" divides everything by the mean over all entries of all parameters.
        batched: Compute the per-sequence gradients of a batch together. Otherwise, one backward pass per sequence.
        reduce: Sum over the processes of `torch.distributed`, each of which was given its own sequences.
        seed: For sampled targets and signs.
        progress: Show a progress bar on stderr.

    Returns:
        A non-negative tensor for each name of `model.named_parameters()`, of the parameter's shape and on its device,
        in float32 (float64 for a float64 model). A tied weight appears once; its uses add up before the square.

    Raises:
        ValueError: There is no target token, an option is unknown, or a gradient is not finite.
    """
    _check_options(kind, definition, normalize)
    parameters = dict(model.named_parameters())
    fisher = {
        name: torch.zeros_like(parameter, dtype=_accumulation_dtype(parameter), requires_grad=False)
        for name, parameter in parameters.items()
    }
    squares = PerSequenceSquares(model, fisher)
    generator = torch.Generator().manual_seed(seed)
    device = next(iter(parameters.values())).device
    tokens = 0
    with evaluation_mode(model), _all_trainable(model), torch.enable_grad():
        for index, item in enumerate(tqdm(batches, desc="Fisher", unit="batch", disable=not progress)):
            batch = read_batch(item, device)
            tokens += int(batch.tokens_per_sequence.sum())
            loss = functools.partial(_signed_nll, model, kind=kind, definition=definition, generator=generator)
            if batched:
                try:
                    squares.add(len(batch.input_ids), functools.partial(loss, batch))
                    continue
                except UnfitLayerError as error:
                    if index > 0:
                        raise ValueError(
                            f"batch {index} cannot be taken at once: {error}; pass batched=False"
                        ) from error
                    logger.warning("per-sequence gradients one by one, which is slower: %s", error)
                    batched = False
                    generator.manual_seed(seed)
                    for total in fisher.values():
                        total.zero_()
            for sequence in batch.split():
                _add_one_by_one(fisher, parameters, loss(sequence))
    if tokens == 0:
        raise ValueError("the batches hold no target token; give at least one sequence of two tokens")
    for name, value in fisher.items():
        value /= tokens
        if not value.isfinite().all():
            raise ValueError(f"the Fisher information of {name} is not finite; check the checkpoint and the data")
    if normalize == "mean":
        scale = _mean_entry(fisher)
        for value in fisher.values():
            value /= scale
    return fisher


def _add_one_by_one(totals: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter], loss: Tensor) -> None:
    """Add the squared gradient of one sequence."""
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    for name, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            totals[name] += gradient.to(totals[name].dtype).square()


@contextlib.contextmanager
def _all_trainable(model: nn.Module) -> Iterator[None]:
    """Let every parameter require a gradient within the block, frozen ones too."""
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _signed_nll(
    model: nn.Module, batch: SequenceBatch, *, kind: LabelKind, definition: Definition, generator: torch.Generator
) -> Tensor:
    """Return the scalar whose gradient, one sequence at a time, is squared."""
    logits = forward_logits(model, batch)  # (B, T, V)
    targets = sample_targets(logits, batch.targets, generator) if kind == "true" else batch.targets
    nll = token_nll(logits, targets)  # (B, T)
    if definition == "token" and kind == "empirical":
        signs = 2 * torch.randint(2, targets.shape, generator=generator) - 1
        nll = nll * signs.to(nll)  # products of different tokens' gradients vanish on average
    return nll.sum()


def _accumulation_dtype(parameter: Tensor) -> torch.dtype:
    return torch.float64 if parameter.dtype == torch.float64 else torch.float32


def _mean_entry(fisher: Mapping[str, Tensor]) -> float:
    total = math.fsum(float(value.sum(dtype=torch.float64)) for value in fisher.values())
    return total / sum(value.numel() for value in fisher.values())


def _check_options(kind: str, definition: str, normalize: str | None) -> None:
    for option, value, allowed in (
        ("kind", kind, ("empirical", "true")),
        ("definition", definition, ("sequence", "token")),
        ("normalize", normalize, (None, "mean")),
    ):
        if value not in allowed:
            raise ValueError(f"{option} is {value!r}; it must be one of {', '.join(map(repr, allowed))}")


def fisher_flops(*, tokens: int, sequences: int, parameters: int, training_flops_per_token: float) -> float:
    """Count the floating-point operations of an estimate.

    The per-sequence gradients of a batch cost what its summed gradient costs, so forward and backward count as in
    training; squaring and adding up takes 2 operations per parameter and sequence more.

    Args:
        tokens: Tokens read, padding included.
        sequences: Sequences read.
        parameters: Parameters of the model.
        training_flops_per_token: Forward and backward, as counted for training.

    Returns:
        Floating-point operations.

    >>> fisher_flops(tokens=1000, sequences=10, parameters=50, training_flops_per_token=300.0)
    301000.0
    """
    return training_flops_per_token * tokens + 2 * parameters * sequences
