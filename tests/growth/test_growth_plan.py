"""The plan: what it checks, what it says of itself, and what it carries beside the weights."""

import json

import pytest
import torch
from growth_models import (
    FIRST_FAMILIES,
    build,
    config_of,
    fields_of,
    generator,
    grow,
    growth_pairs,
    produce,
    tokens_for,
)
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from hf_progressive.growth.families import FAMILIES
from hf_progressive.growth.growth_plan import plan_growth

QUICK = settings(
    max_examples=5,
    derandomize=True,
    phases=[Phase.generate],  # shrinking a failure would take minutes
    suppress_health_check=list(HealthCheck),
)
WIDER = {"width": 24, "layers": 3, "heads": 3, "kv_heads": 3, "mlp": 31, "vocab": 33, "positions": 20}
REST = {"tie_word_embeddings": False}


def shapes(model):
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def test_every_tensor_can_be_made_alone_and_in_any_order():
    parent = build(config_of("gpt2"))
    plan = plan_growth(parent.config, fields_of("gpt2", **WIDER))
    weights = dict(parent.named_parameters())
    forward = produce(plan, parent)
    for tensor in reversed(plan.tensors):
        assert torch.equal(tensor.produce(weights.__getitem__, generator(tensor.name, 0)), forward[tensor.name])


def test_half_precision_sources_are_grown_in_single_precision_without_a_rounding_between():
    parent = build(config_of("gpt2"), dtype=torch.bfloat16)
    plan = plan_growth(parent.config, {"n_embd": 24, "n_head": 3})
    grown = produce(plan, parent)
    assert {tensor.dtype for tensor in grown.values()} == {torch.float32}
    expected = produce(plan, parent.float())
    assert all(torch.equal(grown[name], expected[name]) for name in grown)


def test_a_tensor_of_another_shape_than_the_config_says_is_refused():
    plan = plan_growth(config_of("gpt2"), {"n_layer": 3})
    with pytest.raises(ValueError, match=r"transformer.wte.weight has shape \(3, 16\), the config says \(29, 16\)"):
        plan.tensors[0].produce(lambda name: torch.zeros(3, 16), torch.Generator())


def test_files_of_the_hub_without_prefix_and_with_mask_buffers_fit():
    parent = build(config_of("gpt2"))
    plan = plan_growth(parent.config, {"n_layer": 3})
    keys = {name.removeprefix("transformer."): shape for name, shape in shapes(parent).items()}
    for layer in range(2):
        keys |= {f"h.{layer}.attn.bias": (1, 1, 16, 16), f"h.{layer}.attn.masked_bias": ()}
    plan.check_source_keys(keys)
    plan.check_source_keys(keys | {"lm_head.weight": (29, 16)})
    plan.check_source_keys(shapes(parent))


def test_every_fault_of_a_checkpoint_is_listed():
    parent = build(config_of("gpt2"))
    keys = shapes(parent)
    del keys["transformer.ln_f.bias"], keys["transformer.h.1.mlp.c_fc.weight"]
    keys |= {"score.weight": (2, 16), "transformer.wpe.weight": (8, 16), "wte.weight": (29, 16)}
    with pytest.raises(ValueError, match=r"^5 tensors do not fit the config: ") as caught:
        plan_growth(parent.config, {"n_layer": 3}).check_source_keys(keys)
    for fault in (
        "score.weight is not a tensor of gpt2",
        "transformer.wpe.weight has shape (8, 16), the config says (16, 16)",
        "transformer.wte.weight is there twice, with and without the prefix 'transformer.'",
        "transformer.ln_f.bias is missing",
        "transformer.h.1.mlp.c_fc.weight is missing",
    ):
        assert fault in str(caught.value)


def test_a_missing_head_of_an_untied_model_is_a_fault():
    parent = build(config_of("llama", **REST))
    keys = {name: shape for name, shape in shapes(parent).items() if name != "lm_head.weight"}
    with pytest.raises(ValueError, match=r"^1 tensor does not fit the config: lm_head.weight is missing"):
        plan_growth(parent.config, {"num_hidden_layers": 3}).check_source_keys(keys)


