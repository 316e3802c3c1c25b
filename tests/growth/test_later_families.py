"""What single families ask for: stored names, longrope, slopes, silent layers behind norms, and what is refused."""

import json
import math

import pytest
import torch
from growth_checkpoints import save
from growth_models import build, config_of, fields_of, grow, relative_difference, tokens_for
from safetensors import safe_open
from transformers import AutoModelForCausalLM
from transformers.models.falcon.modeling_falcon import build_alibi_tensor

from hf_progressive.growth import grow_checkpoint
from hf_progressive.growth.growth_plan import plan_growth
from hf_progressive.growth.hidden_matrices import Parts, hidden_matrices
from hf_progressive.storage import read_json
from hf_progressive.training.muon import MuonWithAdamW

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.5, 2.0, 2.5],
    "long_factor": [2.0, 3.0, 4.0, 5.0],
}
SLOPES = {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True}


@pytest.mark.parametrize("length", [5, 12])  # within the original length and beyond it
def test_a_longer_context_keeps_what_longrope_makes_of_scores(length):
    parent = build(config_of("phi3", positions=16, rope_parameters=LONGROPE, original_max_position_embeddings=8))
    child, plan = grow(parent, {"max_position_embeddings": 64, "hidden_size": 24, "num_attention_heads": 3})
    factor = math.sqrt(1 + math.log(16 / 8) / math.log(8))
    assert plan.target_config.rope_parameters["attention_factor"] == pytest.approx(factor)
    assert relative_difference(parent, child, tokens_for(parent.config, length=length)) < 1e-5


def test_new_heads_leave_the_old_ones_their_slopes():
    parent = build(config_of("falcon", heads=4, kv_heads=4, width=32, **SLOPES), dtype=torch.float32)
    child, _ = grow(parent, {"hidden_size": 56, "num_attention_heads": 7, "num_hidden_layers": 3})
    assert relative_difference(parent, child, tokens_for(parent.config)) < 1e-5
    four, seven, eight = (build_alibi_tensor(torch.ones(1, 3), heads, torch.float32) for heads in (4, 7, 8))
    assert torch.equal(four, seven[:4])
    assert not torch.equal(four, eight[:4])


REFUSED = {
    "slopes of more heads": (
        ("falcon", {"heads": 4, "kv_heads": 4, "width": 32, **SLOPES}),
        {"hidden_size": 64, "num_attention_heads": 8},
        "num_attention_heads 4 → 8 is not exact with alibi=True: .* take num_attention_heads=7 at the most",
    ),
    "slopes of wider heads": (
        ("falcon", SLOPES),
        {"hidden_size": 32},
        "head_dim 8 → 16 is not exact for falcon with alibi=True, whose slopes are divided",
    ),
    "new keys in a norm over all heads": (
        ("olmo2", {}),
        {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4},
        "2 → 4 key/value heads are not exact for olmo2: its key norm averages over all heads",
    ),
    "wider heads in a norm over all": (
        ("olmo3", {}),
        {"hidden_size": 32},
        "head_dim 8 → 16 is not exact for olmo3: its query and key norms average over all heads",
    ),
    "wider heads under a norm": (
        ("gemma3_text", {}),
        {"head_dim": 16},
        "head_dim 8 → 16 is not exact for gemma3_text: its query and key norms average over head_dim",
    ),
    "a norm behind the sum": (
        ("opt", {"do_layer_norm_before": False}),
        {"num_hidden_layers": 3},
        "do_layer_norm_before=False cannot be grown: a norm behind the sum .*; models of do_.*=True can",
    ),
    "embeddings of another width": (
        ("opt", {"word_embed_proj_dim": 8}),
        {"num_hidden_layers": 3},
        "word_embed_proj_dim=8 beside hidden_size=16 cannot be grown",
    ),
    "a part of a head that no pair fits": (
        ("gpt_neox", {}),
        {"hidden_size": 24},  # 2 of 8 dimensions are turned, 3 of 12
        "head_dim 8 → 12 is not exact under RoPE",
    ),
}


