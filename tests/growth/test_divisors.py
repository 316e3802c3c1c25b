"""A config's number by which the stock class divides by 0 is named, where the weights would be blamed."""

import json
import re

import pytest
import torch
from growth_checkpoints import save
from transformers import AutoConfig, AutoModelForCausalLM

from hf_progressive.growth import grow_checkpoint, verify_growth
from hf_progressive.growth.divisors import unusable_value

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 20, "bos_token_id": 0,
         "eos_token_id": 0, "max_position_embeddings": 8}  # fmt: skip
LLAMA_LIKE = SMALL | {"head_dim": 8, "num_key_value_heads": 2, "intermediate_size": 24, "pad_token_id": None}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 4}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 4}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [1.0] * 4}
BY_LAYERS = {"full_attention": {"rope_type": "default", "rope_theta": 0.0},
             "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}  # fmt: skip

NAMED = [
    ("granite", {"logits_scaling": 0.0}, "logits_scaling"),
    ("granite", {"attention_multiplier": 0.0}, "attention_multiplier"),
    ("granite", {"attention_multiplier": -0.5}, "attention_multiplier"),
    *(
        (name, {"rope_theta": 0}, "rope_theta")
        for name in ("llama", "qwen3", "granite", "smollm3", "nanochat", "phi3")
    ),
    ("llama", {"rope_theta": -1e4}, "rope_theta"),
    ("falcon", {"rope_theta": 0}, "rope_theta"),
    ("gemma3_text", {"rope_parameters": BY_LAYERS, "layer_types": ["full_attention"]}, "rope_theta of full_attention"),
    ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 0.0}}, "factor"),
    ("llama", {"rope_parameters": LLAMA3 | {"factor": 0.0}}, "factor"),
    ("llama", {"rope_parameters": LLAMA3 | {"low_freq_factor": 0.0}}, "low_freq_factor"),
    ("llama", {"rope_parameters": YARN | {"factor": 0.0}}, "factor"),
    ("llama", {"rope_parameters": YARN | {"rope_theta": 1.0}}, "rope_theta"),
    (
        "llama",
        {"rope_parameters": YARN | {"original_max_position_embeddings": -4}},
        "original_max_position_embeddings",
    ),
    ("phi3", {"rope_parameters": LONG | {"short_factor": [1.0, 0.0, 1.0, 1.0]}}, "short_factor"),
    ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar"),
    ("llama", {"rms_norm_eps": -1.0}, "rms_norm_eps"),
    ("llama", {"rms_norm_eps": float("nan")}, "rms_norm_eps"),
    ("gpt_neox", {"layer_norm_eps": -1.0}, "layer_norm_eps"),
    ("falcon", {"layer_norm_epsilon": -1.0}, "layer_norm_epsilon"),
]


def config_of(model_type, change):
    own = SMALL if model_type in ("falcon", "gpt_neox") else LLAMA_LIKE
    return AutoConfig.for_model(model_type, **own | change)


def stock_logits(config, attention=None):
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        return model(torch.arange(8)[None], use_cache=False).logits


@pytest.mark.parametrize(("model_type", "change", "named"), NAMED)
def test_a_number_with_which_the_stock_class_makes_no_logit_is_named(model_type, change, named):
    config = config_of(model_type, change)
    try:
        # On CPUs with AVX-512 torch 2.13's fused attention makes numbers of scores that are none.
        finite = all(stock_logits(config, attention).isfinite().all() for attention in (None, "eager"))
    except (ZeroDivisionError, ValueError):  # Python's own division, or logarithm
        finite = False
    assert not finite
    fault = unusable_value(config)
    assert fault is not None
    assert fault.startswith(named)


FINE = [
    ("granite", {}),
    ("granite", {"logits_scaling": -3.0, "residual_multiplier": 0.0, "embedding_multiplier": 0.0}),
    ("gemma2", {}),
    ("gemma2", {"final_logit_softcapping": None, "attn_logit_softcapping": -2.0}),
    ("gemma3_text", {}),
    ("falcon", {"alibi": True, "rope_theta": 0}),
    ("llama", {"rms_norm_eps": 0.0}),
    ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 0.0}}),
    ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": -1.0}}),
    ("llama", {"rope_parameters": LLAMA3}),
    ("llama", {"rope_parameters": YARN}),
    ("phi3", {"rope_parameters": LONG}),
]


@pytest.mark.parametrize(("model_type", "change"), FINE)
def test_what_the_stock_class_computes_with_is_taken(model_type, change):
    config = config_of(model_type, change)
    assert stock_logits(config).isfinite().all()
    assert unusable_value(config) is None


def test_any_kind_of_value_may_stand_there():
    config = config_of("llama", {})
    config.rope_parameters = {"rope_type": "linear", "rope_theta": "x", "factor": None}
    assert unusable_value(config) is None
    config.rope_parameters = {"rope_type": "default", "rope_theta": 10**400}
    assert unusable_value(config) is None


def test_the_file_of_the_config_is_named_and_not_the_weights(tmp_path):
    sound = AutoModelForCausalLM.from_config(config_of("granite", {}))
    folders = [save(sound, tmp_path / name) for name in ("sound", "odd")]
    path = tmp_path / "odd" / "config.json"
    for key in ("logits_scaling", "attention_multiplier", "rope_theta"):
        written = json.loads((tmp_path / "sound" / "config.json").read_text())
        if key == "rope_theta":
            written.pop("rope_parameters")
        path.write_text(json.dumps(written | {key: 0.0}))
        for run in (
            lambda: verify_growth(*folders),
            lambda: verify_growth(*folders[::-1]),
            lambda: grow_checkpoint(folders[1], tmp_path / "child", {"num_hidden_layers": 2}),
        ):
            with pytest.raises(
                ValueError, match=f"^{re.escape(str(path))}: {key}.*: expected a finite number"
            ) as raised:
                run()
            assert "\n" not in str(raised.value)


def test_of_a_model_in_memory_too():
    model = AutoModelForCausalLM.from_config(config_of("granite", {}))
    model.config.logits_scaling = 0.0
    with pytest.raises(ValueError, match="^GraniteForCausalLM: logits_scaling: expected"):
        verify_growth(model, model)
