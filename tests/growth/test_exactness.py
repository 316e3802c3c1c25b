"""Named cases of exact growth, each one mechanism at a time."""

import pytest
import torch
from growth_models import build, config_of, grow, norms_in_full_precision, relative_difference, tokens_for

from hf_progressive.growth.growth_plan import plan_growth

CASES = {
    "odd width": ("gpt2", {"width": 96, "heads": 12}, {"n_embd": 104, "n_head": 13}),
    "width and depth": ("gpt2", {"width": 96, "heads": 6, "head_dim": 16}, {"n_embd": 144, "n_head": 9, "n_layer": 4}),
    "head_dim alone": ("gpt2", {"width": 96, "heads": 6}, {"n_embd": 102}),
    "more heads, each larger": ("gpt2", {"width": 32, "heads": 4}, {"n_embd": 55, "n_head": 5}),
    "MLP width no multiple of the width": ("gpt2", {}, {"n_inner": 37}),
    "longer context": ("gpt2", {}, {"n_positions": 40}),
    "untying": ("gpt2", {}, {"tie_word_embeddings": False, "n_embd": 24, "n_head": 3}),
    "heads wider than the stream": ("llama", {}, {"num_attention_heads": 8, "hidden_size": 16}),
    "head_dim under RoPE": ("llama", {}, {"head_dim": 24}),
    "larger groups": ("llama", {"heads": 4, "kv_heads": 2}, {"num_attention_heads": 8, "num_key_value_heads": 2}),
    "more groups": ("llama", {"heads": 4, "kv_heads": 2}, {"num_attention_heads": 8, "num_key_value_heads": 4}),
    "divided groups": ("llama", {"heads": 4, "kv_heads": 1}, {"num_key_value_heads": 4}),
    "unevenly divided groups": (
        "llama",
        {"heads": 3, "kv_heads": 1, "width": 24},
        {"num_attention_heads": 4, "num_key_value_heads": 2},
    ),
    "width beside query norms": ("qwen3", {}, {"hidden_size": 40}),
    "scaled embedding": ("gemma", {}, {"hidden_size": 22, "head_dim": 8}),
    "parallel, a quarter of each head turned": (
        "gpt_neox",
        {"layers": 3},
        {"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 4, "intermediate_size": 31},
    ),
    "a head's unturned part alone": ("gpt_neox", {}, {"hidden_size": 20}),
    "turned part too": ("gpt_neox", {}, {"hidden_size": 48, "num_attention_heads": 3}),
    "fixed epsilon": ("opt", {}, {"hidden_size": 27, "num_attention_heads": 3, "num_hidden_layers": 4, "ffn_dim": 31}),
    "rows beside positions": ("opt", {}, {"max_position_embeddings": 40, "vocab_size": 33}),
    "norms behind attention and MLP": (
        "gemma2",
        {"layers": 3},
        {"hidden_size": 24, "num_attention_heads": 3, "num_key_value_heads": 3, "num_hidden_layers": 4},
    ),
    "norms of queries stored less one": (
        "gemma3_text",
        {"layers": 3},
        {"hidden_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 4},
    ),
    "fused with the gate": (
        "phi3",
        {"heads": 4, "kv_heads": 2, "width": 32},
        {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 3, "intermediate_size": 31},
    ),
    "one key/value head": ("falcon", {}, {"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 3}),
    "new heads in the norm over all": (
        "olmo2",
        {},
        {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3},
    ),
    "groups divided under the norm over all": (
        "olmo3",
        {"heads": 4, "kv_heads": 2, "width": 32},
        {"num_key_value_heads": 4, "num_hidden_layers": 3},
    ),
    "no gain": ("nanochat", {}, {"hidden_size": 24, "num_attention_heads": 3}),
}


@pytest.mark.parametrize(("model_type", "sizes", "target"), CASES.values(), ids=CASES)
def test_growth_is_exact(model_type, sizes, target):
    parent = build(config_of(model_type, tie_word_embeddings=model_type != "nanochat", **sizes))
    tokens = tokens_for(parent.config)
    child, _ = grow(parent, target, init_std=0.5)
    with norms_in_full_precision(parent, child):
        assert relative_difference(parent, child, tokens) < 1e-12
    single, _ = grow(parent.float(), target, init_std=0.5)
    assert relative_difference(parent, single, tokens) < 1e-5


def test_an_epsilon_left_alone_would_not_be_exact():
    parent = build(config_of("gpt2"))
    child, plan = grow(parent, {"n_embd": 24, "n_head": 3})
    assert plan.target_config.layer_norm_epsilon == pytest.approx(1e-2 * 16 / 24)
    for module in child.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-2
    assert relative_difference(parent, child, tokens_for(parent.config)) > 1e-5


def test_new_layers_among_layers_that_divide_their_scores_by_their_number():
    parent = build(config_of("gpt2", layers=3, scale_attn_by_inverse_layer_idx=True))
    child, plan = grow(parent, {"n_layer": 5}, depth_position=[-1, 1])
    assert [layer.source for layer in plan.layers] == [0, 0, 1, 1, 2]
    assert relative_difference(parent, child, tokens_for(parent.config)) < 1e-12


def test_scores_computed_in_single_precision_are_exact_in_single_precision():
    parent = build(config_of("gpt2", reorder_and_upcast_attn=True, attn_implementation="eager"), dtype=torch.float32)
    child, _ = grow(parent, {"n_embd": 33, "n_head": 3, "n_layer": 3})
    child.set_attn_implementation("eager")
    assert relative_difference(parent, child, tokens_for(parent.config)) < 1e-5


def test_a_divided_group_keeps_its_key_value_head_in_every_part():
    parent = build(config_of("llama", heads=4, kv_heads=1))
    child, _ = grow(parent, {"num_key_value_heads": 2})
    old, new = (model.model.layers[0].self_attn.k_proj.weight for model in (parent, child))
    assert torch.equal(new.view(2, *old.shape), old.expand(2, -1, -1))


def test_a_chain_of_growths_stays_exact():
    grandparent = build(config_of("gpt2"))
    parent, _ = grow(grandparent, {"n_embd": 24, "n_head": 3, "n_layer": 3}, seed=1)
    child, plan = grow(parent, {"n_embd": 56, "n_head": 7, "n_layer": 4}, method="split", seed=2)
    assert plan.target_config.layer_norm_epsilon == pytest.approx(1e-2 * 16 / 24 * 48 / 56)
    assert relative_difference(grandparent, child, tokens_for(parent.config)) < 1e-12


def test_new_tokens_have_logits_near_the_mean_and_old_ones_theirs():
    parent = build(config_of("gpt2"))
    child, _ = grow(parent, {"vocab_size": 40})
    tokens = tokens_for(parent.config)
    with torch.no_grad():
        expected, found = parent(tokens).logits, child(tokens).logits
    torch.testing.assert_close(found[..., :29], expected)
    mean = expected.mean(-1, keepdim=True).expand(-1, -1, 11)
    torch.testing.assert_close(found[..., 29:], mean, atol=0.5, rtol=0)


def test_every_new_output_is_silent_in_what_reads_it():
    plan = plan_growth(config_of("llama"), {"num_attention_heads": 3, "num_key_value_heads": 3, "hidden_size": 24})
    for name in ("context", "mlp"):
        assert all(segment.read_as == "zero" for _, segment in plan.axes[name].new())
