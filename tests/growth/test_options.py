"""Options of growth: their bounds, and the scale of what is new."""

import json

import pytest
import torch
from growth_models import (
    FIRST_FAMILIES,
    build,
    config_of,
    fields_of,
    grow,
    norms_in_full_precision,
    relative_difference,
    tokens_for,
)

from hf_progressive.growth.growth_plan import plan_growth
from hf_progressive.growth.options import GrowthOptions

WIDE = {"width": 64, "heads": 8, "kv_heads": 8, "mlp": 96}
WIDER = {"width": 96, "heads": 12, "kv_heads": 12, "mlp": 160}
families = pytest.mark.parametrize("model_type", FIRST_FAMILIES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth_position": "front"}, r"depth_position='front': expected 'append', 'spread' or a list"),
        ({"depth_position": 3}, r"depth_position=3: expected 'append', 'spread' or a list"),
        ({"depth_position": ["0"]}, r"depth_position=\['0'\]: expected 'append', 'spread' or a list"),
        ({"new_layers": "zero"}, r"new_layers='zero': expected 'copy' or 'fresh'"),
        ({"repeats": "half"}, r"repeats='half': expected 'whole' or 'shared'"),
        ({"new_moments": "old"}, r"new_moments='old': expected 'zero' or 'mean'"),
        ({"depth_method": ["stack"]}, r"depth_method=\['stack'\]: expected a name, or None"),
        ({"init_std": -1.0}, r"init_std=-1.0: expected a number ≥ 0"),
        ({"free_scale": -1.0}, r"free_scale=-1.0: expected a number ≥ 0, or None for init_std"),
        ({"new_scale": None}, r"new_scale=None: expected a number ≥ 0, or 0 for what exact growth asks"),
        ({"noise": -1.0}, r"noise=-1.0: expected a number ≥ 0"),
        ({"noise": "x"}, r"noise='x': expected a number ≥ 0"),
        ({"noise": float("nan")}, r"noise=nan: expected a number ≥ 0"),
        ({"shrink": True}, r"shrink=True: expected a number ≥ 0, or None for the method's own"),
        ({"perturb": float("inf")}, r"perturb=inf: expected a number ≥ 0"),
        ({"uneven": 1.0}, r"uneven=1.0: expected a number ≥ 0 and < 1"),
        ({"noise": "-1e-3"}, r"noise=-0.001: expected a number ≥ 0"),
        ({"drop": "1e1"}, r"drop=10.0: expected a share of hidden units"),
        ({"vocab_multiple": 0}, r"vocab_multiple=0: expected a number ≥ 1"),
        ({"nois": 0.1}, r"^nois: unknown option; did you mean 'noise'\?"),
    ],
)
def test_options_out_of_range_or_unknown_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GrowthOptions.of(options)


def test_a_number_that_yaml_takes_for_text_is_one():
    assert GrowthOptions.of({"init_std": "1e-2", "uneven": "5e-1"}) == GrowthOptions(init_std=0.01, uneven=0.5)


def standard_deviations(parent, target, **options):
    """Of new entries of layers' matrices, by name: those the function fixes, free ones; and the RMS of the old."""
    exact, _ = grow(parent, target, seed=1, init_std=0.0)
    child, plan = grow(parent, target, seed=1, **options)
    reference, _ = grow(parent, target, seed=1, init_std=1.0)
    found = {}
    for name, value in child.named_parameters():
        tensor = plan.tensor(name)
        if value.ndim == 2 and "{layer}" in tensor.kind and tensor.heir:
            new = ~plan.inherited_mask(name)
            free = new & (dict(reference.named_parameters())[name] != dict(exact.named_parameters())[name])
            added = value - dict(exact.named_parameters())[name]
            rms = value[~new].square().mean().sqrt().item()
            found[name] = [added[mask].std().item() if mask.any() else 0.0 for mask in (new & ~free, free)] + [rms]
    assert found
    return found


