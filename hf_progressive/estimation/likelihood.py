"""Negative log-likelihoods, target by target: what Fisher information and gradient subspaces are made of.

A target is what a model predicts a distribution for and its loss is a mean over: the next token, a masked token, an
example's class. Its loss is kept unreduced, so that each example keeps its own sum.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch import distributed as dist

from hf_progressive.config.ranges import class_of
from hf_progressive.distributed.working_dtype import summing_dtype, working_dtype

IGNORED_LABEL = -100
"""Label of a position that is no target, as in Transformers and `torch.nn.functional.cross_entropy`."""

_SAMPLED_ENTRIES = 1 << 22  # probabilities held at a time: 32 MiB in float64

LabelKind = Literal["empirical", "true"]
"""Where targets come from: the data, or samples of the model's own distribution."""

Form = Literal["categories", "switches", "numbers"]
"""What a target is: one of several categories, yes or no, or a number."""


class ExampleBatch(Protocol):
    """A batch of examples, with what each of them has to predict."""

    def __len__(self) -> int:
        """Return the number of examples, B."""

    def split(self) -> Iterator["ExampleBatch"]:
        """Yield the examples one by one, as batches of one."""

    def losses(self, model: nn.Module, kind: LabelKind, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return each target's loss in nats, (B, K), 0 where there is none, and where there is one, (B, K)."""

    def tokens(self) -> Tensor | None:
        """Return the attention mask of what the model reads, (B, T), where there is one."""

    @property
    def layout(self) -> tuple[object, ...] | None:
        """What batches share whose examples pass through a model in the same shapes; None where rows are examples."""


@dataclass(frozen=True, kw_only=True)
class SequenceBatch:
    """A batch of token sequences and the target of every position."""

    input_ids: Tensor
    """(B, T)."""
    targets: Tensor
    """Id of the token each position has to predict, -100 where there is none, (B, T)."""
    attention_mask: Tensor | None = None
    """1 for tokens and 0 for padding, (B, T)."""
    every_target: bool = False
    """Known without a look at `targets`: every position has one but the last."""

    def __len__(self) -> int:
        """Return the number of sequences."""
        return len(self.input_ids)

    @property
    def tokens_per_sequence(self) -> Tensor:
        """Number of targets of each sequence, (B,)."""
        return (self.targets != IGNORED_LABEL).sum(dim=1)

    @property
    def layout(self) -> tuple[object, ...] | None:
        """What must be tried out: as many positions as sequences."""
        return tuple(self.input_ids.shape) if len(self) == self.input_ids.shape[1] > 1 else None

    def tokens(self) -> Tensor | None:
        """Return the attention mask, (B, T)."""
        return self.attention_mask

    def split(self) -> Iterator["SequenceBatch"]:
        """Yield the sequences one by one, as batches of one."""
        for row in range(len(self.input_ids)):
            one = slice(row, row + 1)
            mask = None if self.attention_mask is None else self.attention_mask[one]
            yield replace(self, input_ids=self.input_ids[one], targets=self.targets[one], attention_mask=mask)

    def losses(self, model: nn.Module, kind: LabelKind, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return what `target_nll` does, and where there are targets."""
        return target_nll(model, self, kind, generator), self.targets != IGNORED_LABEL

    def drawn_places(self) -> Tensor:
        """Return, on the CPU, for which positions (B, T) a number is drawn: the targets and each row's last.

        Padding draws none, so that the others' numbers are the same however far a batch is padded. The end of a
        sequence, which predicts nothing, draws one.
        """
        if self.every_target:  # nothing to wait for on a device
            return torch.ones(self.targets.shape, dtype=torch.bool)
        places = (self.targets != IGNORED_LABEL).cpu()
        places[:, -1:] = True
        return places


def _require_plain_positions(positions: Tensor | None, input_ids: Tensor) -> None:
    # Others are those of packed texts, which are read by the model's own forward pass alone.
    if positions is not None and not bool((positions.cpu() == torch.arange(input_ids.shape[1])).all()):
        raise ValueError(
            "a batch's position_ids are not 0, 1, 2, … along each sequence, and only these are read; give texts that"
            " are not packed, or loss=, which returns the loss of each example"
        )


def read_batch(batch: Tensor | Mapping[str, Tensor], device: torch.device) -> SequenceBatch:
    """Bring what a data loader yields for a causal language model into one form.

    Labels follow Transformers' convention: they are aligned with `input_ids`, and position t is scored on the label of
    position t + 1. Without labels every token of the attention mask is one. All tensors are (B, T).

    >>> read_batch(torch.tensor([[5, 6, 7]]), torch.device("cpu")).targets
    tensor([[   6,    7, -100]])
    """
    fields = {"input_ids": batch} if isinstance(batch, Tensor) else batch
    if "input_ids" not in fields:
        raise ValueError(f"a batch has the keys {sorted(fields)}, but no input_ids; yield dicts with input_ids (B, T)")
    input_ids = fields["input_ids"].to(device)
    if input_ids.ndim != 2:
        remedy = "; a DataLoader makes batches of a dataset's examples" if input_ids.ndim == 1 else ""
        raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}; token ids of shape (B, T) are needed{remedy}")
    if not input_ids.is_floating_point():
        input_ids = input_ids.long()
    _require_plain_positions(fields.get("position_ids"), input_ids)
    mask, labels = fields.get("attention_mask"), fields.get("labels")
    for name, value in (("attention_mask", mask), ("labels", labels)):
        if value is not None and value.shape != input_ids.shape:
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}, input_ids {tuple(input_ids.shape)}; make them equal"
            )
    mask = None if mask is None else mask.to(device)
    every_target = labels is None and mask is None
    if labels is None:
        labels = input_ids if mask is None else input_ids.masked_fill(mask == 0, IGNORED_LABEL)
    targets = F.pad(labels.to(device)[:, 1:], (0, 1), value=IGNORED_LABEL)  # (B, T)
    return SequenceBatch(input_ids=input_ids, targets=targets, attention_mask=mask, every_target=every_target)


def forward_logits(model: nn.Module, batch: SequenceBatch) -> Tensor:
    """Run a causal language model of Transformers; logits are (B, T, V), in at least float32."""
    output = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
    logits = getattr(output, "logits", None)
    if not isinstance(logits, Tensor) or logits.shape[:-1] != batch.targets.shape:
        raise ValueError(
            f"{class_of(model)} returns no logits (B, T, V), as a causal language model does; pass loss=, "
            "a callable of model and batch that returns the loss of each example, (B,)"
        )
    return logits.to(working_dtype(logits.dtype))


def target_nll(model: nn.Module, batch: SequenceBatch, kind: LabelKind, generator: torch.Generator) -> Tensor:
    """Return each target's negative log-likelihood, in nats, (B, T), 0 where there is none; `kind` says whose."""
    logits = forward_logits(model, batch)
    places = batch.drawn_places() if kind == "true" else None
    return negative_log_likelihood("categories", logits, batch.targets, kind, generator, places)


def negative_log_likelihood(
    form: Form,
    scores: Tensor,
    targets: Tensor,
    kind: LabelKind,
    generator: torch.Generator,
    places: Tensor | None = None,
) -> Tensor:
    """Return each target's negative log-likelihood in nats, (B, K), 0 where there is none.

    Args:
        form: What a target is.
        scores: Of categories, logits (B, K, V). Of switches, logits (B, K) of independent yes and no. Of numbers,
            the means (B, K) of normal distributions of variance ½, whose negative log-likelihood is the squared error
            but for a constant.
        targets: (B, K), -100 where a category is not one.
        kind: Whether targets are those given, or are sampled.
        generator: On the CPU.
        places: As for `sample_targets`.
    """
    if form == "categories":
        ids = sample_targets(scores, targets, generator, places) if kind == "true" else targets
        nll = F.cross_entropy(scores.flatten(0, 1), ids.flatten(), ignore_index=IGNORED_LABEL, reduction="none")
        return nll.view_as(targets)
    if kind == "true":
        targets = _sample_values(form, scores.detach(), generator)
    if form == "switches":
        return F.binary_cross_entropy_with_logits(scores, targets.to(scores), reduction="none")
    return (scores - targets.to(scores)).square()


def _sample_values(form: Form, scores: Tensor, generator: torch.Generator) -> Tensor:
    scores = scores.to(summing_dtype(scores.device))
    uniform = torch.rand(scores.shape, generator=generator, dtype=torch.float64).to(scores)
    if form == "switches":
        return uniform < scores.sigmoid()
    # The inverse of the distribution function at uniform numbers: drawn alike however examples are batched.
    edge = 1 - torch.finfo(scores.dtype).eps
    return scores + torch.erfinv((2 * uniform - 1).clamp(-edge, edge))


@torch.no_grad()
def sample_targets(
    logits: Tensor, targets: Tensor, generator: torch.Generator, places: Tensor | None = None
) -> Tensor:
    """Draw a target at every position that has one, from the model's distribution given the data before it.

    Each draw inverts the distribution function at one uniform number from a CPU generator, taken in the order of the
    sequences: how they are grouped and padded into batches makes no difference, nor does the device. Logits are
    (B, T, V), targets and the sampled ids (B, T), -100 where there is none; `places` says, on the CPU, where a number
    is taken, (B, T), None at the targets alone.
    """
    places = (targets != IGNORED_LABEL).cpu() if places is None else places
    uniform = torch.zeros(places.shape, dtype=torch.float64)
    uniform[places] = torch.rand(int(places.sum()), generator=generator, dtype=torch.float64)
    uniform = uniform.flatten()  # (B·T,)
    tokens_at_once = max(1, _SAMPLED_ENTRIES // logits.shape[-1])
    drawn = []
    for first in range(0, len(uniform), tokens_at_once):
        some = slice(first, first + tokens_at_once)
        probabilities = logits.flatten(0, 1)[some].softmax(dim=-1, dtype=summing_dtype(logits.device))
        cumulative = probabilities.cumsum(dim=-1)  # (tokens, V)
        height = uniform[some, None].to(cumulative) * cumulative[:, -1:]
        ids = torch.searchsorted(cumulative, height, right=True).squeeze(1)
        drawn.append(ids.clamp(max=logits.shape[-1] - 1))  # rounding may lift the height to the very top
    return torch.cat(drawn).view_as(targets).masked_fill(targets == IGNORED_LABEL, IGNORED_LABEL)


def sampling_generator(seed: int, *, apart: bool) -> torch.Generator:
    """Make the CPU generator of sampled targets, `apart` where processes read different sequences and draw apart."""
    rank = dist.get_rank() if apart and dist.is_initialized() else 0
    return torch.Generator().manual_seed(seed + rank)
