"""From dense to experts: the mixture computes what the dense model does, or says what it does not preserve."""

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from mixture_models import PAIRS, build, config_of, experts_field
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config

from hf_progressive.growth import grow_checkpoint, grow_model, new_entries, plan_growth, verify_growth
from hf_progressive.growth.optimizer import grow_optimizer_state, parameter_groups
from hf_progressive.storage import read_json

WIDER = {"hidden_size": 24, "num_attention_heads": 3, "num_key_value_heads": 3, "num_hidden_layers": 3}
UPCYCLED = [
    ("llama", {"num_local_experts": 4}),
    ("llama", {"num_local_experts": 3, "num_experts_per_tok": 1, "intermediate_size": 32, **WIDER}),
    ("mistral", {"num_local_experts": 4, "num_experts_per_tok": 3}),
    ("qwen3", {"num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True, **WIDER}),
    ("qwen3", {"num_experts": 3, "num_experts_per_tok": 3}),
    ("olmo2", {"num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True, "num_hidden_layers": 3}),
    ("qwen2", {"num_experts": 4, "moe_intermediate_size": 8, **WIDER}),
]
CHILD = {"llama": "mixtral", "mistral": "mixtral", "qwen3": "qwen3_moe", "olmo2": "flex_olmo", "qwen2": "qwen2_moe"}


def parent_of(model_type, dtype=torch.float64, **fields):
    extra = {"mistral": {"sliding_window": 5}, "qwen2": {"use_sliding_window": True, "sliding_window": 4,
             "max_window_layers": 1, "tie_word_embeddings": True}}  # fmt: skip
    return build(config_of(model_type, **extra.get(model_type, {}) | fields), dtype=dtype)


@pytest.mark.parametrize(("model_type", "target"), UPCYCLED)
def test_an_upcycled_model_computes_what_the_dense_one_does(model_type, target):
    parent = parent_of(model_type)
    child = grow_model(parent, target, method="upcycle", init_std=0.3)
    assert child.config.model_type == CHILD[model_type]
    check = verify_growth(parent, child, dtype="float64")
    assert check.tolerance == 1e-9
    assert check.preserved, check.describe()


@st.composite
def pairs(draw, model_type):
    """A random dense parent, and a random mixture that is exact: experts, and any other axes at once."""

    def integer(low, high):
        return draw(st.integers(low, high))

    kv_heads, group, experts = integer(1, 2), integer(1, 2), integer(1, 5)
    heads, chosen, over_all = kv_heads * group, integer(1, experts), model_type == "olmo2"
    grown_heads = heads * integer(1, 2) if over_all else heads + group * integer(0, 2)
    old = {
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "hidden_size": 8 * heads,
        "num_hidden_layers": integer(1, 3),
        "intermediate_size": integer(3, 9),
        "vocab_size": integer(5, 12),
        "tie_word_embeddings": draw(st.booleans()),
    }
    new = {
        "num_attention_heads": grown_heads,
        "num_key_value_heads": kv_heads if over_all else grown_heads // group,
        "hidden_size": 8 * grown_heads,
        "num_hidden_layers": old["num_hidden_layers"] + integer(0, 2),
        "intermediate_size": old["intermediate_size"] + integer(0, 9),
        "vocab_size": old["vocab_size"] + integer(0, 4),
        experts_field(CHILD[model_type]): experts,
        "num_experts_per_tok": chosen,
    }
    if model_type in ("qwen3", "olmo2"):
        new["norm_topk_prob"] = chosen < experts or draw(st.booleans())
    if model_type in ("qwen3", "qwen2"):
        new["moe_intermediate_size"] = old["intermediate_size"] + integer(0, 9)
        new["mlp_only_layers"] = draw(st.sampled_from(([], [0])))
    options = {
        "depth_position": draw(st.sampled_from(("append", "spread"))),
        "new_layers": draw(st.sampled_from(("copy", "fresh"))),
        "init_std": 0.3,
        "free_scale": draw(st.sampled_from((None, 1.0))),
    }
    return old, new, options


@pytest.mark.slow
@pytest.mark.parametrize("model_type", CHILD)
def test_upcycling_keeps_the_function_for_many_pairs(model_type):
    @settings(max_examples=PAIRS, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(pairs(model_type))
    def check(pair):
        old, new, options = pair
        parent = parent_of(model_type, **old)
        child = grow_model(parent, new, method="upcycle", **options)
        result = verify_growth(parent, child, dtype="float64", sequences=1)
        assert result.tolerance == 1e-9
        assert result.preserved, (result.describe(), pair)

    check()


@pytest.mark.parametrize(("model_type", "target"), [UPCYCLED[0], *UPCYCLED[2:4], *UPCYCLED[5:]])
def test_the_checkpoint_has_published_names_loads_in_the_stock_class_and_generates(model_type, target, tmp_path):
    parent = parent_of(model_type, torch.float32)
    parent.save_pretrained(tmp_path / "dense", max_shard_size="8KB")
    report = grow_checkpoint(tmp_path / "dense", tmp_path / "experts", target, method="upcycle", max_shard_size="16KB")
    assert report.family == CHILD[model_type]
    assert report.preserves_function
    assert report.verification.preserved
    assert report.changes == ()

    child, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "experts", output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert child.config.architectures == [type(child).__name__]
    child.save_pretrained(tmp_path / "stock")
    written = {n: t for file in (tmp_path / "experts").glob("*.safetensors") for n, t in load_file(file).items()}
    saved = {n: t for file in (tmp_path / "stock").glob("*.safetensors") for n, t in load_file(file).items()}
    assert written.keys() == saved.keys()
    assert all(torch.equal(written[name], saved[name]) for name in saved)

    prompt = torch.tensor([[3, 5, 7, 11]])
    options = {"do_sample": False, "max_new_tokens": 10, "min_new_tokens": 10, "use_cache": True}
    texts = [model.generate(prompt, attention_mask=torch.ones_like(prompt), **options) for model in (parent, child)]
    assert torch.equal(*texts)

    # The plan made again from the record is the same plan.
    record = read_json(tmp_path / "experts/growth.json")
    again = plan_growth(parent.config, AutoConfig.from_pretrained(tmp_path / "experts"), method="upcycle")
    assert [vars(tensor) for tensor in again.tensors] == [
        vars(tensor) for tensor in plan_growth(parent.config, target, method="upcycle").tensors
    ]
    assert record["plan"]["source_family"] == model_type


@pytest.mark.parametrize(
    ("parent", "target", "message"),
    [
        (
            config_of("qwen3"),
            {"num_experts": 8, "num_experts_per_tok": 2},
            "without renormalisation the weights of 2 of 8 equal experts do not add up to 1; set norm_topk_prob=true,"
            " or num_experts_per_tok=8",
        ),
        (config_of("llama", mlp_bias=True), {"num_local_experts": 4}, "mlp_bias=True has no exact mixtral"),
        (config_of("llama"), {}, "num_local_experts is None; say how many experts the mixtral is to have"),
        (config_of("llama"), {"model_type": "qwen3_moe"}, "a llama is upcycled into a mixtral, not into a qwen3_moe"),
        (config_of("mixtral"), {"num_local_experts": 8}, "makes no mixture of a mixtral; it knows llama → mixtral"),
        (GPT2Config(), {"num_local_experts": 8}, "makes no mixture of a gpt2"),
        (config_of("opt"), {"num_local_experts": 8}, "makes no mixture of an opt"),
        (config_of("llama"), {"num_local_experts": 4, "moe_intermediate_size": 8}, "not a field of MixtralConfig"),
        (config_of("llama"), {"num_local_experts": 2, "num_experts_per_tok": 3}, "num_experts_per_tok=3 .* 2 experts"),
    ],
)
def test_what_is_not_exact_is_refused_with_the_reason(parent, target, message):
    with pytest.raises(ValueError, match=message):
        plan_growth(parent, target, method="upcycle")


def test_another_family_is_reached_by_upcycling_alone():
    with pytest.raises(ValueError, match="a llama cannot grow into a mixtral; .*method 'upcycle'"):
        plan_growth(config_of("llama"), config_of("mixtral"))
    with pytest.raises(ValueError, match="drop=0.5 is for the method 'upcycle'"):
        plan_growth(config_of("mixtral"), {}, drop=0.5)


def test_drop_draws_the_same_units_of_three_matrices_anew_with_the_statistics_of_the_old(tmp_path):
    parent = parent_of("llama", torch.float32, intermediate_size=400)
    parent.model.layers[0].mlp.up_proj.weight.data += 3.0  # a mean that is not 0
    parent.save_pretrained(tmp_path / "dense")
    target = {"num_local_experts": 3}
    report = grow_checkpoint(tmp_path / "dense", tmp_path / "experts", target, method="upcycle", drop=0.5)
    assert not report.preserves_function
    assert not report.verification.preserved
    assert report.changes == ("50% of every expert's hidden units are drawn anew, the others are the dense model's",)

    mlp = parent.model.layers[0].mlp
    child = AutoModelForCausalLM.from_pretrained(tmp_path / "experts")
    experts = child.model.layers[0].mlp.experts
    masks = {name: entries.mask() for name, entries in new_entries(tmp_path / "experts").items()}
    sets = []
    for expert in range(3):
        gate, up = experts.gate_up_proj[expert].chunk(2)
        down = experts.down_proj[expert]
        kept = (gate == mlp.gate_proj.weight).all(1)
        assert torch.equal(kept, (up == mlp.up_proj.weight).all(1))
        assert torch.equal(kept, (down == mlp.down_proj.weight).all(0))
        assert kept.sum() == 200
        sets.append(tuple(kept.tolist()))
        for new, old in ((gate[~kept], mlp.gate_proj.weight), (up[~kept], mlp.up_proj.weight),
                         (down[:, ~kept], mlp.down_proj.weight)):  # fmt: skip
            assert new.mean().item() == pytest.approx(old.mean().item(), abs=0.02)
            assert new.std().item() == pytest.approx(old.std().item(), rel=0.05)
        mask = masks["model.layers.0.mlp.experts.gate_up_proj"][expert]
        assert torch.equal(mask, torch.cat([~kept, ~kept])[:, None].expand_as(mask))
        assert torch.equal(masks["model.layers.0.mlp.experts.down_proj"][expert], (~kept).expand(16, -1))
    assert len(set(sets)) == 3
    assert masks["model.layers.0.mlp.gate.weight"].all()
    assert not masks["model.layers.0.self_attn.q_proj.weight"].any()
    entries = new_entries(tmp_path / "experts")["model.layers.0.mlp.experts.down_proj"]
    assert entries.count == int(entries.mask().sum())
    assert torch.equal(entries.of_shard(1000, 9000), entries.mask().flatten()[1000:10000])


def test_noise_changes_every_expert_and_says_so():
    parent = parent_of("llama")
    plan = plan_growth(parent.config, {"num_local_experts": 4}, method="upcycle", noise=0.01)
    assert plan.changes == ("experts' matrices carry noise of 0.01 of their RMS",)
    child = grow_model(parent, {"num_local_experts": 4}, method="upcycle", noise=0.01)
    down, old = child.model.layers[0].mlp.experts.down_proj, parent.model.layers[0].mlp.down_proj.weight
    difference = (down - old).square().mean((1, 2)).sqrt() / old.square().mean().sqrt()
    assert difference.tolist() == pytest.approx([0.01] * 4, rel=0.2)
    check = verify_growth(parent, child, dtype="float64")
    assert 1e-9 < check.max_abs_logit_diff / check.max_abs_logit < 0.1


def gradients(model, tokens):
    model(tokens, labels=tokens).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("option", ["drop", "noise"])
def test_options_for_copies_are_refused_where_experts_are_none(option):
    with pytest.raises(ValueError, match=rf"{option}=0.5 tells copies .* routed experts of a qwen2_moe are fresh"):
        plan_growth(config_of("qwen2"), {"num_experts": 4}, method="upcycle", **{option: 0.5})


def test_gradients_divide_among_the_experts_and_add_up_to_the_dense_models():
    parent = parent_of("llama")
    target = {"num_local_experts": 4}
    child = grow_model(parent, target, method="upcycle")
    child.set_experts_implementation("eager")
    tokens = torch.randint(0, 29, (2, 9), generator=torch.Generator().manual_seed(0))
    before, after = gradients(parent, tokens), gradients(child, tokens)
    carried = plan_growth(parent.config, target, method="upcycle").map_gradient(before)
    for name in ("gate_up_proj", "down_proj"):
        shares, true = (of[f"model.layers.0.mlp.experts.{name}"] for of in (carried, after))
        assert all(torch.equal(share, shares[0]) for share in shares)
        # The router's float32 weights add up to 1 to 1e-7.
        torch.testing.assert_close(shares.sum(0), true.sum(0), rtol=1e-5, atol=1e-7)
    assert "model.layers.0.mlp.gate.weight" not in carried
    name = "model.layers.1.self_attn.q_proj.weight"
    torch.testing.assert_close(carried[name], after[name], rtol=1e-5, atol=1e-7)


def test_the_shared_experts_gradients_are_those_of_the_mlp():
    parent = parent_of("qwen2", tie_word_embeddings=False)
    target = {"num_experts": 4, "moe_intermediate_size": 8}
    child = grow_model(parent, target, method="upcycle")
    child.set_experts_implementation("eager")
    tokens = torch.randint(0, 29, (2, 9), generator=torch.Generator().manual_seed(0))
    before, after = gradients(parent, tokens), gradients(child, tokens)
    carried = plan_growth(parent.config, target, method="upcycle").map_gradient(before)
    for part in ("gate_proj", "up_proj", "down_proj"):
        name = f"model.layers.1.mlp.shared_expert.{part}.weight"
        torch.testing.assert_close(carried[name], after[name], rtol=1e-9, atol=1e-12)


def adamw(model):
    named = dict(model.named_parameters())
    groups = [[named[name] for name in names] for names in parameter_groups(model.config)]
    return torch.optim.AdamW([{"params": group} for group in groups])


def test_moments_grow_along_and_the_router_starts_anew():
    parent = parent_of("llama", torch.float32)
    optimizer = adamw(parent)
    gradients(parent, torch.arange(9)[None])
    optimizer.step()
    plan = plan_growth(parent.config, {"num_local_experts": 4}, method="upcycle")
    state = grow_optimizer_state(optimizer.state_dict(), plan)
    child = grow_model(parent, {"num_local_experts": 4}, method="upcycle")
    grown = adamw(child)
    grown.load_state_dict(state)
    moments = {name: grown.state[parameter] for name, parameter in child.named_parameters()}
    old = {name: optimizer.state[parameter] for name, parameter in parent.named_parameters()}
    down = moments["model.layers.0.mlp.experts.down_proj"]
    dense = old["model.layers.0.mlp.down_proj.weight"]
    torch.testing.assert_close(down["exp_avg"], (dense["exp_avg"] / 4).expand(4, -1, -1))
    torch.testing.assert_close(down["exp_avg_sq"], (dense["exp_avg_sq"] / 16).expand(4, -1, -1))
    assert down["step"] == 1
    router = moments["model.layers.0.mlp.gate.weight"]
    assert router["step"] == 0
    assert not router["exp_avg"].any()
    grown.step()


def test_a_window_that_the_dense_model_does_not_have_is_refused():
    parent = parent_of("llama", torch.float32)
    target = {"num_local_experts": 4, "sliding_window": 2}
    with pytest.raises(ValueError, match="growth cannot change sliding_window None → 2; keep the parent's"):
        plan_growth(parent.config, target, method="upcycle")
    windowed = grow_model(parent, {"num_local_experts": 4}, method="upcycle")
    windowed.config.sliding_window = 2
    tokens = torch.arange(9)[None]
    with torch.no_grad():  # the stock class of the mixture would not compute what the dense model does
        assert (windowed(tokens).logits - parent(tokens).logits).abs().max() > 0.01