@families
def test_free_entries_have_the_scale_of_a_new_model_and_fixed_ones_none(model_type):
    parent = build(config_of(model_type, layers=1, tie_word_embeddings=False, **WIDE))
    target = fields_of(model_type, **WIDER)
    free_ones = 0
    for name, (fixed, free, _) in standard_deviations(parent, target).items():
        scaled = name.endswith("c_proj.weight") or (model_type == "nanochat" and name.endswith("o_proj.weight"))
        std = parent.config.initializer_range / (2**0.5 if scaled else 1.0)  # √(2 · layers), of which there is one
        free_ones += free > 0
        assert fixed == 0.0, name
        assert free == pytest.approx(std, rel=0.1) or free == 0.0, name
    assert free_ones >= 2


@families
def test_free_entries_take_a_share_of_their_matrixs_scale_and_the_function_stays(model_type):
    parent = build(config_of(model_type, layers=1, tie_word_embeddings=False, **WIDE))
    target = fields_of(model_type, **WIDER)
    for name, (fixed, free, rms) in standard_deviations(parent, target, free_scale=0.7).items():
        assert fixed == 0.0, name
        assert free == pytest.approx(0.7 * rms, rel=0.1) or free == 0.0, name
    child, plan = grow(parent, target, free_scale=0.7)
    assert plan.preserves_function
    with norms_in_full_precision(parent, child):
        assert relative_difference(parent, child, tokens_for(parent.config)) < 1e-9


@families
def test_fixed_entries_take_a_share_of_their_matrixs_scale_and_the_plan_says_so(model_type):
    parent = build(config_of(model_type, layers=1, tie_word_embeddings=False, **WIDE))
    target = fields_of(model_type, **WIDER)
    seen = 0
    for name, (fixed, free, rms) in standard_deviations(parent, target, new_scale=0.5).items():
        if fixed:
            seen += 1
            assert fixed == pytest.approx(0.5 * rms, rel=0.1), name
        assert free < 0.03
    assert seen >= 2  # the projections that end attention and MLP at the least
    plan = plan_growth(parent.config, target, new_scale=0.5)
    assert not plan.preserves_function
    assert plan.changes == ("new entries that the function fixes are drawn at 0.5 of their matrix's RMS",)
    assert json.loads(json.dumps(plan.summary()))["changes"] == list(plan.changes)
    assert plan_growth(parent.config, fields_of(model_type, layers=3), new_scale=0.5).preserves_function


def values_of_the_first_layer(model, tokens, values):
    """What the first layer's attention reads of the stream, through the value projection: (tokens, value dims)."""
    name = "attn.c_attn" if model.config.model_type == "gpt2" else "self_attn.v_proj"
    module = dict(model.named_modules())[next(n for n, _ in model.named_modules() if n.endswith(f".0.{name}"))]
    seen = []
    handle = module.register_forward_hook(
        lambda module, args, output: seen.append(output - (0 if module.bias is None else module.bias))
    )
    with torch.no_grad():
        model(tokens)
    handle.remove()
    start = 2 * model.config.hidden_size if model.config.model_type == "gpt2" else 0
    return seen[0].flatten(0, 1)[:, start : start + values]


@families
@pytest.mark.parametrize("new_scale", [0.0, 0.5, 1.0])
def test_old_channels_keep_their_size_behind_a_norm_whatever_the_new_ones_hold(model_type, new_scale):
    # Readers of new channels are zero here, so that a reader of the stream sees the old channels alone, as the norm
    # hands them over: those of the parent times one factor for each token, 1 on average.
    parent = build(config_of(model_type, layers=1, vocab=200, positions=64, tie_word_embeddings=False, **WIDE))
    child, _ = grow(parent, fields_of(model_type, **WIDER | {"mlp": 96}), new_scale=new_scale, init_std=0.0)
    tokens = tokens_for(parent.config, batch=4, length=64)
    before, after = (values_of_the_first_layer(model, tokens, 64) for model in (parent, child))
    if model_type != "gpt2":  # whose mean over the channels moves with the new ones
        ratio = (after / before).median(-1).values
        torch.testing.assert_close(after, before * ratio[:, None], rtol=1e-5, atol=1e-5)
    factor = (after.square().mean() / before.square().mean()).sqrt().item()
    assert factor == pytest.approx(1.0, abs=1e-6 if new_scale == 0 else 0.04)
