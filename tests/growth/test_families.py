"""Every family against its stock class: the table's names and shapes, and growth by every exact method."""

import copy
import math
import os

import pytest
import torch
from growth_models import (
    ALL_HEADS,
    EVERY_FAMILY,
    EXTRA_OPTIONS,
    FIRST_FAMILIES,
    build,
    config_of,
    fields_of,
    grow,
    growth_pairs,
    load,
    map_matrix,
    norms_in_full_precision,
    pairs_from,
    parents,
    produce,
    relative_difference,
    tokens_for,
)
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, BertConfig, GPT2Config

from hf_progressive.growth.families import FAMILIES, family_of
from hf_progressive.growth.growth_plan import plan_growth

EXACT_METHODS = ("exact", "tile", "split", "llama_pro")
PAIRS = int(os.environ.get("GROWTH_PAIRS", "60"))  # of each family and method, in float64 and float32

families = pytest.mark.parametrize("model_type", EVERY_FAMILY)
first_families = pytest.mark.parametrize("model_type", FIRST_FAMILIES)


def stock_parameters(config):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return model, {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("model_type", "extra"), [(name, extra) for name, options in EXTRA_OPTIONS.items() for extra in options]
)
def test_the_table_names_what_the_stock_class_saves_in_order_and_shape(model_type, extra, tied):
    config = config_of(model_type, width=32, heads=4, kv_heads=4 if model_type in ALL_HEADS else 2, head_dim=8,
                       tie_word_embeddings=tied, **extra)  # fmt: skip
    model, parameters = stock_parameters(config)
    family = family_of(config)

    table = {name: family.shape(rule, config) for name, rule, _ in family.tensors(config)}

    assert list(table.items()) == list(parameters.items())
    saved = set(model.state_dict()) - set(model.all_tied_weights_keys)
    assert set(table) == saved


def test_an_unknown_family_is_refused_with_those_known():
    with pytest.raises(ValueError, match=r"model_type 'bert' cannot be grown; families known: gpt2, llama"):
        family_of(BertConfig())


def test_cross_attention_is_refused():
    with pytest.raises(ValueError, match=r"add_cross_attention=True cannot be grown: .*; models of add_.*=False can"):
        family_of(GPT2Config(add_cross_attention=True))


def test_a_quantized_parent_is_refused():
    with pytest.raises(ValueError, match=r"a quantized checkpoint cannot be grown; dequantize it first"):
        family_of(GPT2Config(quantization_config={"quant_method": "fp8"}))


def test_names_of_base_model_files_gain_the_prefix():
    gpt2 = FAMILIES["gpt2"]
    assert gpt2.canonical_name("h.0.attn.c_attn.weight") == "transformer.h.0.attn.c_attn.weight"
    assert gpt2.canonical_name("transformer.wte.weight") == "transformer.wte.weight"
    assert gpt2.canonical_name("lm_head.weight") == "lm_head.weight"


@torch.no_grad()
def logits_in_two_steps(model, tokens):
    """The logits of a text that is read in two parts, keys and values of the first kept in the cache."""
    first = model(tokens[:, :5], use_cache=True)
    second = model(tokens[:, 5:], past_key_values=first.past_key_values, use_cache=True)
    return torch.cat([first.logits, second.logits], dim=1)


def check_exactness(parent, pairs):
    """Grow one parent several times, in float64 with norms in float64 too, and in float32 as the stock class is."""
    tokens = tokens_for(parent.config)
    with norms_in_full_precision(parent), torch.no_grad():
        expected = parent(tokens).logits
    scale = expected.abs().max()
    single = copy.deepcopy(parent).float()
    with torch.no_grad():
        rounding = (single(tokens).logits - expected).abs().max()
    assume(bool(rounding <= 5e-6 * scale))  # of few parents it is more, and says nothing of growth
    for pair in pairs:
        child, plan = grow(parent, pair.target, **pair.options)
        assert plan.preserves_function
        with norms_in_full_precision(child), torch.no_grad():
            difference = child(tokens).logits[..., : expected.shape[-1]] - expected
        assert difference.abs().max() <= 1e-9 * scale, pair
        child = child.float()
        load(child, produce(plan, single))
        difference = logits_in_two_steps(child, tokens)[..., : expected.shape[-1]] - expected
        assert difference.abs().max() <= 1e-5 * scale, pair


def grown_by_every_method(model_type):
    """A random parent, and for each exact method a random target."""
    return parents(model_type).flatmap(lambda p: st.tuples(*(pairs_from(p, method) for method in EXACT_METHODS)))


