"""Targets: what is derived, what is kept and what is refused."""

import copy
from dataclasses import asdict

import pytest
import torch
from growth_checkpoints import gpt2
from growth_models import LONGROPE, config_of
from transformers import GPT2Config, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from hf_progressive.growth import grow_checkpoint, grow_model
from hf_progressive.growth.families import family_of
from hf_progressive.growth.growth_plan import plan_growth


def sizes(plan):
    known = asdict(family_of(plan.target_config).sizes(plan.target_config))
    return {name: size for name, size in known.items() if size}  # a dense model has no experts


def test_what_is_not_named_is_kept_and_the_mlp_follows_the_width_where_the_family_says_so():
    parent = GPT2Config(n_layer=2, n_embd=32, n_head=4, vocab_size=50, n_positions=16, resid_pdrop=0.3)
    plan = plan_growth(parent, {"n_embd": 40, "n_head": 5})
    assert sizes(plan) == {
        "width": 40, "layers": 2, "heads": 5, "kv_heads": 5, "head_dim": 8, "mlp": 160, "vocab": 50, "positions": 16,
    }  # fmt: skip
    assert plan.target_config.n_inner is None
    assert plan.target_config.resid_pdrop == 0.3


def test_a_config_does_as_well_as_its_fields():
    parent = config_of("llama")
    fields = {"hidden_size": 24, "num_attention_heads": 3, "num_key_value_heads": 3}
    whole = LlamaConfig(**(parent.to_dict() | fields))
    assert plan_growth(parent, whole).target_config.to_dict() == plan_growth(parent, fields).target_config.to_dict()


def test_key_value_heads_follow_the_heads_of_a_parent_that_has_as_many():
    assert sizes(plan_growth(config_of("llama"), {"num_attention_heads": 4}))["kv_heads"] == 4
    grouped = config_of("llama", heads=4, kv_heads=2)
    assert sizes(plan_growth(grouped, {"num_attention_heads": 8}))["kv_heads"] == 2


def test_the_callers_configs_stay_as_they_were():
    parent, target = config_of("gpt2"), config_of("gpt2", width=32, heads=4)
    before = copy.deepcopy(parent.to_dict()), copy.deepcopy(target.to_dict())
    plan = plan_growth(parent, target)
    assert (parent.to_dict(), target.to_dict()) == before
    assert plan.target_config.layer_norm_epsilon == pytest.approx(0.5 * parent.layer_norm_epsilon)


SAME_SIZES = [
    ({"n_layer": 2}, True),
    ({"hidden_size": 24, "n_inner": 96}, True),  # an alias, and what the parent's config leaves to be derived
    (gpt2().config, True),
    ({}, False),
    ({"n_layer": 2, "resid_pdrop": 0.3}, False),
    ({"n_layer": 3}, False),
]


@pytest.mark.parametrize(("target", "warned"), SAME_SIZES)
def test_a_target_of_the_parents_sizes_is_warned_of(parent, tmp_path, caplog, target, warned):
    grow_model(gpt2(), target)
    grow_checkpoint(parent, tmp_path / "child", target, verify=False)
    told = "nothing is added: the parent has the target's sizes already; name larger ones"
    assert caplog.messages == [told, told] * warned


def test_a_dense_model_of_the_same_sizes_becomes_a_mixture_without_a_warning(caplog):
    dense = LlamaForCausalLM(config_of("llama"))
    grow_model(dense, {"num_local_experts": 2, "num_experts_per_tok": 1}, method="upcycle")
    assert caplog.messages == []


def test_the_vocabulary_is_padded_to_a_multiple():
    parent = config_of("gpt2", vocab=29)
    assert sizes(plan_growth(parent, {}, vocab_multiple=16))["vocab"] == 32
    assert sizes(plan_growth(parent, {"vocab_size": 32}, vocab_multiple=16))["vocab"] == 32


def test_names_common_to_all_families_are_understood():
    assert sizes(plan_growth(config_of("gpt2"), {"hidden_size": 32, "num_attention_heads": 4}))["width"] == 32


def test_layers_take_their_kind_along():
    parent = config_of("qwen2", layers=3, use_sliding_window=True, sliding_window=4, max_window_layers=2)
    full, sliding = "full_attention", "sliding_attention"
    assert parent.layer_types == [full, full, sliding]
    plan = plan_growth(parent, {"num_hidden_layers": 5}, depth_position=[0, 2], new_layers="fresh")
    assert plan.target_config.layer_types == [full, full, full, sliding, sliding]


