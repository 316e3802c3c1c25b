"""A family from outside of the package: the documented one is registered, checked against its class, and grown."""

import textwrap
from dataclasses import replace

import pytest
import torch
from growth_models import build, relative_difference, tokens_for
from transformers import AutoConfig

from hf_progressive import grow_model
from hf_progressive.growth import families
from hf_progressive.growth.family_table import Family, WeightRule, writes

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 29,
    "max_position_embeddings": 16,
    "norm_epsilon": 1e-2,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


@pytest.fixture
def documented(monkeypatch: pytest.MonkeyPatch) -> Family:
    """The family of the module's docstring, registered by the docstring's own lines."""
    monkeypatch.setattr(families, "FAMILIES", dict(families.FAMILIES))
    text = families.__doc__.partition("process:\n")[2]
    program, _, growth = textwrap.dedent(text).rpartition("grow_checkpoint(")
    assert growth
    exec(program, {})
    return families.FAMILIES["starcoder2"]


@pytest.mark.parametrize("model_type", families.FAMILIES)
def test_every_table_of_the_package_would_be_taken(model_type: str) -> None:
    assert list(families._faults(families.FAMILIES[model_type])) == []


@pytest.mark.parametrize("options", [{}, {"use_bias": False}, {"tie_word_embeddings": False}, {"sliding_window": 5}])
@pytest.mark.parametrize(
    "target",
    [
        {"hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 3},
        {"hidden_size": 32, "intermediate_size": 40},
        {"num_hidden_layers": 4, "vocab_size": 33, "max_position_embeddings": 20},
    ],
)
def test_the_documented_family_grows_exactly(documented: Family, options: dict, target: dict) -> None:
    parent = build(AutoConfig.for_model("starcoder2", **SMALL | options))
    child = grow_model(parent, target, init_std=0.3)
    assert type(child).__name__ == "Starcoder2ForCausalLM"
    assert {name: getattr(child.config, name) for name in target} == target
    assert relative_difference(parent, child, tokens_for(parent.config)) < 1e-9


def test_a_family_is_registered_once(documented: Family) -> None:
    with pytest.raises(ValueError, match=r"^model_type 'starcoder2' can be grown already; a family is"):
        families.register_family(documented)


def without(family: Family, *names: str) -> tuple[WeightRule, ...]:
    return tuple(rule for rule in family.rules if rule.name not in names)


def test_a_family_that_is_known_by_half_is_refused_with_what_is_missing(documented: Family) -> None:
    del families.FAMILIES["starcoder2"]
    norm = "model.layers.{layer}.post_attention_layernorm.weight"
    head = next(rule for rule in documented.rules if rule.tied_to)
    refused = [
        (replace(documented, rules=without(documented, norm)), r"0\.post_attention_layernorm\.weight is not in"),
        (replace(documented, rules=without(documented, head.name)), r"lm_head\.weight is not in the table"),
        (
            replace(documented, rules=(*documented.rules, WeightRule("model.extra", (writes("mlp"),)))),
            r"model\.extra is not in the stock class",
        ),
        (
            replace(documented, rules=(*without(documented, head.name), replace(head, dims=head.dims[::-1]))),
            r"lm_head\.weight has shape \(22, 24\) in the stock class, \(24, 22\) by the table",
        ),
        (
            replace(documented, rules=(*documented.rules[2:3], *documented.rules[:2], *documented.rules[3:])),
            r"not in the stock class's order",
        ),
        (
            replace(documented, rules=(*documented.rules, WeightRule("model.extra", (writes("contxt"),)))),
            r"the axis 'contxt' is not known; did you mean 'context'\?$",
        ),
        (replace(documented, norm="layernorm"), r"norm 'layernorm' is not known; did you mean 'layer'\?$"),
        (replace(documented, eps_field="rms_norm_eps"), r"rms_norm_eps is not a field of Starcoder2Config"),
        (replace(documented, size_fields={"width": "hidden_size"}), r"size_fields: layers is missing"),
        (replace(documented, model_type="no_such_model"), r"transformers has no model of this type"),
        (replace(documented, model_type="vit"), r"transformers has no causal language model for a ViTConfig"),
    ]
    for family, message in refused:
        message = rf"^the family '{family.model_type}' is not complete: .*{message}"
        with pytest.raises(ValueError, match=message) as error:
            families.register_family(family)
        assert "\n" not in str(error.value)
        assert family.model_type not in families.FAMILIES
    families.register_family(documented)


def test_every_switch_of_the_config_is_tried(documented: Family) -> None:
    del families.FAMILIES["starcoder2"]
    always = tuple(replace(rule, when="") for rule in documented.rules)  # biases that the default config has
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn\.q_proj\.bias is not in the stock class"):
        families.register_family(replace(documented, rules=always))


def test_meta_models_take_no_memory(documented: Family) -> None:
    config = AutoConfig.for_model("starcoder2", **SMALL)
    with torch.device("meta"):
        assert list(families._differences(documented, config)) == []


@pytest.mark.parametrize("given", ["starcoder2", None, {"model_type": "starcoder2"}])
def test_what_is_no_table_is_refused(given: object) -> None:
    with pytest.raises(ValueError, match=r"^family is a (str|NoneType|dict); give a Family of hf_progressive.growth"):
        families.register_family(given)
