"""Sums of squares of per-sample gradients against dense formulas."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_progressive.estimation import per_sample
from hf_progressive.estimation.layer_rules import ProductPart, RowPart, WholePart
from hf_progressive.estimation.per_sample import add_squares


def part_and_gradient(kind, sequences, length, rows, columns, generator):
    """One part, and the dense gradients it stands for, (B, rows, columns)."""
    values = torch.randn(sequences, length, columns, dtype=torch.float64, generator=generator)
    if kind == "product":
        left = torch.randn(sequences, length, rows, dtype=torch.float64, generator=generator)
        return ProductPart(left, values), torch.einsum("btr,btc->brc", left, values)
    if kind == "whole":
        whole = torch.randn(sequences, rows, columns, dtype=torch.float64, generator=generator)
        return WholePart(whole), whole
    numbers = torch.randint(rows, (sequences, length), generator=generator)
    dense = torch.zeros(sequences, rows, columns, dtype=torch.float64)
    for b in range(sequences):
        for t in range(length):
            dense[b, numbers[b, t]] += values[b, t]
    return RowPart(numbers, values), dense


@settings(max_examples=40)
@given(
    kinds=st.lists(st.sampled_from(["product", "row", "whole"]), min_size=1, max_size=3),
    sequences=st.integers(1, 5),
    length=st.integers(1, 6),
    rows=st.integers(1, 9),
    columns=st.integers(1, 7),
    entries=st.integers(1, 120),
    seed=st.integers(0, 99),
)
def test_tiles_of_any_size_give_the_dense_result(kinds, sequences, length, rows, columns, entries, seed):
    generator = torch.Generator().manual_seed(seed)
    pairs = [part_and_gradient(kind, sequences, length, rows, columns, generator) for kind in kinds]
    total = torch.ones(rows, columns, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(per_sample._TILE_ENTRIES, "cpu", entries)
        add_squares(total, [part for part, _ in pairs], sequences)
    expected = 1 + sum(dense for _, dense in pairs).square().sum(0)
    torch.testing.assert_close(total, expected)


def test_memory_stays_below_the_gradients_of_all_sequences():
    sequences, length, width = 64, 4, 512
    part = ProductPart(torch.randn(sequences, length, width), torch.randn(sequences, length, width))
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.numel())
            return result

    total = torch.zeros(width, width)
    with Watch():
        add_squares(total, [part], sequences)
    assert largest <= per_sample._TILE_ENTRIES["cpu"] < sequences * total.numel()