def test_a_model_from_scratch_keeps_the_epsilon_of_its_own_config():
    target = config_of("gpt2", width=32, heads=4, layer_norm_epsilon=1e-5)
    assert plan_growth(config_of("gpt2"), target, method="random").target_config.layer_norm_epsilon == 1e-5


@pytest.mark.parametrize(
    ("model_type", "sizes", "target", "message"),
    [
        ("gpt2", {}, {"n_embed": 32}, r"'n_embed' is not a field of GPT2Config; did you mean 'n_embd'\?"),
        ("gpt2", {}, {"zzz": 32}, r"'zzz' is not a field of GPT2Config; the sizes are n_embd, n_layer, n_head"),
        ("gpt2", {}, {"n_embd": 32, "hidden_size": 32}, r"the target names a field twice: n_embd, hidden_size"),
        ("gpt2", {}, {"layer_norm_epsilon": 1e-5}, r"layer_norm_epsilon follows from the growth and cannot be chosen"),
        ("qwen2", {}, {"layer_types": ["full_attention"] * 2}, r"layer_types follows from the growth"),
        ("gpt2", {"width": 32, "heads": 4}, {"n_embd": 24, "n_head": 3}, r"never shrinks: width 32 → 24, heads 4 → 3"),
        ("gpt2", {}, {"n_layer": 1, "n_inner": 8}, r"never shrinks: layers 2 → 1, mlp 24 → 8"),
        (
            "gpt2",
            {},
            {"n_embd": 25},
            r"n_embd=25 is not divisible by n_head=2; at the parent's head_dim of 8 take n_head=3 and n_embd=24",
        ),
        ("gpt2", {}, {"n_head": 4}, r"n_head=4 at n_embd=16 would shrink head_dim from 8 to 4; .* n_embd=32"),
        ("gpt2", {}, {"n_embd": "wide"}, r"not a valid GPT2Config: .*n_embd"),
        ("gpt2", {}, {"activation_function": "relu"}, r"growth cannot change activation_function 'gelu_new' → 'relu'"),
        ("gpt2", {"tie_word_embeddings": False}, {"tie_word_embeddings": True}, r"cannot change tie_word_embeddings"),
        ("llama", {}, {"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}, r"cannot change rope_param"),
        (
            "llama",
            {"width": 24},
            {"num_attention_heads": 3, "num_key_value_heads": 2},
            r"3 heads are not divisible by",
        ),
        ("llama", {}, {"hidden_size": 17}, r"not a valid LlamaConfig: The hidden size \(17\) is not a multiple"),
        ("llama", {}, {"n_layer": 4}, r"'n_layer' is not a field of LlamaConfig; did you mean 'num_hidden_layers'\?"),
        (
            "qwen2",
            {"width": 24, "heads": 2},
            {"hidden_size": 60},
            r"or keep 12 and .* \(num_attention_heads=5 at ",
        ),
        ("llama", {}, {"head_dim": 12}, r"head_dim 8 → 12 is not exact under RoPE: .*; take 16, or keep 8"),
        ("qwen3", {}, {"head_dim": 16}, r"head_dim 8 → 16 is not exact for qwen3: its query and key norms average"),
        ("nanochat", {}, {"hidden_size": 32}, r"head_dim 8 → 16 is not exact for nanochat: its query and key norms"),
        (
            "nanochat",
            {"tie_word_embeddings": True},
            {"hidden_size": 24, "num_attention_heads": 3},
            r"width 16 → 24 is not exact for nanochat with tied embeddings: .*; set tie_word_embeddings=False",
        ),
        (
            "llama",
            {"heads": 6, "kv_heads": 2, "width": 24},
            {"num_attention_heads": 6, "num_key_value_heads": 3},
            r"6 heads over 3 key/value heads cannot hold the parent's 2 groups of 3: groups of 2 need 4 key/value",
        ),
    ],
)
def test_what_cannot_be_reached_is_refused_with_the_reason(model_type, sizes, target, message):
    with pytest.raises(ValueError, match=message):
        plan_growth(config_of(model_type, **sizes), target)


def test_another_family_is_refused():
    with pytest.raises(ValueError, match=r"a gpt2 cannot grow into a llama; the family must stay"):
        plan_growth(config_of("gpt2"), config_of("llama"))


def test_what_is_no_config_is_refused():
    with pytest.raises(
        ValueError, match=r"^'llama' is no model's config; load one, as by AutoConfig\.from_pretrained"
    ):
        plan_growth("llama", {"num_hidden_layers": 4})
    with pytest.raises(
        ValueError, match=r"^the target is a NoneType; give fields of the config, such as \{'num_hidden"
    ):
        plan_growth(config_of("llama"), None)


@pytest.mark.parametrize("target", [{"max_position_embeddings": 32}, {"head_dim": 16}])
def test_rotations_that_depend_on_what_grows_are_refused(target):
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    parent = config_of("llama", rope_parameters=rope)
    with pytest.raises(
        ValueError, match=r"rope_type 'dynamic' turns at rates that depend on (the context length|head_dim); keep"
    ):
        plan_growth(parent, target)
    plan_growth(parent, {"num_attention_heads": 4, "hidden_size": 32})


def test_tiling_names_the_axis_that_is_no_multiple():
    with pytest.raises(ValueError, match=r"^MLP width: method 'tile' grows by whole multiples: 24 → 40 is none"):
        plan_growth(config_of("llama"), {"intermediate_size": 40}, method="tile")


@pytest.mark.parametrize("name", ["rope_theta", "rope_scaling", "rope_type"])
def test_what_lives_in_the_rope_parameters_is_said_to(name):
    with pytest.raises(ValueError, match=f"{name}: lives in rope_parameters, .*'rope_theta': 10000.0"):
        plan_growth(config_of("llama"), {name: 1})


def test_a_field_that_says_what_the_parent_is_may_stand_in_a_target():
    parent = config_of("llama", dtype="float32")
    assert plan_growth(parent, {"dtype": "float32", "model_type": "llama"}).target_config.dtype == parent.dtype


@pytest.mark.parametrize(("context", "follows"), [(16, 24), (12, 12)])
def test_the_older_name_of_gpt2s_context_follows_where_it_said_the_same(context, follows):
    parent = GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=50, n_positions=16, n_ctx=context)
    assert plan_growth(parent, {"n_positions": 24}).target_config.n_ctx == follows


YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 4}


