"""Ways to train a model further without losing what it knows, each with three strengths."""

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_progressive import (
    InheritancePenalty,
    ParentDivergence,
    estimate_fisher,
    fisher_from_optimizer,
    generated_blocks,
    learn_subspace,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Knowledge:
    """What is known of the parent when it is to go on with other data."""

    parent: PreTrainedModel
    anchor: Mapping[str, Tensor]
    empirical: Mapping[str, Tensor]
    """Ω from old data."""
    of_optimizer: Mapping[str, Tensor]
    """Ω from the optimizer's second moment."""
    subspace: Mapping[str, Tensor]
    written: Tensor
    """(n, T): blocks that the parent wrote."""


def knowledge_of(
    parent: PreTrainedModel, optimizer: Any, old: Tensor, norms: Mapping[int, float], *, start: int, batch: int
) -> Knowledge:
    """Make Ω, U and blocks of a parent's own; of the old data, only the empirical Ω reads some."""
    targets = batch * (old.shape[1] - 1)
    return Knowledge(
        parent=copy.deepcopy(parent),
        anchor={name: parameter.detach().clone() for name, parameter in parent.named_parameters()},
        empirical=estimate_fisher(parent, old[:128].split(16)),
        of_optimizer=fisher_from_optimizer(
            optimizer, parent, batch_tokens=targets, max_grad_norm=1.0, gradient_norms=norms
        ),
        subspace=learn_subspace(parent),
        written=generated_blocks(parent, 128, old.shape[1], start=start),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form:
    """One way."""

    name: str
    strengths: tuple[float, float, float]
    """From weak to strong."""
    needs: str
    """What it needs beside the parent's weights."""
    rate: float = 1.0
    """Factor of the learning rate."""
    replay: float = 0.0
    """Share of old blocks in the data."""
    penalty: Callable[[Knowledge, float], InheritancePenalty] | None = None
    divergence: Callable[[Knowledge, float], ParentDivergence] | None = None

    def settings(self, known: Knowledge, strength: float) -> dict[str, Any]:
        """Return what a training with a strength is given."""
        return {
            "rate": strength if self.rate == 0.0 else self.rate,
            "replay": strength if self.replay > 0.0 else 0.0,
            "penalty": self.penalty(known, strength) if self.penalty else None,
            "divergence": self.divergence(known, strength) if self.divergence else None,
        }


def _weighted(kind: str, apply: str) -> Callable[[Knowledge, float], InheritancePenalty]:
    def penalty(known: Knowledge, strength: float) -> InheritancePenalty:
        return InheritancePenalty(known.anchor, getattr(known, kind), ewc_lambda=strength, apply=apply)

    return penalty


def _subspace(side: str) -> Callable[[Knowledge, float], InheritancePenalty]:
    def penalty(known: Knowledge, strength: float) -> InheritancePenalty:
        return InheritancePenalty(known.anchor, None, known.subspace, gamma=strength, subspace_side=side)

    return penalty


def _l2_sp(known: Knowledge, strength: float) -> InheritancePenalty:
    return InheritancePenalty.l2_sp(known.anchor, ewc_lambda=strength)


def _divergence(known: Knowledge, strength: float) -> ParentDivergence:
    return ParentDivergence(parent=known.parent, blocks=known.written, weight=strength, every=2, batch_size=8)


INTERPOLATION = Form(name="interpolation", strengths=(0.75, 0.5, 0.25), needs="nothing, after training")
"""The child's share in the mean of child and parent; it trains nothing."""

FORMS = (
    Form(name="lower rate", strengths=(0.5, 0.25, 0.1), needs="nothing", rate=0.0),
    Form(name="replay", strengths=(0.01, 0.025, 0.05), needs="old data", replay=1.0),
    Form(name="EWC", strengths=(3.0, 30.0, 300.0), needs="old data, once", penalty=_weighted("empirical", "gradient")),
    Form(
        name="EWC, Ω of the optimizer",
        strengths=(3.0, 30.0, 300.0),
        needs="the optimizer's state",
        penalty=_weighted("of_optimizer", "gradient"),
    ),
    Form(
        name="EWC, proximal",
        strengths=(3.0, 10.0, 30.0),
        needs="the optimizer's state",
        penalty=_weighted("of_optimizer", "proximal"),
    ),
    Form(name="divergence, own texts", strengths=(0.3, 1.0, 3.0), needs="a forward pass more", divergence=_divergence),
    Form(name="L2-SP", strengths=(0.01, 0.1, 1.0), needs="nothing", penalty=_l2_sp),
    Form(name="subspace, outside", strengths=(0.01, 0.1, 1.0), needs="nothing", penalty=_subspace("outside")),
    Form(name="subspace, inside", strengths=(0.01, 0.1, 1.0), needs="nothing", penalty=_subspace("inside")),
)


def interpolated(model: PreTrainedModel, known: Knowledge, share: float) -> PreTrainedModel:
    """Return a model between a parent and its child, at a share of the way."""
    mean = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in mean.named_parameters():
            parameter.lerp_(known.anchor[name], 1.0 - share)
    return mean
