"""The depth dial against the stock classes, PyTorch's own FLOP counter and nanochat's published sizes."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from hf_progressive.config import ModelConfig, RungConfig, TrainingConfig
from hf_progressive.growth.families import FAMILIES
from hf_progressive.planning.sizing import (
    count_parameters,
    rung_model_config,
    size_rung,
)
from hf_progressive.training.flops import flops_per_token


def build(family: str = "gpt2", *, depth=None, vocab_size=320, context=64, head_dim=16, fields=None, rung=None):
    """A rung's configuration with an aspect ratio of 32."""
    model = ModelConfig(family=family, context=context, aspect_ratio=32, head_dim=head_dim, fields=fields or {})
    config = RungConfig(name=f"d{depth}", depth=depth) if depth else RungConfig(name="named", fields=rung)
    return rung_model_config(model, config, vocab_size=vocab_size)


def instantiate(config):
    config._attn_implementation = "eager"  # the FLOP counter does not see the fused CPU kernels
    return AutoModelForCausalLM.from_config(config)


CASES = {
    "gpt2, depth": {"depth": 2},
    "gpt2, explicit": {"rung": {"n_layer": 3, "n_embd": 48, "n_head": 2}, "context": 24},
    "gpt2, untied, n_inner": {"depth": 1, "fields": {"tie_word_embeddings": False, "n_inner": 40}},
    "gpt2, long context": {"depth": 1, "context": 256},
    "llama": {"family": "llama", "depth": 2, "vocab_size": 700},
    "llama, grouped": {"family": "llama", "depth": 2, "fields": {"num_key_value_heads": 2, "attention_bias": True}},
    "qwen2, tied": {"family": "qwen2", "depth": 2, "fields": {"tie_word_embeddings": True}},
    "qwen3, wide heads": {"family": "qwen3", "depth": 1, "fields": {"head_dim": 24}},
    "mistral": {"family": "mistral", "rung": {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4}},
    "nanochat": {"family": "nanochat", "depth": 2},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_flops_per_token_agree_with_counted_forward_and_backward(case):
    config = build(**case)
    model = instantiate(config)
    tokens = torch.randint(config.vocab_size, (2, config.max_position_embeddings))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=tokens, labels=tokens).loss.backward()
    assert flops_per_token(config) * tokens.numel() == pytest.approx(counter.get_total_flops(), rel=0.005)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_parameter_counts_agree_with_the_names_in_the_stock_model(case):
    config = build(**case)
    parameters = dict(instantiate(config).named_parameters())  # a tied head is listed once, as the token table
    tables = {n: p for n, p in parameters.items() if any(key in n for key in ("wte", "wpe", "embed_tokens"))}
    head = config.vocab_size * config.hidden_size
    untied_head = 0 if config.tie_word_embeddings else head

    count = count_parameters(config)
    assert count.total == sum(p.numel() for p in parameters.values())
    assert count.embedding == sum(p.numel() for p in tables.values())
    assert count.head == head
    assert count.non_embedding == count.total - count.embedding - untied_head
    assert count.scaling == count.non_embedding + head


def test_every_family_is_sized_by_depth():
    for family in FAMILIES:
        config = build(family, depth=3, head_dim=32, context=40)
        assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (3, 96, 3)
        assert config.max_position_embeddings == 40
        assert getattr(config, "head_dim", None) in (None, 32)
        assert getattr(config, "num_key_value_heads", 3) == 3


def test_gpt2_has_no_dropout_unless_asked_for():
    config = build(depth=1)
    assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (0.0, 0.0, 0.0)
    assert build(depth=1, fields={"resid_pdrop": 0.1}).resid_pdrop == 0.1


def test_special_tokens_are_those_that_the_fields_name_and_no_other_tokenizer_s():
    config = build(depth=1, vocab_size=300, fields={"bos_token_id": 256, "eos_token_id": 256})
    assert (config.vocab_size, config.bos_token_id, config.eos_token_id, config.pad_token_id) == (300, 256, 256, None)


# Depth: parameters (M), tokens (G) and FLOPs (1e18) of nanochat's miniseries of 7 January 2026.
NANOCHAT_JANUARY_7 = {
    10: (91, 0.73, 0.42),
    11: (112, 0.89, 0.64),
    12: (135, 1.08, 0.96),
    13: (163, 1.30, 1.40),
    14: (194, 1.55, 2.00),
    15: (229, 1.83, 2.81),
    16: (268, 2.15, 3.89),
    17: (313, 2.50, 5.30),
    18: (362, 2.90, 7.12),
}


@pytest.mark.parametrize(("depth", "published"), NANOCHAT_JANUARY_7.items())
def test_nanochat_sizes_are_reproduced(depth, published):
    model = ModelConfig(family="nanochat", context=2048, aspect_ratio=64, head_dim=64)
    config = rung_model_config(model, RungConfig(name=f"d{depth}", depth=depth), vocab_size=32768)
    training = TrainingConfig(tokens_per_parameter=8.0, budget_parameters="total", batch_tokens=524_288)
    size = size_rung(f"d{depth}", config, training)
    assert (size.parameters.total / 1e6, size.tokens / 1e9, size.flops / 1e18) == pytest.approx(published, rel=0.02)


def test_the_budget_counts_the_parameters_it_is_told():
    config = build(depth=2, fields={"tie_word_embeddings": False})
    count = count_parameters(config)

    def budget(per_parameter, which="scaling"):
        training = TrainingConfig(tokens_per_parameter=per_parameter, budget_parameters=which, batch_tokens=1)
        return size_rung("d2", config, training).tokens

    assert budget(10.5) == round(10.5 * (count.non_embedding + count.head))
    assert budget(8, "non_embedding") == 8 * count.non_embedding
    assert budget(8, "total") == 8 * count.total


