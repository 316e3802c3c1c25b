"""Mixtures of experts against their stock classes: tables, files, and growth in width, depth and number of experts."""

import re

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from mixture_models import MIXTURE_FIELDS, OF_QWEN, PAIRS, build, config_of, experts_field
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from hf_progressive.growth import grow_checkpoint, grow_model, new_entry_masks, plan_growth, verify_growth
from hf_progressive.growth.families import _faults
from hf_progressive.growth.mixtures import MIXTURES

mixtures = pytest.mark.parametrize("model_type", MIXTURES)
ALL_AXES = {
    "hidden_size": 24,
    "num_hidden_layers": 4,
    "intermediate_size": 32,
    "vocab_size": 33,
}


def all_axes(model_type, **fields):
    heads = {"num_attention_heads": 3, "num_key_value_heads": 3}
    if model_type == "flex_olmo":  # whose norms average over all heads
        heads = {"hidden_size": 32, "num_attention_heads": 4}
    return ALL_AXES | heads | ({"moe_intermediate_size": 12} if model_type in OF_QWEN else {}) | fields


def more_experts(model_type, factor=2):
    field = experts_field(model_type)
    given = MIXTURE_FIELDS[model_type]
    return {field: factor * given[field], "num_experts_per_tok": factor * given["num_experts_per_tok"]}


@mixtures
def test_the_table_is_that_of_the_stock_class(model_type):
    assert list(_faults(MIXTURES[model_type])) == []
    for fields in ({}, {"decoder_sparse_step": 2}, {"mlp_only_layers": [0]}) if model_type in OF_QWEN else ({},):
        config = config_of(model_type, **fields)
        with torch.device("meta"):
            stock = dict(AutoModelForCausalLM.from_config(config).named_parameters())
        family = MIXTURES[model_type]
        table = {name: family.shape(rule, config) for name, rule, _ in family.tensors(config)}
        assert list(table.items()) == [(name, tuple(parameter.shape)) for name, parameter in stock.items()]