def exactness_test(model_type, examples):
    @settings(
        max_examples=examples,
        derandomize=True,
        phases=[Phase.generate],  # shrinking a failure would take minutes
        suppress_health_check=list(HealthCheck),
    )
    @given(grown_by_every_method(model_type))
    def check(pairs):
        check_exactness(build(pairs[0].source), pairs)

    return check


@first_families
def test_growth_keeps_the_function(model_type):
    exactness_test(model_type, examples=3)()


@pytest.mark.slow
@families
def test_growth_keeps_the_function_for_many_pairs(model_type):
    exactness_test(model_type, examples=PAIRS)()


@families
def test_every_axis_keeps_the_function(model_type):
    @settings(max_examples=15, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(st.sampled_from(EXACT_METHODS).flatmap(lambda method: growth_pairs(model_type, method)))
    def check(pair):
        plan = plan_growth(pair.source, pair.target, **pair.options)
        for axis in plan.axes.values():  # write · read adds up to one over the copies of every unit
            totals = (map_matrix(axis, "write") * map_matrix(axis, "read")).sum(0)
            torch.testing.assert_close(totals, torch.ones_like(totals), rtol=1e-12, atol=0)

    check()


ALL_AXES = {"width": 24, "layers": 4, "heads": 3, "kv_heads": 3, "mlp": 31, "vocab": 37, "positions": 20}


@families
def test_a_child_of_all_axes_generates_what_the_parent_generates(model_type):
    parent = build(config_of(model_type, tie_word_embeddings=model_type != "nanochat"))
    child, _ = grow(parent, fields_of(model_type, **ALL_AXES | {"vocab": 29}), depth_position="spread")
    prompt = tokens_for(parent.config, length=4)
    with norms_in_full_precision(parent, child):
        options = {"do_sample": False, "max_new_tokens": 10, "min_new_tokens": 10, "use_cache": True}
        mask = torch.ones_like(prompt)
        texts = [model.generate(prompt, attention_mask=mask, **options) for model in (parent, child)]
    assert texts[0].shape == (2, 14)
    assert torch.equal(*texts)


@families
@pytest.mark.parametrize("method", ["stack", "interleave", "solar", "shrink_pad_perturb", "pad", "random"])
def test_methods_that_change_the_function_say_so_and_make_a_model(model_type, method):
    parent = build(config_of(model_type, tie_word_embeddings=False))
    child, plan = grow(parent, fields_of(model_type, **ALL_AXES), method=method)
    assert not plan.preserves_function
    difference = relative_difference(parent, child, tokens_for(parent.config))
    assert math.isfinite(difference)
    assert difference > 1e-3


@pytest.mark.parametrize("method", ["stack", "interleave"])
def test_repeating_layers_keeps_the_function_while_their_number_stays(method):
    parent = build(config_of("gpt2"))
    child, plan = grow(parent, {"n_embd": 24, "n_head": 3}, method=method)
    assert plan.preserves_function
    assert relative_difference(parent, child, tokens_for(parent.config)) < 1e-12


@pytest.mark.parametrize(("method", "sources"), [("stack", [0, 1, 0, 1]), ("interleave", [0, 0, 1, 1])])
def test_repeated_layers_hold_the_parents_weights(method, sources):
    parent = build(config_of("llama"))
    child, _ = grow(parent, {"num_hidden_layers": 4}, method=method)
    for layer, source in zip(child.model.layers, sources, strict=True):
        for name, parameter in layer.named_parameters():
            assert torch.equal(parameter, parent.model.layers[source].get_parameter(name))


@families
def test_random_weights_have_the_distribution_of_a_new_model(model_type):
    torch.manual_seed(0)
    parent = build(config_of(model_type, tie_word_embeddings=False))
    target = fields_of(model_type, width=48, heads=6, kv_heads=6, layers=3, mlp=60, vocab=64, positions=32)
    plan = plan_growth(parent.config, target, method="random")
    stock = dict(AutoModelForCausalLM.from_config(plan.target_config).named_parameters())
    for name, tensor in produce(plan, parent).items():
        assert tensor.mean().item() == pytest.approx(stock[name].mean().item(), abs=2e-3), name
        assert tensor.std().item() == pytest.approx(stock[name].std().item(), rel=0.1, abs=1e-9), name


def train(model, steps, *, vocabulary, early=2):
    """Train on sequences that show every token and every position; return which entries had a gradient early."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    reached = {name: torch.zeros_like(parameter, dtype=torch.bool) for name, parameter in model.named_parameters()}
    for step in range(steps):
        tokens = torch.stack([torch.randperm(vocabulary, generator=generator) for _ in range(8)])
        optimizer.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
        for name, parameter in model.named_parameters() if step < early else ():
            reached[name] |= parameter.grad != 0
    return reached


@families
@pytest.mark.parametrize(("method", "new_layers"), [("exact", "copy"), ("exact", "fresh"), ("split", "copy")])
def test_gradients_reach_all_that_is_new_within_two_steps_and_no_two_units_are_alike(model_type, method, new_layers):
    vocabulary = 20
    extra = {"activation_function": "gelu"} if model_type == "opt" else {}  # whose units would be dead or alive
    tied = model_type != "nanochat"
    parent = build(config_of(model_type, vocab=16, positions=16, tie_word_embeddings=tied, **extra))
    target = fields_of(model_type, **ALL_AXES | {"vocab": vocabulary, "positions": vocabulary})
    child, plan = grow(parent, target, method=method, new_layers=new_layers)

    # A norm behind attention or MLP has gains of its own between a new entry and the loss.
    early = 3 if FAMILIES[model_type].closes_by_gain else 2
    reached = train(child, 4, vocabulary=vocabulary, early=early)

    for name, parameter in child.named_parameters():
        new = ~plan.inherited_mask(name)
        if name in ("transformer.wpe.weight", "model.decoder.embed_positions.weight"):
            new[-1] = False  # what follows the last position is not in the loss
            new[: FAMILIES[model_type].position_rows] = False  # of padding
        if name.endswith(("c_attn.bias", "k_proj.bias", "query_key_value.bias")):
            continue  # a constant key moves every score alike: softmax does not see it
        learns = reached[name] | ~new
        if ".mlp.fc" in name:  # squared ReLU: a unit that fires for few tokens may miss a step
            assert learns.any(0).all(), name
            assert learns.any(1).all(), name
        else:
            assert learns.all(), name
        if parameter.ndim == 2 and "{layer}" in plan.tensor(name).kind:
            for units in (parameter, parameter.T):
                distances = torch.cdist(units, units).fill_diagonal_(math.inf) / units.norm(dim=1).mean()
                assert distances.min() > 1e-6, name


def test_tiled_units_stay_alike_unless_noise_tells_them_apart():
    for noise, alike in ((0.0, True), (0.1, False)):
        parent = build(config_of("llama"))
        child, _ = grow(parent, {"intermediate_size": 48}, method="tile", noise=noise)
        train(child, 4, vocabulary=16)
        up = child.model.layers[0].mlp.up_proj.weight
        assert torch.allclose(up[:24], up[24:], rtol=1e-9) == alike


@families
@pytest.mark.parametrize("width", [16, 24])
def test_layers_that_share_what_one_did_end_in_a_share_of_its_weights(model_type, width):
    parent = build(config_of(model_type))
    target = fields_of(model_type, layers=3, width=width, heads=width // 8, kv_heads=width // 8)
    whole, _ = grow(parent, target, method="interleave")
    shared, plan = grow(parent, target, method="interleave", repeats="shared")
    closing = {
        rule.name.format(layer=layer) for rule in family_of(parent.config).rules if rule.closes for layer in (0, 1)
    }
    for name, parameter in shared.named_parameters():
        tensor, value, expected = plan.tensor(name), parameter, whole.get_parameter(name)
        if name in closing:  # layers 0 and 1 are the parent's first; of entries that are new, nothing is shared
            inherited = plan.tensor(tensor.kind.format(layer=0)).inherited()
            value, expected = value[inherited] + tensor.offset, (expected[inherited] + tensor.offset) / 2
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)


@first_families
def test_layers_that_share_keep_function_and_gradients_the_nearer_the_less_each_adds(model_type):
    parent = build(config_of(model_type))
    names = {
        rule.name.format(layer=layer) for rule in family_of(parent.config).rules if rule.closes for layer in (0, 1)
    }
    closing = [(name, parameter) for name, parameter in parent.named_parameters() if name in names]
    for _, parameter in closing:  # so little is added to the residual stream that every copy reads nearly the same
        parameter.data.mul_(1e-5)
    target, tokens = fields_of(model_type, layers=4), tokens_for(parent.config)
    child, plan = grow(parent, target, method="interleave", repeats="shared")
    whole, _ = grow(parent, target, method="interleave")
    for model in (parent, child):
        model(input_ids=tokens, labels=tokens).loss.backward()
    carried = plan.map_gradient({name: parameter.grad for name, parameter in parent.named_parameters()})
    assert closing
    assert relative_difference(parent, child, tokens) < 1e-3 * relative_difference(parent, whole, tokens)
    for name, _ in closing:
        heir = name.replace(".1.", ".2.")  # the parent's second layer is the child's third and fourth
        gradient = child.get_parameter(heir).grad
        torch.testing.assert_close(gradient, carried[heir], rtol=1e-3, atol=1e-4 * gradient.abs().max().item())