@pytest.mark.parametrize("method", ["exact", "stack", "random"])
def test_the_summary_is_json_and_counts_what_is_there(method):
    parent = build(config_of("qwen2"))
    plan = plan_growth(parent.config, fields_of("qwen2", **WIDER), method=method)
    summary = json.loads(json.dumps(plan.summary(), allow_nan=False))
    child, _ = grow(parent, fields_of("qwen2", **WIDER), method=method)
    assert summary["parameters"] == [sum(p.numel() for p in model.parameters()) for model in (parent, child)]
    assert sum(summary["tensors"].values()) == len(plan.tensors) == sum(summary["rules"].values())
    assert summary["sizes"]["width"] == [16, 24]
    assert summary["preserves_function"] == (method == "exact")


def gradients(model, tokens, loss_weights):
    """Gradients of a random function of the logits of the parent's tokens."""
    (model(tokens).logits[..., : loss_weights.shape[-1]] * loss_weights).sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def undivided(pair):
    """Whether no key/value head is copied for parts of its group, whose shares of its gradient no plan can know."""
    plan = plan_growth(pair.source, pair.target, **pair.options)
    sources = plan.axes["key"].unit_sources()[1]
    return pair.options["method"] == "tile" or len(sources) == len(set(sources))


@pytest.mark.parametrize(
    ("method", "model_type"),
    [("exact", name) for name in FIRST_FAMILIES if name != "gpt2"]
    + [("tile", name) for name in FIRST_FAMILIES]
    + [
        pytest.param(method, name, marks=pytest.mark.slow)
        for name in FAMILIES
        if name not in FIRST_FAMILIES
        for method in ("exact", "tile")
        if method == "tile" or FAMILIES[name].norm != "layer"  # a layer norm's gradients agree up to a constant
    ],
)
def test_gradients_of_the_child_are_the_parents_carried_over(method, model_type):
    @QUICK
    @given(growth_pairs(model_type, method).filter(undivided), st.integers(0, 99))
    def check(pair, seed):
        parent = build(pair.source, seed=seed)
        pair.target.pop("tie_word_embeddings", None)  # the gradient of a tied embedding is of both its uses
        child, plan = grow(parent, pair.target, **pair.options | {"noise": 0.0, "uneven": None})
        loss_weights = torch.randn(2, 9, pair.source.vocab_size, dtype=torch.float64)
        before, after = (gradients(model, tokens_for(pair.source), loss_weights) for model in (parent, child))
        carried = plan.map_gradient(before)
        squares = plan.map_diagonal({name: gradient.square() for name, gradient in before.items()})
        scale = max(gradient.abs().max() for gradient in after.values()).item()
        for name, gradient in after.items():
            inherited = plan.inherited_mask(name)
            assert not carried[name][~inherited].any()
            assert not squares[name][~inherited].any()
            expected = torch.where(inherited, gradient, 0)
            torch.testing.assert_close(carried[name], expected, rtol=1e-5, atol=1e-5 * scale)
            torch.testing.assert_close(squares[name], carried[name].square())

    check()


def test_gradients_of_a_wider_layer_norm_model_agree_up_to_what_the_norm_does_not_see():
    parent = build(config_of("gpt2", **REST))
    child, plan = grow(parent, fields_of("gpt2", **WIDER), init_std=0.3)
    loss_weights = torch.randn(2, 9, 29, dtype=torch.float64)
    before, after = (gradients(model, tokens_for(parent.config), loss_weights) for model in (parent, child))
    carried = plan.map_gradient(before)
    for name, gradient in after.items():
        inherited = plan.inherited_mask(name)
        difference = torch.where(inherited, gradient - carried[name], 0)
        if plan.tensor(name).dims[-1].role == "write" and gradient.shape[-1] == 24 and "ln_" not in name:
            old = difference[..., :16]  # a constant over the old residual channels
            torch.testing.assert_close(old, old.mean(-1, keepdim=True).expand_as(old), atol=1e-9, rtol=0)
        else:
            torch.testing.assert_close(difference, torch.zeros_like(difference), atol=1e-9, rtol=0)


