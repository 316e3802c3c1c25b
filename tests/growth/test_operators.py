"""Tensor rules against dense matrices."""

import pytest
import torch
from growth_models import map_matrix
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_progressive.distributed.working_dtype import working_dtype
from hf_progressive.growth import operators
from hf_progressive.growth.axis import Axis, Dim, Segment, joined
from hf_progressive.growth.operators import Fresh, add_noise, fill_new, inherited_rms, place


@st.composite
def axes(draw, parent_size=None):
    """Any axis: units in any order, copied, dropped or new, with any factors."""
    size = parent_size or draw(st.integers(1, 6))
    factor = st.floats(0.25, 4.0)
    segments = []
    for _ in range(draw(st.integers(1, 5))):
        source = draw(st.one_of(st.none(), st.integers(0, size - 1)))
        length = draw(st.integers(1, 3 if source is None else size - source))
        segments.append(Segment(length, source=source, write=draw(factor), read=draw(factor)))
    return Axis.of(size, segments)


@pytest.mark.parametrize("many_blocks", [0, 512])
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(output=axes(), source=axes(), power=st.integers(0, 2))
def test_inherited_entries_are_those_of_a_product_of_matrices(monkeypatch, many_blocks, output, source, power):
    monkeypatch.setattr(operators, "_MANY_BLOCKS", many_blocks)  # above it they are placed unit by unit
    parent = torch.randn(output.parent_size, source.parent_size, dtype=torch.float64)
    child = torch.zeros(output.size, source.size, dtype=torch.float64)

    place(parent, (Dim(output, "write"), Dim(source, "read")), power=power, out=child)

    if power == 0:
        expected = map_matrix(output, "write") @ parent @ map_matrix(source, "read").T
    else:
        expected = map_matrix(output, "read") ** power @ parent @ (map_matrix(source, "write") ** power).T
    torch.testing.assert_close(child, expected, rtol=1e-14, atol=0)


@settings(max_examples=40)
@given(axes())
def test_merging_changes_no_unit_and_leaves_nothing_to_merge(axis):
    split = [
        Segment(1, s.source if s.source is None else s.source + unit, s.write, s.read)
        for s in axis.segments
        for unit in range(s.size)
    ]
    assert Axis.of(axis.parent_size, split) == axis
    assert not any(
        after.follows(before, before.size) for before, after in zip(axis.segments, axis.segments[1:], strict=False)
    )


@settings(max_examples=40)
@given(axes(), axes())
def test_a_joined_axis_is_block_diagonal(first, second):
    expected = torch.block_diag(map_matrix(first, "write"), map_matrix(second, "write"))
    assert torch.equal(map_matrix(joined([first, second]), "write"), expected)


def filled(written_as="fresh", read_as="fresh", fresh=None, **others) -> torch.Tensor:
    output = Axis.of(3, [Segment(3, source=0), Segment(2, written_as=written_as)])
    source = Axis.of(4, [Segment(4, source=0), Segment(3, read_as=read_as)])
    child = torch.full((5, 7), torch.nan, dtype=torch.float64)
    parent = torch.arange(12.0, dtype=torch.float64).view(3, 4)
    dims = (Dim(output, "write"), Dim(source, "read"))
    place(parent, dims, power=0, out=child)
    fill_new(child, dims, fresh=fresh or Fresh(std=1.0), generator=torch.Generator().manual_seed(0), **others)
    assert torch.equal(child[:3, :4], parent)
    return child


def test_new_outputs_hold_the_mean_over_outputs_for_every_input():
    child = filled(written_as="mean")
    torch.testing.assert_close(child[3:], child[:3].mean(0).expand(2, -1))


def test_a_mean_counts_every_copy_of_a_unit():
    axis = Axis.of(2, [Segment(2, source=0), Segment(1, source=0), Segment(1, written_as="mean")])
    child = torch.empty(4)
    place(torch.tensor([3.0, 6.0]), (Dim(axis, "write"),), power=0, out=child)
    fill_new(child, (Dim(axis, "write"),), fresh=Fresh(), generator=torch.Generator())
    assert child.tolist() == [3.0, 6.0, 3.0, 4.0]


def test_zero_outputs_win_over_fresh_inputs():
    child = filled(written_as="zero", read_as="fresh")
    assert not child[3:].any()
    assert child[:3, 4:].all()


def test_fresh_outputs_win_over_zero_inputs():
    child = filled(written_as="fresh", read_as="zero")
    assert not child[:3, 4:].any()
    assert child[3:].all()


def test_near_the_mean_is_the_mean_plus_fresh_noise():
    exact = filled(written_as="near_mean", read_as="zero", fresh=Fresh())
    near = filled(written_as="near_mean", read_as="zero", fresh=Fresh(std=1e-3))
    torch.testing.assert_close(exact[3:], exact[:3].mean(0).expand(2, -1))
    assert 0 < (near - exact)[3:].abs().max() < 1e-2


def test_what_is_fixed_at_zero_or_the_mean_carries_what_is_added_to_it():
    for fill, expected in (("zero", torch.zeros(2, 4)), ("mean", torch.arange(12.0).view(3, 4).mean(0).expand(2, -1))):
        added = filled(written_as=fill, silent=Fresh(std=1e-3))[3:, :4] - expected
        assert added.all(), fill
        assert added.abs().max() < 1e-2


def test_the_root_mean_square_is_that_of_inherited_entries():
    axis = Axis.of(2, [Segment(2, source=0), Segment(3), Segment(1, source=0)])
    child = torch.zeros(6, 4)
    place(torch.ones(2, 4), (Dim(axis, "write"), Dim(Axis.unchanged(4), "read")), power=0, out=child)
    assert inherited_rms(child, (Dim(axis, "write"), Dim(Axis.unchanged(4), "read"))) == pytest.approx(1.0)


def test_fresh_entries_have_the_distribution_asked_for():
    drawn = Fresh(mean=1.0, std=0.02).draw((200, 200), torch.float32, torch.Generator().manual_seed(0))
    assert drawn.mean().item() == pytest.approx(1.0, abs=1e-3)
    assert drawn.std().item() == pytest.approx(0.02, rel=0.02)


@settings(max_examples=30)
@given(axes(), st.integers(0, 2**16))
def test_noise_adds_up_to_zero_over_the_copies_of_a_unit(axis, seed):
    noise = torch.zeros(3, axis.size, dtype=torch.float64)
    dims = (Dim(Axis.unchanged(3), "write"), Dim(axis, "read"))
    add_noise(noise, dims, 1.0, torch.Generator().manual_seed(seed))

    matrix = (map_matrix(axis, "write") != 0).double()
    torch.testing.assert_close(noise @ matrix, torch.zeros(3, axis.parent_size, dtype=torch.float64))
    copied = matrix.sum(0)[matrix.argmax(1)] * matrix.any(1) > 1
    assert torch.equal(noise.any(0), copied)


def test_half_precision_is_grown_in_single():
    assert {working_dtype(dtype) for dtype in (torch.bfloat16, torch.float16, torch.float32)} == {torch.float32}
    assert working_dtype(torch.float64) == torch.float64
