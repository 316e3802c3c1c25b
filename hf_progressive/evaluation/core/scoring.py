"""Ask a causal language model about many prompts at once, with the answers it would give to one at a time.

Four things make it fast, and none of them changes what is computed:

- What the options of an example share is encoded once: the prompts of a batch are cut at one common length, the part
  before it is read into a key/value cache, and the rest is read once per option from that same cache. All prompts are
  cut at the same place, so nothing is padded on the left and no mask is needed: positions are the model's own,
  whatever kind they are. Options that differ in their last token only need no second reading at all.
- Reading the shared part stops where the last layer has its keys and values: what the layer makes of them would serve
  predictions that nobody asks for. This pays for examples of one option too.
- Sequences of like length are batched across examples, such that the tokens computed in vain and the number of batches
  weigh least together; padding stands on the right, where a causal model cannot see it.
- The output head runs on the scored positions alone.

Losses are computed in float32, or in float64 for a float64 model, and averaged in float64.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel

from hf_progressive.distributed.batching import bytes_per_token, cut_by_length, in_halves, token_budget
from hf_progressive.distributed.evaluation_mode import evaluation_mode
from hf_progressive.distributed.working_dtype import working_dtype
from hf_progressive.evaluation.core.forward import encode_prefixes, logits_at
from hf_progressive.evaluation.core.prompts import Request, Row, common_prefix
from hf_progressive.growth.divisors import unusable_value

_SHORTEST_SHARED_PREFIX = 16
"""Tokens that must be saved in an example before encoding what its options share is worth another forward pass."""

_LAST_LAYER_SHARE = 0.5
"""Part of a layer's work that reading a prefix saves in the last one, at least: its attention and its MLP."""

_BATCH_COST = {"cpu": 48, "cuda": 8192}
"""What a forward pass more costs, in tokens that could be read instead; on other devices as on the second."""

_CPU_TOKENS, _CPU_HELD = 4096, 32768
"""Tokens that a pass reads on a CPU, and those it holds as keys and values: more of them make it no faster."""


@dataclass(frozen=True, slots=True)
class RowScore:
    """What a model makes of one option."""

    loss: float
    """Mean negative log likelihood of the scored tokens, in nats."""
    greedy: bool
    """Whether every scored token is the arg max, the lowest token id winning a tie."""
    tied: bool
    """Whether every scored token has the highest logit and at least one has to share it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answers to one example."""

    correct: bool
    tied: bool
    """Whether it hung on an exact tie, which the first option, or the lowest token id, wins."""
    truncated: bool
    """Whether the prompt lost its beginning to the model's context."""


class _Pass(NamedTuple):
    """One sequence to feed, and the rows read off it: they differ in their last token at most."""

    request: int
    tokens: tuple[int, ...]
    rows: tuple[Row, ...]


def score_requests(
    model: PreTrainedModel,
    requests: Sequence[Request],
    *,
    batch_size: int | None = None,
    reuse_prefixes: bool,
    on_rows: Callable[[int], object] = lambda rows: None,
) -> list[list[RowScore]]:
    """Score every option of every request, given in any order; gradients are not recorded.

    Args:
        model: The model.
        requests: What to ask.
        batch_size: Sequences in one forward pass, at most; None for as many as the device's memory allows.
        reuse_prefixes: Encode shared contexts once; see `can_reuse_prefixes`.
        on_rows: Called after each batch with the number of options it scored.
    """
    scorer = _Scorer(model, batch_size, on_rows)
    scores: dict[tuple[int, Row], RowScore] = {}
    apart: list[_Pass] = []
    families: list[list[_Pass]] = []
    layers: int = getattr(model.config.get_text_config(), "num_hidden_layers", 1)
    for number, request in enumerate(requests):
        family = _plan_passes(number, request)
        saved = _shared_length(family) * (len(family) - 1 + _LAST_LAYER_SHARE / layers)
        if reuse_prefixes and saved >= _SHORTEST_SHARED_PREFIX:
            families.append(family)
        else:
            apart.extend(family)

    with evaluation_mode(model):
        for batch in scorer.cut_families(families):
            for part in in_halves(scorer.score_families, batch):
                scores |= part
        for passes in scorer.cut_passes(apart):
            for part in in_halves(scorer.score_passes, passes):
                scores |= part
    return [[scores[number, row] for row in request.rows] for number, request in enumerate(requests)]