def test_yarn_turns_by_the_length_that_it_was_made_for_whatever_the_context():
    parent = config_of("llama", rope_parameters=YARN)
    longer = plan_growth(parent, {"max_position_embeddings": 64}).target_config
    rates = [LlamaRotaryEmbedding(config) for config in (parent, longer)]
    assert torch.equal(rates[0].inv_freq, rates[1].inv_freq)
    assert rates[0].attention_scaling == rates[1].attention_scaling
    with pytest.raises(ValueError, match="rope_type 'yarn' turns at rates that depend on head_dim; keep head_dim="):
        plan_growth(parent, {"head_dim": 2 * parent.head_dim})


def test_longrope_asks_for_the_heads_that_its_factors_are_listed_for():
    parent = config_of("phi3", rope_parameters=LONGROPE, original_max_position_embeddings=4)
    with pytest.raises(ValueError, match="^rope_type 'longrope' .* depend on head_dim; keep head_dim=8$"):
        plan_growth(parent, {"hidden_size": 32})


@pytest.mark.parametrize(
    ("family", "fields", "said"),
    [
        (
            "llama",
            {"pad_token_id": 400},
            r"pad_token_id=400: is outside of the vocabulary of \d+, .*or vocab_size=401",
        ),
        ("llama", {"eos_token_id": [1, 900], "vocab_size": 500}, "vocabulary of 500, whose last number is 499; take"),
        ("gpt2", {"bos_token_id": 500}, "bos_token_id=500: is outside of the vocabulary"),
        (
            "olmo2",
            {"head_dim": 16},
            "'head_dim' is not a field of Olmo2Config; it is hidden_size / num_attention_heads",
        ),
        ("gpt2", {"head_dim": 16}, "'head_dim' is not a field of GPT2Config; it is n_embd / n_head; set these"),
        ("llama", {"NUM_HIDDEN_LAYERS": 4}, "'NUM_HIDDEN_LAYERS' is not a field .*did you mean 'num_hidden_layers'"),
    ],
)
def test_numbers_of_tokens_and_names_that_the_target_cannot_have_are_refused(family, fields, said):
    with pytest.raises(ValueError, match=said):
        plan_growth(config_of(family), fields)


def test_a_special_token_may_be_new_with_the_vocabulary_and_the_parents_stays_whatever_it_is():
    parent = config_of("llama", eos_token_id=50_000)
    rows = parent.vocab_size
    plan = plan_growth(parent, {"pad_token_id": rows}, vocab_multiple=rows + 1)
    assert (plan.target_config.pad_token_id, plan.target_config.vocab_size) == (rows, rows + 1)
    assert plan.target_config.eos_token_id == 50_000