@mixtures
def test_files_hold_what_the_stock_class_saves(model_type, tmp_path):
    config = config_of(model_type)
    build(config).save_pretrained(tmp_path)
    saved = {name: tuple(tensor.shape) for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    assert dict(MIXTURES[model_type].stored(config)) == saved
    block = "block_sparse_moe" if model_type == "mixtral" else "mlp"
    assert f"model.layers.0.{block}.gate.weight" in saved


@st.composite
def pairs(draw, model_type):
    """A random parent and a random target that are exact: width, depth, hidden units, and experts by copies."""

    def integer(low, high):
        return draw(st.integers(low, high))

    kv_heads, group = integer(1, 2), integer(1, 2)
    heads, experts, chosen, copies = kv_heads * group, integer(1, 4), integer(1, 2), integer(1, 3)
    chosen = min(chosen, experts)
    old = {
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "hidden_size": 8 * heads,
        "num_hidden_layers": integer(1, 3),
        "intermediate_size": integer(3, 9),
        "vocab_size": integer(5, 12),
        "tie_word_embeddings": draw(st.booleans()),
        experts_field(model_type): experts,
        "num_experts_per_tok": chosen,
    }
    grown_heads = heads + group * integer(0, 2)
    new = {
        "num_attention_heads": grown_heads,
        "num_key_value_heads": grown_heads // group,
        "hidden_size": 8 * grown_heads,
        "num_hidden_layers": old["num_hidden_layers"] + integer(0, 2),
        "intermediate_size": old["intermediate_size"] + integer(0, 9),
        experts_field(model_type): experts * copies,
        "num_experts_per_tok": chosen * copies,
    }
    if model_type == "flex_olmo":  # its head_dim is width / heads, and its norms average over all heads
        grown_heads = heads * integer(1, 2)
        new |= {"num_attention_heads": grown_heads, "num_key_value_heads": kv_heads, "hidden_size": 8 * grown_heads}
    if model_type in OF_QWEN:
        old["norm_topk_prob"] = draw(st.booleans())
        old["mlp_only_layers"] = draw(st.sampled_from(([], [0])))
        old["moe_intermediate_size"] = integer(2, 7)
        new["moe_intermediate_size"] = old["moe_intermediate_size"] + integer(0, 7)
    options = {
        "depth_position": draw(st.sampled_from(("append", "spread"))),
        "new_layers": draw(st.sampled_from(("copy", "fresh"))),
        "init_std": 0.3,
        "noise": draw(st.sampled_from((None, 0.0, 0.3))),
        "free_scale": draw(st.sampled_from((None, 1.0))),
    }
    return old, new, options


def exactness_test(model_type, examples, dtype):
    @settings(
        max_examples=examples,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(pairs(model_type), st.sampled_from(("exact", "split")))
    def check(pair, method):
        old, new, options = pair
        parent = build(config_of(model_type, **old), dtype=getattr(torch, dtype))
        child = grow_model(parent, new, method=method, **options)
        result = verify_growth(parent, child, dtype=dtype, sequences=2)
        assert result.tolerance == {"float64": 1e-9, "float32": 1e-5}[dtype]
        assert result.preserved, (result.describe(), method, pair)

    return check


@mixtures
def test_growth_keeps_the_function(model_type):
    exactness_test(model_type, 2, "float64")()


@pytest.mark.slow
@mixtures
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_growth_keeps_the_function_for_many_pairs(model_type, dtype):
    exactness_test(model_type, PAIRS, dtype)()


@mixtures
def test_a_grown_mixture_generates_what_its_parent_generates(model_type):
    parent = build(config_of(model_type), dtype=torch.float32)
    child = grow_model(parent, all_axes(model_type, vocab_size=29, **more_experts(model_type)))
    prompt = torch.tensor([[3, 5, 7, 11], [2, 4, 6, 8]])
    options = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8, "use_cache": True}
    texts = [model.generate(prompt, attention_mask=torch.ones_like(prompt), **options) for model in (parent, child)]
    assert torch.equal(*texts)


@mixtures
def test_mixtures_are_streamed_by_their_published_names_and_load_in_the_stock_class(model_type, tmp_path):
    parent = build(config_of(model_type), dtype=torch.float32)
    parent.save_pretrained(tmp_path / "parent", max_shard_size="20KB")
    target = all_axes(model_type, **more_experts(model_type))
    report = grow_checkpoint(tmp_path / "parent", tmp_path / "child", target, max_shard_size="30KB")
    assert report.preserves_function
    assert report.verification.preserved
    assert len(report.files) > 2
    child, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "child", output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    in_memory = grow_model(parent, target)
    for (name, on_disk), other in zip(child.named_parameters(), in_memory.parameters(), strict=True):
        assert torch.equal(on_disk, other), name
    masks = new_entry_masks(tmp_path / "child")
    assert {name: mask.shape for name, mask in masks.items()} == {n: p.shape for n, p in child.named_parameters()}
    assert not masks["model.layers.0.mlp.gate.weight"][:, :16].any()  # copies of experts inherit
    assert masks["model.layers.0.mlp.gate.weight"][:, 16:].all()


def test_files_with_fused_experts_are_read_as_well(tmp_path):
    parent = build(config_of("mixtral"), dtype=torch.float32)
    parent.save_pretrained(tmp_path / "published")
    parent.config.save_pretrained(tmp_path / "fused")
    save_file(dict(parent.state_dict()), tmp_path / "fused/model.safetensors")
    target = {"intermediate_size": 31, "num_local_experts": 8, "num_experts_per_tok": 4}
    for name in ("published", "fused"):
        grow_checkpoint(tmp_path / name, tmp_path / f"{name}_child", target, verify=False)
    first, second = (load_file(tmp_path / f"{name}_child/model.safetensors") for name in ("published", "fused"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            {"num_local_experts": 6},
            "num_local_experts 4 → 6 .* is not exact: experts grow by whole copies .* no bias that could hide a new"
            " one; take num_local_experts=8",
        ),
        ({"num_local_experts": 8}, "the copies of an expert share its weight, .*; take num_experts_per_tok=4"),
        ({"num_experts_per_tok": 3}, "num_experts_per_tok 2 → 3 is not exact: .*; take num_experts_per_tok=2"),
        ({"num_local_experts": 3}, "growth never shrinks: experts 4 → 3"),
    ],
)
def test_numbers_of_experts_that_are_not_exact_are_refused_with_the_reason(target, message):
    with pytest.raises(ValueError, match=message):
        plan_growth(config_of("mixtral"), target)


def test_the_copies_of_a_single_expert_are_all_chosen_as_well():
    parent = build(config_of("mixtral", num_local_experts=1, num_experts_per_tok=1))
    child = grow_model(parent, {"num_local_experts": 3, "num_experts_per_tok": 3})
    assert verify_growth(parent, child, dtype="float64").preserved
    with pytest.raises(ValueError, match="share its weight, so all .* must be chosen; take num_experts_per_tok=3"):
        plan_growth(parent.config, {"num_local_experts": 3, "num_experts_per_tok": 2})


def test_refused_numbers_would_change_the_function():
    parent = build(config_of("mixtral"))
    child = grow_model(parent, more_experts("mixtral"))
    child.config.num_experts_per_tok = 2
    for layer in child.model.layers:
        layer.mlp.gate.top_k = 2
    assert not verify_growth(parent, child, dtype="float64").preserved