def judge(request: Request, scores: Sequence[RowScore]) -> Answer:
    """Choose an option by its scores, or check the one there is.

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


class _Scorer:
    """Batches of passes through one model, and what it makes of them."""

    def __init__(self, model: PreTrainedModel, batch_size: int | None, on_rows: Callable[[int], object]) -> None:
        self._model = model
        self._on_rows = on_rows
        held, read = bytes_per_token(model)
        self._tokens = token_budget(model.device, held + read, on_cpu=_CPU_TOKENS)
        self._held = token_budget(model.device, 2 * held, on_cpu=_CPU_HELD)
        self._most = batch_size or self._held
        self._cost = _BATCH_COST.get(model.device.type, _BATCH_COST["cuda"])

    def cut_families(self, families: Sequence[Sequence[_Pass]]) -> Iterator[list[Sequence[_Pass]]]:
        batches = cut_by_length(
            [_shared_length(family) for family in families],
            weights=[len(family) for family in families],
            most=self._most,
            most_tokens=self._tokens,
            cost_of_batch=2 * self._cost,
        )
        return ([families[index] for index in batch] for batch in batches)

    def cut_passes(self, passes: Sequence[_Pass], offset: int = 0) -> Iterator[list[_Pass]]:
        # Each pass that goes on from a prefix has a copy of it in memory, and reads its own tokens only.
        tokens = self._held if offset else self._tokens
        batches = cut_by_length(
            [len(single.tokens) for single in passes], most=self._most, most_tokens=tokens, cost_of_batch=self._cost
        )
        return ([passes[index] for index in batch] for batch in batches)

    def score_families(self, families: Sequence[Sequence[_Pass]]) -> dict[tuple[int, Row], RowScore]:
        # Encode what the options of each request share once, then read on from there.
        length = min(_shared_length(family) for family in families)
        cache = encode_prefixes(self._model, [family[0].tokens[:length] for family in families])
        prefix_of = {family[0].request: index for index, family in enumerate(families)}
        scores: dict[tuple[int, Row], RowScore] = {}
        for batch in self.cut_passes([single for family in families for single in family], length):
            for part in in_halves(lambda passes: self.score_passes(passes, length, cache, prefix_of), batch):
                scores |= part
        return scores

    def score_passes(
        self,
        passes: Sequence[_Pass],
        offset: int = 0,
        cache: DynamicCache | None = None,
        prefix_of: Mapping[int, int] | None = None,
    ) -> dict[tuple[int, Row], RowScore]:
        # Score the rows of some passes, whose first `offset` tokens are in the cache.
        readings = [(index, single.request, row) for index, single in enumerate(passes) for row in single.rows]
        sequence_of = [index for index, _, row in readings for _ in row.tokens[row.start :]]
        position_of = [at - 1 - offset for _, _, row in readings for at in range(row.start, len(row.tokens))]
        targets = torch.tensor([token for _, _, row in readings for token in row.tokens[row.start :]])

        suffixes = [single.tokens[offset:] for single in passes]
        prefixes = [prefix_of[single.request] for single in passes] if prefix_of else []
        logits = logits_at(self._model, suffixes, sequence_of, position_of, cache=cache, prefix_of=prefixes)
        logits = logits.to(working_dtype(logits.dtype))  # (scored tokens, vocabulary)
        targets = targets.to(logits.device)
        losses = nn.functional.cross_entropy(logits, targets, reduction="none")  # (scored tokens,)
        if losses.isnan().any():
            fault = unusable_value(self._model.config) or "its weights are damaged or its dtype overflows"
            raise ValueError(f"the model's loss is not a number; {fault}")
        highest = logits.amax(dim=-1)
        level = logits.gather(-1, targets[:, None]).squeeze(-1) == highest
        shared = level & ((logits == highest[:, None]).sum(dim=-1) > 1)
        greedy = logits.argmax(dim=-1) == targets

        counts = [len(row.tokens) - row.start for _, _, row in readings]
        per_row = zip(*(torch.split(x.cpu(), counts) for x in (losses, greedy, level, shared)), strict=True)
        self._on_rows(len(readings))
        return {
            (request, row): RowScore(loss.double().mean().item(), bool(g.all()), bool(v.all() and s.any()))
            for (_, request, row), (loss, g, v, s) in zip(readings, per_row, strict=True)
        }
