"""Batches against an exhaustive search for the cheapest; halves that come out as the whole."""

import itertools

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hf_progressive.distributed.batching import cut_by_length, in_halves, token_budget, with_fewer


def cost(lengths, weights, batches, cost_of_batch):
    total = 0
    for batch in batches:
        own = [lengths[index] for index in batch]
        if weights is None:
            total += sum(max(own) - length for length in own)
        else:
            total += sum(weights[index] * (lengths[index] - min(own)) for index in batch)
        total += cost_of_batch
    return total


@settings(max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=7),
    weighted=st.booleans(),
    most=st.integers(1, 7),
    most_tokens=st.integers(1, 200),
    cost_of_batch=st.integers(0, 30),
)
@example(
    lengths=[9, 5, 1], weighted=False, most=7, most_tokens=200, cost_of_batch=10
)  # more in vain than a batch costs
def test_no_way_to_cut_costs_less(lengths, weighted, most, most_tokens, cost_of_batch):
    weights = [1 + index % 3 for index in range(len(lengths))] if weighted else None
    limits = {"most": most, "most_tokens": most_tokens, "cost_of_batch": cost_of_batch}
    batches = cut_by_length(lengths, weights=weights, **limits)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) <= most
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= most_tokens

    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    costs = []
    for cuts in itertools.product([False, True], repeat=len(lengths) - 1):
        ends = [0, *(at + 1 for at, cut in enumerate(cuts) if cut), len(lengths)]
        other = [order[begin:end] for begin, end in itertools.pairwise(ends)]
        fits = [
            len(part) == 1 or (len(part) <= most and len(part) * lengths[part[0]] <= most_tokens) for part in other
        ]
        if all(fits):
            costs.append(cost(lengths, weights, other, cost_of_batch))
    assert cost(lengths, weights, batches, cost_of_batch) == min(costs)


def test_halves_go_on_in_order_and_one_item_too_large_is_an_error():
    def up_to_three(items):
        if len(items) > 3 or 99 in items:
            raise torch.OutOfMemoryError
        return list(items)

    assert list(in_halves(up_to_three, range(10))) == [[0, 1], [2, 3, 4], [5, 6], [7, 8, 9]]
    with pytest.raises(torch.OutOfMemoryError):
        list(in_halves(up_to_three, [1, 99]))


def test_a_cpu_s_budget_is_what_suffices_there_or_what_takes_a_gibibyte():
    cpu = torch.device("cpu")
    assert token_budget(cpu, 1000, on_cpu=4096) == 4096
    assert token_budget(cpu, 2**20, on_cpu=4096) == 1024
    assert token_budget(cpu, 2**40, on_cpu=4096) == 1


def test_what_cannot_be_continued_starts_again_with_half_as_many():
    tried = []

    def up_to_three(size):
        tried.append(size)
        if size > 3:
            raise torch.OutOfMemoryError
        return size

    assert with_fewer(up_to_three, 20) == 2
    assert tried == [20, 10, 5, 2]
    with pytest.raises(torch.OutOfMemoryError):
        with_fewer(lambda size: up_to_three(size + 3), 4)