@pytest.mark.parametrize(("method", "layers"), [("exact", [0, 2]), ("stack", [2]), ("random", [0, 1, 2])])
def test_new_layers_inherit_no_statistics(method, layers):
    parent = build(config_of("gpt2"))
    options = {"depth_position": [-1]} if method == "exact" else {}
    plan = plan_growth(parent.config, {"n_layer": 3}, method=method, **options)
    grown = plan.map_diagonal({name: torch.ones_like(value) for name, value in parent.named_parameters()})
    assert set(grown) == {tensor.name for tensor in plan.tensors}
    old = {"exact": [1, 2], "stack": [0, 1], "random": []}[method]
    for layer in range(3):
        names = [name for name in grown if f".h.{layer}." in name]
        assert all(bool(grown[name].any()) == (layer in old) for name in names)
        assert all(bool(plan.inherited_mask(name).all()) == (layer in old) for name in names)


def test_statistics_of_some_parameters_give_those_of_their_kinds():
    plan = plan_growth(config_of("gpt2"), {"n_layer": 3})
    grown = plan.map_diagonal({"transformer.h.0.ln_1.bias": torch.ones(16)})
    assert set(grown) == {"transformer.h.0.ln_1.bias", "transformer.h.2.ln_1.bias"}


def test_statistics_of_strangers_or_of_another_shape_are_refused():
    plan = plan_growth(config_of("gpt2"), {"n_layer": 3})
    with pytest.raises(ValueError, match=r"not parameters of the parent: wte.weight"):
        plan.map_diagonal({"wte.weight": torch.ones(29, 16)})
    with pytest.raises(
        ValueError, match=r"statistic of transformer.wte.weight has shape \(2,\), the config says \(29, 16"
    ):
        plan.map_diagonal({"transformer.wte.weight": torch.ones(2)})
    with pytest.raises(ValueError, match=r"basis of transformer.wpe.weight: shape \(8, 2\), expected \(16, r\)"):
        plan.map_subspace({"transformer.wpe.weight": torch.ones(8, 2)})
    with pytest.raises(ValueError, match=r"basis of transformer.ln_f.weight: .* for a weight of two dimensions"):
        plan.map_subspace({"transformer.ln_f.weight": torch.ones(16, 2)})


def output_side(model, name, weight):
    """The weight as (out, in), by the type of its module."""
    module = model.get_submodule(name.removesuffix(".weight"))
    return weight if isinstance(module, torch.nn.Linear) else weight.T


@pytest.mark.parametrize("method", ["exact", "tile", "split"])
@pytest.mark.parametrize("model_type", ["gpt2", "llama", "qwen3", "nanochat"])
def test_bases_stay_orthonormal_and_span_what_the_parents_span_becomes(model_type, method):
    wider = fields_of(model_type, width=32, heads=4, kv_heads=4, mlp=48, layers=3)
    parent = build(config_of(model_type, **REST))
    child, plan = grow(parent, wider, method=method, noise=0.0)
    weights = {name: value.data for name, value in parent.named_parameters() if value.ndim == 2}
    bases = {name: torch.linalg.svd(output_side(parent, name, weight)).U[:, :3] for name, weight in weights.items()}
    grown = plan.map_subspace(bases)

    assert set(grown) == {name for name, value in child.named_parameters() if value.ndim == 2}
    for name, basis in grown.items():
        tensor = plan.tensor(name)
        rows = output_side(child, name, plan.inherited_mask(name)).any(1)
        assert basis.shape == (len(rows), 3 if tensor.heir else 0)
        if not tensor.heir:
            continue
        torch.testing.assert_close(basis.T @ basis, torch.eye(3, dtype=torch.float64))
        assert not basis[~rows].any()
        # Grow the parent's weight projected onto its basis: the grown basis must span its inherited rows.
        projected = bases[name] @ bases[name].T @ output_side(parent, name, weights[name])
        stored = output_side(parent, name, projected)  # its own inverse
        made = tensor.produce({tensor.sources[0]: stored}.__getitem__, torch.Generator())
        made = output_side(child, name, torch.where(plan.inherited_mask(name), made, 0))
        torch.testing.assert_close(basis @ (basis.T @ made), made)
