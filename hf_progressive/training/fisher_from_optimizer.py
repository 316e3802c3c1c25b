"""Diagonal Fisher information for nothing: from the second moment that Adam has kept of the gradients.

Adam's v is a running mean of squared gradients, v ← β₂·v + (1 − β₂)·g², so that v̂ = v/(1 − β₂ᵗ) is their mean with
weights that fall by β₂ per step ("Fishers for Free", arXiv 2507.18807). What g is decides the scale. It is the mean of
the gradients of the B target tokens of a step, over all processes and accumulated micro-batches, clipped by a factor
c ≤ 1. With N independent sequences of T tokens in a step, B = N·T, and G the gradient of a sequence's summed loss,

    E[g²] = c²·( E[ḡ]² + Var(ḡ) ),        Var(ḡ) = Var(G)/(N·T²),                                                  (1)

and where the mean gradient vanishes, as it does where training has converged, Var(G) = E[G²] and

    B·v̂/c² ≈ E[G²]/T = Ω,                                                                                         (2)

in nat² per token over squared weight, which is the empirical estimate of `hf_progressive.estimation.fisher` by its
definition `sequence`. By the definition `token` it is the same where tokens' gradients are uncorrelated given what
precedes them, which holds for sampled targets, and for the data's own as far as the model predicts them well; where it
does not yet, Ω is larger, by the factor between the two definitions (1.5 to 2.4 on the models measured there). What is
biased, then, and how:

- Away from a stationary point Ω is too large by B·E[ḡ]²: at the end of a decay to zero little, early in training much.
- The gradients are those of the last 1/(1 − β₂) steps and of the weights that they met there. Their number sets the
  noise: the relative standard deviation of an entry is about √(2·(1 − β₂)/(1 + β₂)), .23 at β₂ = .95, .03 at .999. A
  long memory reaches back to where the loss was falling: of a GPT-2 of .12 M parameters after 600 steps that decayed
  to 0, Ω was .97 of the `sequence` estimate at β₂ = .95 and 3.5 times it at .999
  (`python examples/benchmarks/fisher_scale.py --sizes 2x64 --steps 600 --beta2 ...`).
- Clipping: c is not kept, but the norms n that training logged before it tell the mean of c², c = min(1, M/n) for a
  limit M. With the weights w that v has, Ω is multiplied by Σ w·n² / Σ w·min(n, M)².
- Where a penalty or Adam's coupled weight decay (not AdamW's) was a part of the gradient, its square is in Ω.
"""

import logging
import os
from collections.abc import Mapping

from torch import Tensor, nn
from torch.optim import Optimizer

from hf_progressive.distributed.working_dtype import working_dtype
from hf_progressive.training.second_moments import SecondMoments, read_second_moments

logger = logging.getLogger(__name__)

_NAMES_SHOWN = 3


def fisher_from_optimizer(
    source: Optimizer | str | os.PathLike[str],
    model: nn.Module | None = None,
    *,
    batch_tokens: float,
    max_grad_norm: float | None = None,
    gradient_norms: Mapping[int, float] | None = None,
    partial: bool = False,
) -> dict[str, Tensor]:
    """Read the diagonal Fisher information that Adam's second moment holds; no pass over any data is made.

    The scale is that of `estimate_fisher`, so that λ means the same: Ω = B·v̂, see the module's first lines. It is
    exact in expectation where the mean gradient is 0, and too large elsewhere.

    Args:
        source: A torch optimizer, also in Accelerate's wrapper or under FSDP2; a checkpoint's folder as Trainer saves
            it, or as a rung keeps it (`RUN/NAME/checkpoints/checkpoint-N`, `RUN/NAME/stable`), or its `optimizer.pt`;
            FSDP's `optimizer.bin`. Adam and AdamW in any of their implementations, states in any floating dtype.
        model: The model whose parameters they are. An optimizer needs it; a folder with a `config.json` of a causal
            language model does not, if all of its parameters were trained.
        batch_tokens: B, target tokens of an optimizer step over all processes and accumulated micro-batches: of a
            block of T packed tokens T − 1 are targets. If the loss was their sum over another number D, D²/B.
        max_grad_norm: M, to which training clipped the gradient's norm, such as `TrainingArguments.max_grad_norm`. By
            it and the norms that were logged, clipping is undone in the mean. None takes the gradients as clipped.
        gradient_norms: Norms before clipping by step, where `source` is not a folder with a `trainer_state.json`.
        partial: Return what there is, where some trained parameters have no second moment, as Muon's matrices: Φ
            does not hold those. Otherwise that is a ValueError.

    Returns:
        As from `estimate_fisher`: a non-negative tensor for each name of `model.named_parameters()` that was trained,
        of its shape, in float32 (float64 for a float64 state); of a divided model, a DTensor. 0 for a parameter that
        has taken no step.

    Raises:
        FileNotFoundError: There is no such folder or file.
        ValueError: The state is another optimizer's, is kept in a form without names (DeepSpeed, FSDP's shards), fits
            another model, or holds no second moment of some parameters.

    >>> import torch
    >>> model = nn.Linear(2, 1, bias=False)
    >>> optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99))
    >>> model(torch.tensor([[3.0, 4.0]])).sum().backward(); optimizer.step()
    >>> fisher_from_optimizer(optimizer, model, batch_tokens=1)
    {'weight': tensor([[ 9., 16.]])}
    """
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens is {batch_tokens}; it must be at least 1")
    found = read_second_moments(source, model)
    if not found.moments or (found.missing and not partial):
        raise ValueError(_lacking(found))
    norms = found.gradient_norms if gradient_norms is None else gradient_norms
    factor = batch_tokens * unclipped(found, norms, max_grad_norm)
    fisher = {}
    for name, moment in found.moments.items():
        average = moment.average.detach()
        average = average.to(working_dtype(average.dtype))
        fisher[name] = average * (factor / moment.weight if moment.weight > 0 else 0.0)
    return fisher


def unclipped(found: SecondMoments, norms: Mapping[int, float], limit: float | None) -> float:
    """Return the factor by which squares of unclipped gradients exceed those that the second moments hold, ≥ 1."""
    newest = max(found.moments.values(), key=lambda moment: moment.steps)
    steps = [step for step in norms if step <= newest.steps]
    if not limit or not steps:
        if limit:
            logger.warning("no norm of the gradient was logged, so Ω is that of gradients clipped to %g", limit)
        return 1.0
    weights = {step: newest.beta ** (max(steps) - step) for step in steps}
    before = sum(weight * norms[step] ** 2 for step, weight in weights.items())
    after = sum(weight * min(norms[step], limit) ** 2 for step, weight in weights.items())
    return before / after if after > 0 else 1.0


def _lacking(found: SecondMoments) -> str:
    shown = ", ".join(found.missing[:_NAMES_SHOWN]) + (", …" if len(found.missing) > _NAMES_SHOWN else "")
    return (
        f"the optimizer holds no second moment of {len(found.missing)} parameters ({shown}): Muon keeps none, nor do"
        " parameters that had no gradient; take estimate_fisher, or partial=True to leave them free"
    )