def test_copied_experts_are_told_apart_by_noise_that_adds_up_to_zero():
    parent = build(config_of("mixtral"))
    down = parent.model.layers[0].mlp.experts.down_proj
    for noise, apart in ((0.0, False), (None, True), (0.5, True)):
        child = grow_model(parent, more_experts("mixtral", 3), noise=noise)
        grown = child.model.layers[0].mlp.experts.down_proj.unflatten(0, (3, 4))  # (copy, expert, D, I)
        torch.testing.assert_close(grown.mean(0), down, rtol=1e-12, atol=1e-12)
        assert torch.equal(grown[0], grown[1]) != apart
        assert verify_growth(parent, child, dtype="float64").preserved
    deviation = ((grown - down).std() / down.std()).item()
    assert deviation == pytest.approx(0.5 * (2 / 3) ** 0.5, rel=0.1)


def gradients(model, tokens):
    model.set_experts_implementation("eager")
    model.zero_grad()
    model(tokens, labels=tokens).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@mixtures
def test_gradients_of_copied_experts_are_shares_of_the_parents(model_type):
    parent = build(config_of(model_type))
    target = more_experts(model_type) | {"intermediate_size": 31}
    child = grow_model(parent, target, noise=0.0)
    tokens = torch.randint(0, 29, (3, 12), generator=torch.Generator().manual_seed(0))
    plan = plan_growth(parent.config, target, noise=0.0)
    before, after = gradients(parent, tokens), gradients(child, tokens)
    for name, carried in plan.map_gradient(before).items():
        inherited = plan.inherited_mask(name)
        # The stock class rounds routing to float32.
        torch.testing.assert_close(carried[inherited], after[name][inherited], rtol=1e-5, atol=1e-7)
    assert set(plan.map_gradient(before)) == set(after)


def test_dense_layers_among_mixtures_keep_their_places():
    parent = build(config_of("qwen3_moe", decoder_sparse_step=2, num_hidden_layers=4))
    plan = plan_growth(parent.config, {"num_hidden_layers": 6}, depth_position="spread")
    assert [layer.source for layer in plan.layers] == [0, 1, 1, 2, 3, 3]
    assert plan.target_config.mlp_only_layers == [0, 3]
    assert plan.target_config.decoder_sparse_step == 1
    child = grow_model(parent, {"num_hidden_layers": 6}, depth_position="spread")
    assert verify_growth(parent, child, dtype="float64").preserved
    again = plan_growth(parent.config, plan.target_config, depth_position="spread")  # as from its record
    assert again.target_config.mlp_only_layers == [0, 3]


@pytest.mark.parametrize("fields", [{"decoder_sparse_step": 3}, {"mlp_only_layers": [1]}])
def test_which_layers_are_mixtures_cannot_be_chosen(fields):
    (name,) = fields
    with pytest.raises(ValueError, match=f"^{name}=.*: which layers are mixtures follows from the growth"):
        plan_growth(config_of("qwen3_moe", num_hidden_layers=4), {"num_hidden_layers": 6, **fields})


@pytest.mark.parametrize(
    ("model_type", "target", "dtype", "told"),
    [
        ("mixtral", {"intermediate_size": 30}, "float32", "intermediate_size=30: in float32 .* 4; take .*=32"),
        ("mixtral", {"intermediate_size": 36}, "bfloat16", "in bfloat16 .* multiples of 8; take intermediate_size=40"),
        ("mixtral", {"intermediate_size": 36}, "float32", None),
        ("qwen3_moe", {"hidden_size": 18, "moe_intermediate_size": 10}, "float32",
         "hidden_size=18, moe_intermediate_size=10: .* hidden_size=20 and moe_intermediate_size=12"),
        ("qwen3_moe", {"intermediate_size": 35}, "float32", None),  # of its dense layers
        ("mixtral", {"intermediate_size": 30}, "float64", None),  # which no kernel takes, whatever the sizes
    ],
)  # fmt: skip
def test_sizes_that_the_kernel_for_experts_refuses_are_warned_of(tmp_path, caplog, model_type, target, dtype, told):
    parent = build(config_of(model_type)).float()
    parent.save_pretrained(tmp_path / "parent")
    grow_checkpoint(tmp_path / "parent", tmp_path / "child", target, dtype=dtype, verify=False)
    assert ("takes multiples of" in caplog.text) == (told is not None)
    assert re.search(told or "", caplog.text)
    tokens = torch.arange(8)[None]
    if dtype != "float64" and told is None:
        AutoModelForCausalLM.from_pretrained(tmp_path / "child")(tokens)
    AutoModelForCausalLM.from_pretrained(tmp_path / "child", experts_implementation="eager")(tokens)
