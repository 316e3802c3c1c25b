"""Width and depth in one growth, each by its own rule, against stock models of the parent's width built by hand."""

import itertools

import pytest
import torch
from growth_models import (
    EVERY_FAMILY,
    build,
    config_of,
    fields_of,
    grow,
    layers_of,
    norms_in_full_precision,
    relative_difference,
    tokens_for,
)

from hf_progressive.growth.growth_plan import plan_growth
from hf_progressive.growth.methods import DEPTH_METHODS

WIDTH_METHODS = {
    "exact": {"width": 24, "heads": 3, "kv_heads": 3, "mlp": 31},
    "tile": {"width": 32, "heads": 4, "kv_heads": 4, "mlp": 48},
    "split": {"width": 40, "heads": 5, "kv_heads": 5, "mlp": 60},
}
SOURCES = {  # of 3 layers → 5; None is a layer that adds nothing
    "insert": [0, 1, 2, None, None],
    "llama_pro": [0, None, 1, 2, None],
    "stack": [0, 1, 2, 0, 1],
    "interleave": [0, 0, 1, 1, 2],
    "solar": [0, 1, 2, 1, 2],
}
families = pytest.mark.parametrize("model_type", EVERY_FAMILY)


def parent_of(model_type):
    extra = {"no_rope_layers": [1, 0, 1]} if model_type == "smollm3" else {}
    return build(config_of(model_type, layers=3, tie_word_embeddings=model_type != "nanochat", **extra))


def with_layers(parent, sources):
    """A stock model of the parent's width whose layers are copies of the parent's, by hand."""
    config, layers = parent.config, [source for source in sources if source is not None]
    extra = {"tie_word_embeddings": config.tie_word_embeddings}
    if config.model_type == "smollm3":
        extra["no_rope_layers"] = [config.no_rope_layers[source] for source in layers]
    deeper = build(config_of(config.model_type, layers=len(layers), **extra))
    stacks = [layers_of(model) for model in (parent, deeper)]
    for index, source in enumerate(layers):
        stacks[1][index].load_state_dict(stacks[0][source].state_dict())
    rest = {name: value for name, value in parent.state_dict().items() if ".h." not in name and ".layers." not in name}
    deeper.load_state_dict(rest, strict=False)
    return deeper


@families
@pytest.mark.parametrize("width", WIDTH_METHODS)
def test_a_wider_and_deeper_child_computes_what_the_parents_layers_in_that_order_do(model_type, width):
    parent = parent_of(model_type)
    tokens = tokens_for(parent.config)
    target = fields_of(model_type, layers=5, **WIDTH_METHODS[width])
    for depth, sources in SOURCES.items():
        child, plan = grow(parent, target, method=width, depth_method=depth, noise=0.3, uneven=0.7, init_std=0.3)
        reference = with_layers(parent, sources)
        with norms_in_full_precision(reference, child):
            assert relative_difference(reference, child, tokens) < 1e-9, depth
        assert plan.preserves_function == DEPTH_METHODS[depth][1] == (None in sources)


@families
def test_the_hand_built_reference_of_the_same_layers_is_the_parent(model_type):
    parent = parent_of(model_type)
    assert relative_difference(parent, with_layers(parent, [0, 1, 2]), tokens_for(parent.config)) == 0.0
    assert relative_difference(parent, with_layers(parent, [0, 1, 1]), tokens_for(parent.config)) > 1e-3


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_every_method_goes_with_every_depth_method_and_says_what_is_kept(model_type):
    parent = parent_of(model_type)
    for (width, sizes), depth in itertools.product(
        (*WIDTH_METHODS.items(), ("pad", WIDTH_METHODS["exact"]), ("shrink_pad_perturb", WIDTH_METHODS["exact"])),
        DEPTH_METHODS,
    ):
        child, plan = grow(parent, fields_of(model_type, layers=5, **sizes), method=width, depth_method=depth)
        kept = width in WIDTH_METHODS and None in SOURCES[depth]
        assert plan.preserves_function == kept == (not plan.changes)
        difference = relative_difference(parent, child, tokens_for(parent.config))
        assert difference < 1e-5 if kept else difference > 1e-3, (width, depth)


def test_heirs_of_both_axes_carry_statistics_and_copies_of_layers_do_not():
    parent = parent_of("llama")
    target = fields_of("llama", layers=5, **WIDTH_METHODS["tile"])
    plan = plan_growth(parent.config, target, method="tile", depth_method="solar")
    grown = plan.map_diagonal({name: torch.ones_like(value) for name, value in parent.named_parameters()})
    for layer, heir in enumerate([True, True, True, False, False]):
        held = [bool(value.all()) for name, value in grown.items() if f".layers.{layer}." in name]
        assert held == [heir] * len(held)