MISTAKES = {
    "indivisible dial": (
        {"depth": 3, "head_dim": 20},
        r"rung d3: width 96 \(model.aspect_ratio 32 × depth 3\) is not a multiple of model.head_dim 20; "
        r"choose a head_dim that divides it, such as 16",
    ),
    "indivisible heads": (
        {"rung": {"n_layer": 1, "n_embd": 50, "n_head": 4}},
        r"rung named: n_head 4 does not divide n_embd 50; make the width a multiple of the heads",
    ),
    "indivisible heads, derived head_dim": (
        {"family": "llama", "rung": {"num_hidden_layers": 1, "hidden_size": 50, "num_attention_heads": 4}},
        r"rung named: num_attention_heads 4 does not divide hidden_size 50; make the width a multiple of the heads",
    ),
    "misspelt field": (
        {"rung": {"n_layer": 1, "n_embd": 48, "n_heads": 4}},
        r"rung named: gpt2 has no field 'n_heads'; did you mean 'n_head'\?",
    ),
    "misspelt shared field": (
        {"depth": 1, "fields": {"resid_drop": 0.1}},
        r"model.fields: gpt2 has no field 'resid_drop'; did you mean 'resid_pdrop'\?",
    ),
    "another family's name": (
        {"rung": {"n_layer": 1, "hidden_size": 48, "n_head": 4}},
        r"rung named: hidden_size is called 'n_embd' in this family",
    ),
    "another family's own name": (
        {"family": "llama", "rung": {"n_layer": 1, "hidden_size": 48, "num_attention_heads": 4}},
        r"rung named: llama has no field 'n_layer'; did you mean 'num_hidden_layers'\?",
    ),
    "misspelt key of a rung": (
        {"rung": {"n_layer": 1, "n_embd": 48, "n_head": 4, "unitl": 0.5}},
        r"rung named: gpt2 has no field 'unitl'; did you mean 'until'\?",
    ),
    "missing field": (
        {"rung": {"n_layer": 1, "n_embd": 48}},
        r"rung named: n_head is None; give a whole number of 1 or more",
    ),
    "no layers": (
        {"rung": {"n_layer": 0, "n_embd": 48, "n_head": 4}},
        r"rung named: n_layer is 0; give a whole number of 1 or more",
    ),
    "wrong type": (
        {"depth": 1, "fields": {"activation_function": 3}},
        r"rung d1: Field 'activation_function' expected str, got int \(value: 3\)",
    ),
    "a number that YAML takes for text": (
        {"depth": 1, "fields": {"layer_norm_epsilon": "1e-5"}},
        r"'layer_norm_epsilon' expected float, got str \(value: '1e-5'\); write 1\.0e-8 for 1e-8, which YAML",
    ),
    "wrong for a field of several types": (
        {"depth": 1, "fields": {"bos_token_id": "x"}},
        r"'bos_token_id' with value 'x' doesn't match any type in \(int, NoneType\)$",
    ),
    "labels": (
        {"depth": 1, "fields": {"id2label": 3}},
        r"model.fields: id2label: a causal language model has no labels; leave it out",
    ),
    "how a model is called": (
        {"depth": 1, "fields": {"return_dict": False}},
        r"model.fields: return_dict: it says how a model is called, which whoever calls it says; leave it out",
    ),
    "context twice": (
        {"depth": 1, "fields": {"n_positions": 128}},
        r"model.fields: n_positions is decided by model.context; leave it out",
    ),
    "width twice": (
        {"depth": 1, "fields": {"n_embd": 128}},
        r"model.fields: n_embd is decided by the rung's depth; leave it out",
    ),
    "small vocabulary": (
        {"depth": 1, "fields": {"vocab_size": 256}},
        r"rung d1: vocab_size 256 is below the tokenizer's 320 entries; leave it out, or give that many or more",
    ),
    "no vocabulary": (
        {"depth": 1, "fields": {"vocab_size": "many"}},
        r"rung d1: vocab_size is 'many'; give a whole number of 1 or more",
    ),
    "a width whose divisors nobody waits for": (
        {"depth": 31_000_001, "head_dim": 20},
        r"rung d31000001: n_layer is 31,000,001; 10,000 are the most that is planned",
    ),
    "division by zero": (
        {"family": "granite", "depth": 3, "head_dim": 32, "fields": {"logits_scaling": 0.0}},
        r"rung d3: logits_scaling: expected a finite number other than 0, got 0.0; with it no logit is finite",
    ),
    "unknown family": (
        {"family": "lama", "depth": 1},
        r"model.family: 'lama' is not a family; did you mean 'llama'\?$",
    ),
    "a family of one's own": (
        {"family": "my_own", "depth": 1},
        r"model.family: 'my_own' is not a family; known: .*, smollm3.*; add one from Python with register_family$",
    ),
    "uneven groups": (
        {"family": "llama", "depth": 3, "head_dim": 32, "fields": {"num_key_value_heads": 2}},
        r"rung d3: num_key_value_heads 2 does not divide num_attention_heads 3",
    ),
}


@pytest.mark.parametrize(("case", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_named_in_one_line(case, message):
    with pytest.raises(ValueError, match=message) as caught:
        build(**case)
    assert "\n" not in str(caught.value)


def test_a_field_that_the_stock_class_cannot_be_built_with_is_named():
    config = build(depth=1, fields={"activation_function": "nope"})
    with pytest.raises(ValueError, match=r"^rung d1: not valid \(KeyError: 'nope'\); the stock class cannot be built"):
        size_rung("d1", config, TrainingConfig())
