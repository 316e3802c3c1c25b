"""Ask a causal language model about many prompts at once, with the answers it would give to one at a time.

Three things make it fast, and none of them changes what is computed:

- Options that share a context share its encoding: the prompts of a batch are cut at one common length, the part
  before it is encoded once into a key/value cache, and the rest is read once per option from that same cache. All
  prompts are cut at the same place, so nothing is padded on the left and no mask is needed: positions are the
  model's own, whatever kind they are. Options that differ in their last token only need no second reading at all.
- Sequences of like length are batched across examples, padded on the right, where a causal model cannot see it.
- The output head runs on the scored positions alone. A hook selects them on the way into the head, so that whatever
  a model does to its logits afterwards (scaling, soft capping) is done as usual.

Losses are computed in float32, or in float64 for a float64 model, and averaged in float64.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from hf_progressive.evaluation.prompts import Request, Row, common_prefix

_SHORTEST_SHARED_PREFIX = 16
"""Tokens that options must share before encoding them apart is worth a second forward pass."""

_BATCH_SPREAD = 1 / 16
"""How much shorter than its longest member a batch's shortest may be, as a share of the longest."""

_REUSABLE_LAYERS = (DynamicLayer, DynamicSlidingWindowLayer)
"""Cache layers that append keys and values without changing those they hold. Recurrent states are not among them."""


