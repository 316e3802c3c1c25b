"""Forward passes that compute what is asked for and little else: prefixes once, and logits where they are needed."""

import contextlib
from collections.abc import Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from hf_progressive.distributed.evaluation_mode import evaluation_mode
from hf_progressive.distributed.model_tables import require_within_tables

_REUSABLE_LAYERS = (DynamicLayer, DynamicSlidingWindowLayer)
"""Cache layers that append keys and values without changing those they hold. Recurrent states are not among them."""


class _Encoded(Exception):
    """Raised inside a forward pass when there is nothing left that the cache will hold."""


class _PrefixCache(DynamicCache):
    """A cache that ends the forward pass as soon as every layer has its keys and values.

    What the last layer does with them, most of its work, would only serve predictions.
    """

    def __init__(self, config: PretrainedConfig, length: int) -> None:
        super().__init__(config=config)
        self._length = length

    def update(self, *args: Any, **kwargs: Any) -> Any:
        states = super().update(*args, **kwargs)
        if all(layer.get_seq_length() == self._length for layer in self.layers):
            raise _Encoded
        return states


def can_reuse_prefixes(model: PreTrainedModel) -> bool:
    """Tell whether several options can go on from one encoded prefix.

    Attention only appends to what it holds. A recurrent layer overwrites its state, so a model that has one reads
    every option whole.
    """
    with evaluation_mode(model):
        output = model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=True)
    cache = getattr(output, "past_key_values", None)
    if not isinstance(cache, DynamicCache):
        return False
    kinds = [type(layer) for layer in cache.layers]
    # A cache made from the configuration has to be the one that the model makes for itself.
    own = [type(layer) for layer in DynamicCache(config=model.config).layers]
    return set(kinds) <= set(_REUSABLE_LAYERS) and kinds == own


def encode_prefixes(model: PreTrainedModel, prefixes: Sequence[tuple[int, ...]]) -> DynamicCache:
    """Read prefixes of one length into a cache of keys and values."""
    cache = _PrefixCache(model.config, len(prefixes[0]))
    input_ids = _ids_of(model, prefixes)
    with contextlib.suppress(_Encoded):
        model(input_ids=input_ids, past_key_values=cache, use_cache=True)
    plain = DynamicCache(config=model.config)
    plain.layers = cache.layers
    return plain


def logits_at(
    model: PreTrainedModel,
    sequences: Sequence[tuple[int, ...]],
    sequence_of: Sequence[int],
    position_of: Sequence[int],
    *,
    cache: DynamicCache | None = None,
    prefix_of: Sequence[int] = (),
) -> Tensor:
    """Run the model on sequences padded on the right and return its logits at the positions asked for.

    The output head runs on these positions alone. A hook selects them on the way into it, so that whatever a model
    does to its logits afterwards (scaling, soft capping) is done as usual. Under autocast the head keeps the precision
    of its own weights: logits in bfloat16 would tie.

    Args:
        model: The model.
        sequences: Tokens, one sequence per batch member.
        sequence_of: Which sequence each wanted position is in.
        position_of: Index of each wanted position in its sequence.
        cache: Encoded prefixes; it is left as it is.
        prefix_of: Which of the prefixes stands before each sequence.

    Returns:
        Logits (positions, vocabulary).
    """
    width = max(len(tokens) for tokens in sequences)
    # Any id can pad: what follows a token does not reach it.
    input_ids = _ids_of(model, [tokens + (0,) * (width - len(tokens)) for tokens in sequences])
    where = (torch.tensor(sequence_of, dtype=torch.long), torch.tensor(position_of, dtype=torch.long))

    in_head = contextlib.ExitStack()
    selected = False

    def select(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        nonlocal selected
        selected = True
        states = _take(args[0], where)  # (1, positions, width of the model)
        if torch.is_autocast_enabled(states.device.type):
            states = states.to(head.weight.dtype)
        in_head.enter_context(torch.autocast(states.device.type, enabled=False))
        return (states,)

    arguments = {} if cache is None else {"past_key_values": _select(cache, prefix_of)}
    head = model.get_output_embeddings()
    with contextlib.ExitStack() as hooks:
        if head is not None:
            hooks.enter_context(head.register_forward_pre_hook(select))
            hooks.enter_context(head.register_forward_hook(lambda *_: in_head.close(), always_call=True))
        output = model(input_ids=input_ids, use_cache=cache is not None, **arguments)
    logits = output.logits if selected else _take(output.logits, where)
    return logits.squeeze(0)


# Ids on the model's device, once they are known to be ids of its own: on a GPU others end the process's use of it.
def _ids_of(model: PreTrainedModel, sequences: Sequence[tuple[int, ...]]) -> Tensor:
    ids = torch.tensor(sequences)
    require_within_tables(model, ids, "the tasks' texts", length=0)
    return ids.to(model.device)


# Pick positions (sequence, index) out of (sequences, length, width) as one sequence (1, positions, width).
def _take(values: Tensor, where: tuple[Tensor, Tensor]) -> Tensor:
    rows, columns = (index.to(values.device) for index in where)
    return values[rows, columns].unsqueeze(0)


# Copy a cache with some of its sequences, each as often as it is named.
def _select(cache: DynamicCache, chosen: Sequence[int]) -> DynamicCache:
    selection = copy(cache)
    selection.layers = [copy(layer) for layer in cache.layers]
    for layer in selection.layers:
        # A layer appends by making new tensors, so the original keeps its own.
        layer.batch_select_indices(torch.tensor(chosen, device=layer.keys.device))
    return selection
