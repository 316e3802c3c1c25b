"""What a rung has from its parent: how it was grown, what was estimated for it, and the penalty made of that."""

from dataclasses import dataclass, field
from typing import Any

from hf_progressive.records.typed import Amount, Count, Record


@dataclass(frozen=True, kw_only=True)
class LogitComparison(Record):
    """How a grown, untrained rung's logits compare with its parent's."""

    max_abs_logit_diff: Amount
    """Largest |Δlogit|."""

    max_abs_logit: Amount
    """Largest |logit|."""

    kl: float
    """Mean Kullback-Leibler divergence of the two predictions, in nats."""

    tolerance: Amount | None = None
    """Largest |Δlogit|, in units of the largest |logit|, that counts as rounding."""

    dtype: str
    """Of the arithmetic."""

    sequences: Count
    """Sequences of random tokens that were compared."""

    length: Count
    """Tokens of each."""

    preserved: bool
    """Whether the logits agree within the tolerance."""

    new_token_loss: float | None = None
    """What old tokens' predictions lose to new tokens, in nats per token; None in older records."""

    text_tokens: Count = 0
    """Tokens of the text on which that was measured; 0 where it was on the random ones."""

    new_token_loss_at_mean: float | None = None
    """The same as it would be, had growth not lowered the logits of new tokens; None where it did not."""


@dataclass(frozen=True, kw_only=True)
class GrowthRecord(Record):
    """How a rung was grown from its parent."""

    format: int = 1
    """The layout's version."""

    version: str | None = None
    """This package's version."""

    source: dict[str, Any] = field(default_factory=dict)
    """The parent: name, revision and files."""

    target: dict[str, Any] = field(default_factory=dict)
    """What was asked for."""

    method: str
    """The growth method."""

    options: dict[str, Any] = field(default_factory=dict)
    """The method's options."""

    seed: int | None = None
    """Seed of the new entries."""

    preserves_function: bool = True
    """Whether the method keeps the parent's function by construction."""

    plan: dict[str, Any] = field(default_factory=dict)
    """What was done to the tensors."""

    verification: LogitComparison | None = None
    """What was measured."""


@dataclass(frozen=True, kw_only=True)
class Estimate(Record):
    """How Fisher information or a subspace was estimated of a rung for its successor; `others` says more."""

    flops: Amount
    """FLOPs spent on it."""

    sequences: Count = 0
    """Sequences read."""


@dataclass(frozen=True, kw_only=True)
class FisherEstimate(Estimate):
    """How Fisher information was estimated."""

    kind: str
    """Empirical, or with labels sampled from the model, or read from the optimizer."""


@dataclass(frozen=True, kw_only=True)
class SubspaceEstimate(Estimate):
    """How a subspace was learned."""

    source: str
    """From weights, gradients or activations."""

    energy: float | None = None
    """Share of the spectrum's energy that it holds."""


@dataclass(frozen=True, kw_only=True)
class Estimates(Record):
    """What was estimated of a rung for its successor; what was not has no key in the file."""

    fisher: FisherEstimate | None = None
    """Fisher information."""

    subspace: SubspaceEstimate | None = None
    """Output subspaces."""

    @property
    def flops(self) -> float:
        """FLOPs spent on both."""
        return sum(estimate.flops for estimate in (self.fisher, self.subspace) if estimate is not None)

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in super().to_dict().items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class PenaltyRecord(Estimates):
    """The inheritance penalty that a rung was trained with, and the estimates of its parent that it rests on."""

    ewc_lambda: Amount
    """λ, the weight of the Fisher term."""

    gamma: Amount
    """γ, the weight of the subspace term."""

    apply: str | None = None
    """`proximal` where Φ acted by a step after the optimizer's; no key where its gradient was added."""

    subspace_side: str | None = None
    """`inside` where γ restrained the parent's subspace itself; no key where it restrained what lies outside."""

    fisher_kind: str | None = None
    """`ones` where every inherited weight counted alike; no key where the Fisher term is of an estimate."""

    schedule: str
    """How the weights go on over the training."""

    until: Amount
    """The share of the steps at which they are 0."""