_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class RowScore:
    """What a model makes of one option.

    Args:
        loss: Mean negative log likelihood of the scored tokens, in nats.
        greedy: Whether every scored token is the arg max, the lowest token id winning a tie.
        tied: Whether every scored token has the highest logit and at least one has to share it.
    """

    loss: float
    greedy: bool
    tied: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answers to one example.

    Args:
        correct: Whether the answer is right.
        tied: Whether it hung on an exact tie, which the first option, or the lowest token id, wins.
        truncated: Whether the prompt lost its beginning to the model's context.
    """

    correct: bool
    tied: bool
    truncated: bool


class _Pass(NamedTuple):
    """One sequence to feed, and the rows read off it: they differ in their last token at most."""

    request: int
    tokens: tuple[int, ...]
    rows: tuple[Row, ...]


def score_requests(
    model: PreTrainedModel,
    requests: Sequence[Request],
    *,
    batch_size: int,
    reuse_prefixes: bool,
    on_rows: Callable[[int], object] = lambda rows: None,
) -> list[list[RowScore]]:
    """Score every option of every request.

    The model should be in evaluation mode; gradients are not recorded.

    Args:
        model: The model.
        requests: What to ask, in any order.
        batch_size: Sequences in one forward pass, at most.
        reuse_prefixes: Encode shared contexts once; see `can_reuse_prefixes`.
        on_rows: Called after each batch with the number of options it scored.

    Returns:
        One score per row, for each request.

    Raises:
        ValueError: The model's loss is not a number.
    """
    scores: dict[tuple[int, Row], RowScore] = {}
    apart: list[_Pass] = []
    together: dict[int, list[list[_Pass]]] = defaultdict(list)
    for number, request in enumerate(requests):
        passes = _plan_passes(number, request)
        if reuse_prefixes and len(passes) > 1 and _shared_length(passes) >= _SHORTEST_SHARED_PREFIX:
            together[len(passes)].append(passes)
        else:
            apart.extend(passes)

    with torch.no_grad():
        for families in together.values():
            for families_of_batch in _batches(families, [_shared_length(family) for family in families], batch_size):
                scores |= _score_families(model, families_of_batch, on_rows)
        for batch in _batches(apart, [len(single.tokens) for single in apart], batch_size):
            scores |= _score_passes(model, batch)
            on_rows(sum(len(single.rows) for single in batch))
    return [[scores[number, row] for row in request.rows] for number, request in enumerate(requests)]


def can_reuse_prefixes(model: PreTrainedModel) -> bool:
    """Tell whether several options can go on from one encoded prefix.

    Attention only appends to what it holds. A recurrent layer overwrites its state, so a model that has one reads
    every option whole.

    Args:
        model: The model; one token is run through it.

    Returns:
        True if its cache holds plain keys and values only.
    """
    with torch.no_grad():
        output = model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=True)
    cache = getattr(output, "past_key_values", None)
    return isinstance(cache, DynamicCache) and all(type(layer) in _REUSABLE_LAYERS for layer in cache.layers)


def judge(request: Request, scores: Sequence[RowScore]) -> Answer:
    """Choose an option by its scores, or check the one there is.

    Args:
        request: What was asked.
        scores: One per option.

    Returns:
        With one option, whether it is what the model would write; with several, whether the gold one has the lowest
        loss.

    >>> question = Request(rows=(Row((0, 1), 1), Row((0, 2), 1)), gold=1, truncated=False)
    >>> judge(question, [RowScore(2.5, False, False), RowScore(1.5, False, False)])
    Answer(correct=True, tied=False, truncated=False)
    """
    if len(scores) == 1:
        return Answer(scores[0].greedy, scores[0].tied, request.truncated)
    losses = [score.loss for score in scores]
    lowest = min(losses)
    return Answer(losses.index(lowest) == request.gold, losses.count(lowest) > 1, request.truncated)


# Group a request's rows by what has to be fed: all but the last token, from which nothing is predicted.
def _plan_passes(number: int, request: Request) -> list[_Pass]:
    rows_of: dict[tuple[int, ...], list[Row]] = defaultdict(list)
    for row in request.rows:
        rows_of[row.tokens[:-1]].append(row)
    return [_Pass(number, tokens, tuple(rows)) for tokens, rows in rows_of.items()]


# Count the tokens that a request's passes share and that come before all of their scored positions.
def _shared_length(family: Sequence[_Pass]) -> int:
    first_reading = min(row.start - 1 for single in family for row in single.rows)
    return min(common_prefix([single.tokens for single in family]), first_reading)


# Batches of items of like length, the longest first, so that memory that does not suffice is noticed at once.
def _batches(items: Sequence[_Item], lengths: Sequence[int], batch_size: int) -> Iterator[list[_Item]]:
    batch: list[_Item] = []
    longest = 0
    for index in sorted(range(len(items)), key=lambda index: -lengths[index]):
        spread = longest - lengths[index]
        if batch and (len(batch) == batch_size or spread > max(_BATCH_SPREAD * longest, _SHORTEST_SHARED_PREFIX)):
            yield batch
            batch = []
        if not batch:
            longest = lengths[index]
        batch.append(items[index])
    if batch:
        yield batch


# Score requests with as many passes each: encode what is shared once, then read the options one by one.
def _score_families(
    model: PreTrainedModel, families: Sequence[Sequence[_Pass]], on_rows: Callable[[int], object]
) -> dict[tuple[int, Row], RowScore]:
    length = min(_shared_length(family) for family in families)
    prefixes = [family[0].tokens[:length] for family in families]
    _, cache = _forward(model, prefixes, [], [], use_cache=True)
    scores: dict[tuple[int, Row], RowScore] = {}
    for option in zip(*families, strict=True):
        scores |= _score_passes(model, option, length, cache)
        on_rows(sum(len(single.rows) for single in option))
    return scores


# Score the rows of some passes, whose first `offset` tokens are in the cache.
def _score_passes(
    model: PreTrainedModel, passes: Sequence[_Pass], offset: int = 0, cache: DynamicCache | None = None
) -> dict[tuple[int, Row], RowScore]:
    readings = [(index, single.request, row) for index, single in enumerate(passes) for row in single.rows]
    sequence_of = [index for index, _, row in readings for _ in row.tokens[row.start :]]
    position_of = [at - 1 - offset for _, _, row in readings for at in range(row.start, len(row.tokens))]
    targets = torch.tensor([token for _, _, row in readings for token in row.tokens[row.start :]])

    suffixes = [single.tokens[offset:] for single in passes]
    logits, _ = _forward(model, suffixes, sequence_of, position_of, cache=cache)  # (scored tokens, vocabulary)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    targets = targets.to(logits.device)
    losses = nn.functional.cross_entropy(logits, targets, reduction="none")  # (scored tokens,)
    if losses.isnan().any():
        raise ValueError("the model's loss is not a number; its weights are damaged or its dtype overflows")
    highest = logits.amax(dim=-1)
    level = logits.gather(-1, targets[:, None]).squeeze(-1) == highest
    shared = level & ((logits == highest[:, None]).sum(dim=-1) > 1)
    greedy = logits.argmax(dim=-1) == targets

    counts = [len(row.tokens) - row.start for _, _, row in readings]
    per_row = zip(*(torch.split(x.cpu(), counts) for x in (losses.double(), greedy, level, shared)), strict=True)
    return {
        (request, row): RowScore(loss.mean().item(), bool(g.all()), bool(v.all() and s.any()))
        for (_, request, row), (loss, g, v, s) in zip(readings, per_row, strict=True)
    }


def _forward(
    model: PreTrainedModel,
    sequences: Sequence[tuple[int, ...]],
    sequence_of: Sequence[int],
    position_of: Sequence[int],
    *,
    cache: DynamicCache | None = None,
    use_cache: bool = False,
) -> tuple[Tensor, Any]:
    """Run the model on sequences padded on the right and return its logits at the positions asked for.

    Args:
        model: The model.
        sequences: Tokens, one sequence per batch member.
        sequence_of: Which sequence each wanted position is in.
        position_of: Index of each wanted position in its sequence.
        cache: Encoded tokens before the sequences; it is left as it is.
        use_cache: Whether to return a cache.

    Returns:
        Logits (positions, vocabulary), and the model's cache if it was asked for.
    """
    width = max(len(tokens) for tokens in sequences)
    # Any id can pad: what follows a token does not reach it.
    input_ids = torch.tensor([tokens + (0,) * (width - len(tokens)) for tokens in sequences], device=model.device)
    where = (torch.tensor(sequence_of, dtype=torch.long), torch.tensor(position_of, dtype=torch.long))

    selected = False

    def select(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        nonlocal selected
        selected = True
        return (_take(args[0], where),)  # (1, positions, width of the model)

    arguments = {} if cache is None else {"past_key_values": _snapshot(cache)}
    head = model.get_output_embeddings()
    hooks: Iterable[Any] = () if head is None else (head.register_forward_pre_hook(select),)
    try:
        output = model(input_ids=input_ids, use_cache=use_cache or cache is not None, **arguments)
    finally:
        for hook in hooks:
            hook.remove()
    logits = output.logits if selected else _take(output.logits, where)
    return logits.squeeze(0), output.past_key_values if use_cache else None


# Pick positions (sequence, index) out of (sequences, length, width) as one sequence (1, positions, width).
def _take(values: Tensor, where: tuple[Tensor, Tensor]) -> Tensor:
    rows, columns = (index.to(values.device) for index in where)
    return values[rows, columns].unsqueeze(0)


# Copy a cache without its tensors: a layer appends by making new ones, so the original keeps its own.
def _snapshot(cache: DynamicCache) -> DynamicCache:
    twin = copy(cache)
    twin.layers = [copy(layer) for layer in cache.layers]
    return twin
