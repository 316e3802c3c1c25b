"""Methods: where units and layers come from, and a method of one's own."""

from collections import defaultdict
from dataclasses import replace

import pytest
from growth_models import build, config_of, fields_of, grow, norms_in_full_precision, relative_difference, tokens_for
from hypothesis import given
from hypothesis import strategies as st

from hf_progressive.growth import methods
from hf_progressive.growth.growth_plan import plan_growth
from hf_progressive.growth.layers import (
    insert_after_groups,
    insert_layers,
    interleave_layers,
    overlap_layers,
    stack_layers,
)
from hf_progressive.growth.methods import DEPTH_METHODS, METHODS, method_named, register_method
from hf_progressive.growth.options import GrowthOptions
from hf_progressive.growth.units import UnitOrigin, append_units, split_units, tile_units, uneven_shares


@pytest.mark.parametrize("rule", [append_units, tile_units, split_units, uneven_shares(tile_units, 0.9)])
@given(old=st.integers(1, 20), times=st.integers(1, 3), more=st.integers(0, 20))
def test_every_unit_of_the_parent_is_read_in_shares_that_add_up_to_one(rule, old, times, more):
    new = old * times + (more if rule in (append_units, split_units) else 0)
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


def test_drawn_shares_differ_from_unit_to_unit_within_their_bounds_and_are_drawn_once():
    for spread in (0.0, 0.2, 0.9):
        units = uneven_shares(tile_units, spread)(50, 100)
        shares = {unit.share for unit in units}
        assert all((1 - spread) / 2 <= share <= (1 + spread) / 2 for share in shares)
        assert len(shares) == (100 if spread else 1)
        assert units == uneven_shares(tile_units, spread)(50, 100)
    assert [unit.share for unit in uneven_shares(append_units, 0.9)(3, 5)] == [1.0] * 5


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


def test_llama_pro_puts_a_silent_copy_after_the_last_layer_of_each_group():
    layers = insert_after_groups(
        8, 12, GrowthOptions()
    )  # the paper's 32 → 40 in small: groups of 2, a block after each
    assert [layer.source for layer in layers] == [0, 1, 1, 2, 3, 3, 4, 5, 5, 6, 7, 7]
    assert [index for index, layer in enumerate(layers) if layer.silent] == [2, 5, 8, 11]
    with pytest.raises(ValueError, match=r"depth_position='spread': 'llama_pro' has its own places; leave it out"):
        insert_after_groups(8, 12, GrowthOptions(depth_position="spread"))


def test_solar_drops_the_last_layers_of_one_copy_and_the_first_of_another():
    layers = overlap_layers(32, 48, GrowthOptions())  # the paper's sizes
    assert [layer.source for layer in layers] == [*range(24), *range(8, 32)]
    assert [layer.source for layer in overlap_layers(3, 4, GrowthOptions())] == [0, 1, 1, 2]
    assert [layer.source for layer in layers if layer.heir] == [*range(32)]
    with pytest.raises(ValueError, match=r"'solar' at most doubles them: 3 → 7; take 6, or the method 'stack'"):
        overlap_layers(3, 7, GrowthOptions())


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


@pytest.mark.parametrize("rule", [stack_layers, interleave_layers, overlap_layers])
@pytest.mark.parametrize("options", [{"depth_position": "spread"}, {"new_layers": "fresh"}])
def test_options_that_a_method_cannot_follow_are_refused(rule, options):
    with pytest.raises(ValueError, match=r"repeat layers in their own order, leave them out"):
        rule(2, 4, GrowthOptions(**options))


def test_an_unknown_depth_method_is_refused_with_those_known_and_where_no_layer_is_inherited():
    with pytest.raises(ValueError, match=r"depth_method='stak' is not known; choose one of insert, llama_pro, stack"):
        method_named("tile").with_options(GrowthOptions(depth_method="stak"))
    with pytest.raises(ValueError, match=r"depth_method='stack': 'random' inherits no layers; leave it out"):
        method_named("random").with_options(GrowthOptions(depth_method="stack"))


def test_a_method_of_a_depth_rule_alone_is_that_depth_method_of_exact():
    for name, (rule, keeps) in DEPTH_METHODS.items():
        method = METHODS["exact" if name == "insert" else name]
        assert (method.depth, method.keeps_depth) == (rule, keeps)
        assert replace(
            METHODS["exact"].with_options(GrowthOptions(depth_method=name)), summary="", name=""
        ) == replace(method, summary="", name="")


def test_an_unknown_method_is_refused_with_those_known():
    with pytest.raises(ValueError, match=r"growth method 'exat' is not known; did you mean 'exact'\? There are ex"):
        method_named("exat")
    with pytest.raises(ValueError, match=r"choose one of exact, .*upcycle; add one from Python with register_method$"):
        method_named("my_own")


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


def test_a_share_of_repeated_layers_is_refused_where_none_is_repeated():
    for method, options in (("exact", {}), ("llama_pro", {}), ("stack", {"depth_method": "insert"})):
        with pytest.raises(ValueError, match=r"repeats='shared': only stack, interleave and solar repeat"):
            method_named(method).with_options(GrowthOptions(repeats="shared", **options))
    assert not method_named("exact").with_options(GrowthOptions(repeats="shared", depth_method="stack")).keeps_depth
