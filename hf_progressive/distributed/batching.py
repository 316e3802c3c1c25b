"""Batches as large as a device's memory allows, and smaller ones where it turns out not to suffice."""

import errno
import gc
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

_CPU_BYTES = 2**30
"""Memory that a batch on a CPU takes, at most: it is shared with everything else that runs there."""

_MOST_TOKENS = 2**18
"""Tokens of a forward pass on an accelerator, at most: more of them do not make it any faster."""

_USED_SHARE = 0.5
"""Share of the free memory that a batch is meant to take; what the count leaves out has the rest."""


_ASKED = re.compile(r"DefaultCPUAllocator: .*memory: you tried to allocate (\d+) bytes")
"""What torch says where the CPU's memory does not suffice, by a bare RuntimeError."""


def cpu_shortage(error: BaseException) -> str | None:
    """Say that the machine's memory did not suffice, and for how much if that is known; None of any other error.

    >>> cpu_shortage(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes."))
    "the machine's memory does not suffice: 4,096 bytes more were asked for"
    """
    if asked := _ASKED.search(str(error)) if isinstance(error, RuntimeError) else None:
        return f"the machine's memory does not suffice: {int(asked[1]):,} bytes more were asked for"
    if isinstance(error, MemoryError):
        return str(error) or "the machine's memory does not suffice"
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return "the machine's memory does not suffice"
    return None


def token_budget(device: torch.device, bytes_per_token: int, *, on_cpu: int) -> int:
    """Choose how many tokens, at least 1, a forward pass without gradients reads or holds.

    On an accelerator they are as many as fit into what is free of the memory; on a CPU `on_cpu`, where larger batches
    gain nothing, if they fit.
    """
    if device.type != "cuda":
        return max(1, min(on_cpu, _CPU_BYTES // max(1, bytes_per_token)))
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(1, min(_MOST_TOKENS, int(_USED_SHARE * free) // max(1, bytes_per_token)))


def bytes_per_token(model: PreTrainedModel) -> tuple[int, int]:
    """Estimate what a forward pass without gradients holds for each token.

    Returns:
        Bytes as keys and values of all layers, and those of the widest activations, logits left out.
    """
    config = model.config.get_text_config()
    width: int = config.hidden_size
    inner: int = getattr(config, "intermediate_size", None) or 4 * width
    layers: int = config.num_hidden_layers
    return 2 * layers * width * model.dtype.itemsize, (8 * width + 4 * inner) * model.dtype.itemsize


def sequences_that_fit(model: PreTrainedModel, length: int, *, on_cpu: int, gradients: bool = False) -> int:
    """Choose how many sequences, at least 1, to read at once, with the logits of every token.

    `on_cpu` is the number on a CPU. A backward pass (`gradients`) needs every layer's activations.
    """
    if model.device.type != "cuda":
        return on_cpu
    held, read = bytes_per_token(model)
    config = model.config.get_text_config()
    layers = 2 * config.num_hidden_layers if gradients else 1  # each keeps its activations, and gets their gradients
    logits = 4 * 4 * config.vocab_size  # in float32: they, their logarithms of probabilities, and gradients or copies
    return max(1, token_budget(model.device, held + layers * read + logits, on_cpu=1) // length)


def with_fewer(compute: Callable[[int], Result], most: int) -> Result:
    """Compute with so many sequences at a time, or where memory does not suffice with half as many, and so on.

    For what cannot be continued in the middle: it starts again from the beginning.

    Raises:
        torch.OutOfMemoryError: Memory does not suffice for one sequence at a time.
    """
    while True:
        try:
            return compute(most)
        except torch.OutOfMemoryError:
            if most == 1:
                raise
        release_memory()
        logger.info("not enough memory for %d sequences at once; starting again with %d", most, most // 2)
        most //= 2


def in_halves(compute: Callable[[Sequence[Item]], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Compute on all items, or where the device's memory does not suffice on each half of them, and so on.

    There is at least one item. `compute` must be able to start again after it failed.

    Yields:
        What it returned, of consecutive parts of the items.

    Raises:
        torch.OutOfMemoryError: Memory does not suffice for a single item.

    >>> def at_most_two(items):
    ...     if len(items) > 2:
    ...         raise torch.OutOfMemoryError
    ...     return sum(items)
    >>> list(in_halves(at_most_two, [1, 2, 3, 4, 5]))
    [3, 3, 9]
    """
    try:
        result = compute(items)
    except torch.OutOfMemoryError:
        if len(items) == 1:
            raise
        failed = True
    else:
        failed = False
    if not failed:
        yield result
        return
    # Out here nothing holds the failed pass's tensors any more.
    release_memory()
    middle = len(items) // 2
    logger.info("not enough memory for %d at once; going on with %d", len(items), len(items) - middle)
    for part in (items[:middle], items[middle:]):
        yield from in_halves(compute, part)


def release_memory() -> None:
    """Give the memory that no tensor holds any more back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def cut_by_length(
    lengths: Sequence[int],
    *,
    weights: Sequence[int] | None = None,
    most: int,
    most_tokens: int,
    cost_of_batch: int,
) -> list[list[int]]:
    """Group sequences into batches such that least is computed in vain.

    The batches are optimal among those of neighbours in order of length, by dynamic programming: each costs
    `cost_of_batch`, and each sequence the tokens between its own length and the batch's, times its weight.

    Args:
        lengths: Of the sequences.
        weights: How often the difference of a sequence to its batch's shortest member is computed. None where the
            sequences are padded to the batch's longest instead.
        most: Sequences of a batch, at most.
        most_tokens: Sequences of a batch times the longest's length, at most, except for one alone.
        cost_of_batch: What a batch more costs, in tokens.

    Returns:
        Indices of each batch's members, the longest first, as are the batches.

    >>> cut_by_length([5, 90, 6, 100, 91], most=8, most_tokens=1000, cost_of_batch=20)
    [[3, 4, 1], [2, 0]]
    >>> cut_by_length([5, 90, 6, 100, 91], most=8, most_tokens=200, cost_of_batch=20)
    [[3], [4, 1], [2, 0]]
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    best: list[tuple[float, int]] = [(0.0, 0)]  # for the first n: what they cost, and where their last batch begins
    for end in range(1, len(order) + 1):
        shortest = lengths[order[end - 1]]
        wasted, cheapest = 0, (float("inf"), end - 1)
        for begin in range(end - 1, max(end - 1 - most, -1), -1):
            longest, count = lengths[order[begin]], end - begin
            if count > 1 and longest * count > most_tokens:
                break
            if weights is not None:
                wasted += weights[order[begin]] * (longest - shortest)
            elif count > 1:
                wasted += (count - 1) * (longest - lengths[order[begin + 1]])
            if wasted > count * cost_of_batch:  # even alone they would cost less
                break
            cheapest = min(cheapest, (best[begin][0] + wasted + cost_of_batch, begin))
        best.append(cheapest)
    batches, end = [], len(order)
    while end:
        begin = best[end][1]
        batches.append(order[begin:end])
        end = begin
    return batches[::-1]