@pytest.mark.parametrize(("source", "target", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_exact_is_refused_with_the_reason(source, target, message):
    model_type, options = source
    with pytest.raises(ValueError, match=message):
        plan_growth(config_of(model_type, **options), target)


def test_heads_in_a_norm_over_all_grow_by_whole_copies():
    parent = build(config_of("olmo2"))
    target = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 48}
    child, _ = grow(parent, target, method="tile", uneven=0.5)
    assert relative_difference(parent, child, tokens_for(parent.config)) < 1e-5
    with pytest.raises(
        ValueError, match="2 → 3 heads are not exact for olmo2: its query norm averages over all heads"
    ):
        plan_growth(config_of("olmo2", kv_heads=1), {"num_attention_heads": 3, "hidden_size": 24}, method="split")


@pytest.mark.parametrize("model_type", ["gemma2", "olmo2"])
def test_a_layer_that_a_norm_silences_can_learn_what_to_write_to_new_channels(model_type):
    parent = build(config_of(model_type))
    sizes = {"width": 32, "heads": 4, "kv_heads": 2, "layers": 3}
    child, plan = grow(parent, fields_of(model_type, **sizes), init_std=0.3)
    gain = child.get_parameter("model.layers.2.post_attention_layernorm.weight")
    assert torch.all(gain == -plan.tensor("model.layers.2.post_attention_layernorm.weight").offset)
    assert torch.all(child.get_parameter("model.layers.2.self_attn.o_proj.weight")[16:].any(1))
    assert not torch.any(child.get_parameter("model.layers.1.self_attn.o_proj.weight")[16:])


@pytest.mark.parametrize(
    ("written", "tied"),
    [
        ("embed_out.weight", False),
        pytest.param("embed_out.weight", True, marks=pytest.mark.slow),
        pytest.param("lm_head.weight", False, marks=pytest.mark.slow),
        pytest.param("lm_head.weight", True, marks=pytest.mark.slow),
    ],
)
def test_the_output_head_of_gpt_neox_is_stored_by_its_published_name(written, tied, tmp_path):
    parent = build(config_of("gpt_neox", tie_word_embeddings=tied), dtype=torch.float32)
    if written == "embed_out.weight":
        parent.save_pretrained(tmp_path / "parent")
    else:
        save(parent, tmp_path / "parent")
    target = {"hidden_size": 24, "num_attention_heads": 3, "tie_word_embeddings": False}
    report = grow_checkpoint(tmp_path / "parent", tmp_path / "child", target, progress=False)
    assert report.verification.preserved
    with safe_open(tmp_path / "child" / "model.safetensors", "pt") as file:
        assert "embed_out.weight" in set(file.keys())
    child, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "child", output_loading_info=True)
    assert not any(loading.values())
    assert relative_difference(parent, child, tokens_for(parent.config)) < 1e-5


def test_muon_takes_query_key_and_value_of_all_heads_as_three_matrices():
    model = build(config_of("gpt_neox", layers=1), dtype=torch.float32)
    parts = hidden_matrices(model)["gpt_neox.layers.0.attention.query_key_value.weight"]
    assert parts == Parts(0, (16, 16, 16), 2)
    generator = torch.Generator().manual_seed(0)
    gradient, weight = (torch.randn(48, 16, generator=generator) for _ in range(2))
    by_head = [torch.cat([torch.arange(8) + 24 * head + 8 * part for head in range(2)]) for part in range(3)]
    order = torch.cat(by_head)  # query, key, value one after the other
    stepped = []
    for rows, divided in ((torch.arange(48), parts), (order, Parts(0, (16, 16, 16)))):
        parameter = torch.nn.Parameter(weight[rows].clone())
        parameter.grad = gradient[rows].clone()
        MuonWithAdamW([], [(parameter, divided)], lr=1.0, muon_lr=0.1).step()
        stepped.append(parameter.detach())
    torch.testing.assert_close(stepped[0][order], stepped[1])


def test_code_that_became_the_stock_class_stays_behind(tmp_path):
    save(build(config_of("phi3"), dtype=torch.float32), tmp_path / "parent")
    path = tmp_path / "parent" / "config.json"
    published = {"AutoConfig": "config_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}
    config = read_json(path)
    path.write_text(json.dumps({**config, "auto_map": {**published, "AutoTokenizer": "org/other"}}))
    report = grow_checkpoint(tmp_path / "parent", tmp_path / "child", {"num_hidden_layers": 3}, progress=False)
    assert report.verification.preserved
    assert "auto_map" not in read_json(tmp_path / "child" / "config.json")
    for other in ({"AutoModelForCausalLM": "modeling_phi3.MyPhi3"}, {"AutoConfig": None}):
        path.write_text(json.dumps({**config, "auto_map": {**published, **other}}))
        with pytest.raises(ValueError, match="has an auto_map, so it needs remote code"):
            grow_checkpoint(tmp_path / "parent", tmp_path / "other", {"num_hidden_layers": 3})
