"""Methods: where units and layers come from, and a method of one's own."""

from collections import defaultdict

import pytest
from growth_models import build, config_of, fields_of, grow, norms_in_full_precision, relative_difference, tokens_for
from hypothesis import given
from hypothesis import strategies as st

from hf_progressive.growth import methods
from hf_progressive.growth.growth_plan import plan_growth
from hf_progressive.growth.methods import (
    METHODS,
    GrowthOptions,
    UnitOrigin,
    append_units,
    insert_layers,
    interleave_layers,
    method_named,
    register_method,
    split_units,
    stack_layers,
    tile_units,
)


@pytest.mark.parametrize("rule", [append_units, tile_units, split_units])
@given(old=st.integers(1, 20), times=st.integers(1, 3), more=st.integers(0, 20))
def test_every_unit_of_the_parent_is_read_in_shares_that_add_up_to_one(rule, old, times, more):
    new = old * times + (0 if rule is tile_units else more)
    shares = defaultdict(float)
    units = rule(old, new)
    for unit in units:
        if unit.source is not None:
            shares[unit.source] += unit.share
    assert len(units) == new
    assert shares == pytest.approx(dict.fromkeys(range(old), 1.0))


def test_copies_of_a_split_unit_are_read_unevenly():
    shares = defaultdict(list)
    for unit in split_units(3, 11):
        shares[unit.source].append(unit.share)
    assert all(len(set(copies)) == len(copies) for copies in shares.values())


def test_tiling_to_no_multiple_is_refused_with_the_nearest_multiples():
    with pytest.raises(ValueError, match=r"whole multiples: 6 → 15 is none; take 12 or 18"):
        tile_units(6, 15)


@pytest.mark.parametrize(
    ("position", "new", "sources"),
    [
        ("append", 5, [0, 1, 2, 1, 2]),
        ("append", 8, [0, 1, 2, 0, 1, 2, 0, 1]),
        ("spread", 4, [0, 1, 2, 2]),
        ("spread", 6, [0, 0, 1, 1, 2, 2]),
        ("spread", 8, [0, 0, 0, 1, 1, 1, 2, 2]),
        ([0, -1], 5, [0, 0, 0, 1, 2]),
        ([1, 1], 5, [0, 1, 1, 1, 2]),
    ],
)
def test_inserted_layers_copy_the_layer_before_them_and_are_silent(position, new, sources):
    layers = insert_layers(3, new, GrowthOptions(depth_position=position))
    assert [layer.source for layer in layers] == sources
    assert [layer.source for layer in layers if layer.heir] == [0, 1, 2]
    assert all(layer.silent != layer.heir for layer in layers)


def test_fresh_layers_copy_nothing():
    layers = insert_layers(2, 4, GrowthOptions(new_layers="fresh"))
    assert [layer.source for layer in layers] == [0, 1, None, None]


@pytest.mark.parametrize("position", [[0], [0, 3], [0, 1, 2]])
def test_positions_that_do_not_fit_are_refused(position):
    with pytest.raises(ValueError, match=r"expected 2 of the parent's layers −1 … 2, one per new layer"):
        insert_layers(3, 5, GrowthOptions(depth_position=position))


def test_stacking_repeats_the_stack_and_interleaving_every_layer():
    assert [layer.source for layer in stack_layers(3, 7, GrowthOptions())] == [0, 1, 2, 0, 1, 2, 0]
    assert [layer.source for layer in interleave_layers(3, 7, GrowthOptions())] == [0, 0, 0, 1, 1, 2, 2]
    for rule in (stack_layers, interleave_layers):
        layers = rule(3, 7, GrowthOptions())
        assert [layer.source for layer in layers if layer.heir] == [0, 1, 2]
        assert not any(layer.silent for layer in layers)


@pytest.mark.parametrize("rule", [stack_layers, interleave_layers])
@pytest.mark.parametrize("options", [{"depth_position": "spread"}, {"new_layers": "fresh"}])
def test_options_that_a_method_cannot_follow_are_refused(rule, options):
    with pytest.raises(ValueError, match=r"repeat layers in their own order, leave them out"):
        rule(2, 4, GrowthOptions(**options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth_position": "front"}, r"depth_position='front': expected 'append', 'spread' or a list"),
        ({"new_layers": "zero"}, r"new_layers='zero': expected 'copy' or 'fresh'"),
        ({"init_std": -1.0}, r"init_std=-1.0: expected a number ≥ 0"),
        ({"noise": -1.0}, r"noise=-1.0: expected a number ≥ 0"),
        ({"vocab_multiple": 0}, r"vocab_multiple=0: expected a number ≥ 1"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GrowthOptions(**options)


def test_an_unknown_method_is_refused_with_those_known():
    with pytest.raises(ValueError, match=r"growth method 'exat' is not known; choose one of exact, tile"):
        method_named("exat")


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match=r"a growth method 'exact' exists already"):
        register_method("exact", summary="another")


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            {"width": lambda old, new: [UnitOrigin(0, 1 / new)] * new},
            r"^width: the method 'own' gives 24 units of 24, and shares of the 16 old ones that add up to 0 … 1; they",
        ),
        ({"width": append_units, "depth": lambda old, new, options: []}, r"^layers: the method 'own' gives 0 of 3"),
    ],
)
def test_a_method_of_ones_own_that_loses_units_or_layers_is_refused(monkeypatch, rules, message):
    monkeypatch.setattr(methods, "METHODS", dict(METHODS))
    register_method("own", summary="careless", **rules)
    with pytest.raises(ValueError, match=message):
        plan_growth(config_of("gpt2"), {"n_embd": 24, "n_head": 3, "n_layer": 3}, method="own")


def test_a_method_of_ones_own_takes_a_few_lines_and_is_exact(monkeypatch):
    monkeypatch.setattr(methods, "METHODS", dict(METHODS))

    def reversed_units(old, new):
        return [UnitOrigin(unit) if unit < old else UnitOrigin() for unit in reversed(range(new))]

    register_method("reversed", summary="new units in front of the old, in reverse", width=reversed_units)

    for model_type in ("gpt2", "llama"):
        parent = build(config_of(model_type, heads=2, width=16))
        target = fields_of(model_type, width=24, heads=3, kv_heads=3, mlp=31)
        child, plan = grow(parent, target, method="reversed", init_std=0.5)
        assert plan.preserves_function
        with norms_in_full_precision(parent, child):
            assert relative_difference(parent, child, tokens_for(parent.config)) < 1e-12
