"""A file that lacks what its config states, or holds something else, is named with what explains it."""

import json

import pytest
import torch
from growth_checkpoints import gpt2, save
from transformers import AutoConfig, AutoModelForCausalLM

from hf_progressive import cli
from hf_progressive.growth import grow_checkpoint, grow_model, stock_model, verify_growth

SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "head_dim": 8, "intermediate_size": 40, "vocab_size": 20, "max_position_embeddings": 16, "bos_token_id": 0,
         "eos_token_id": 0, "pad_token_id": None, "tie_word_embeddings": False}  # fmt: skip
EXPERTS = {"num_local_experts": 3, "num_experts_per_tok": 2}


def edit(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder


def stored(folder, model_type, **fields):
    torch.manual_seed(0)
    return save(AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SMALL | fields)), folder)


@pytest.fixture
def nothing_loaded(monkeypatch):
    def load(*arguments, **options):
        raise AssertionError("a model was loaded, though its file is not its config's")

    monkeypatch.setattr(stock_model.AutoModelForCausalLM, "from_pretrained", load)


@pytest.mark.parametrize("odd", [0, 1], ids=["parent", "child"])
@pytest.mark.parametrize(
    ("layers", "first", "count"),
    [(4, "transformer.h.2.ln_1.weight is missing", 24), (1, "transformer.h.1.", 12)],
)
def test_another_number_of_layers_than_the_files_is_refused_by_the_command(
    tmp_path, capsys, nothing_loaded, odd, layers, first, count
):
    folders = [save(gpt2(), tmp_path / "a"), save(gpt2(), tmp_path / "b")]
    edit(folders[odd], n_layer=layers)
    assert cli.main(["verify", *map(str, folders)]) == cli.EXIT_BAD_INPUT
    out, said = capsys.readouterr()
    assert out == ""
    assert said.startswith(
        f"hf-progressive: error: {folders[odd]}/model.safetensors: {count} tensors do not fit the config: {first}"
    )
    assert said.endswith(f"; all would fit with n_layer 2 (now {layers})\n")


def test_it_is_seen_in_python_and_by_growth_before_anything_is_loaded(tmp_path, nothing_loaded):
    whole, odd = save(gpt2(), tmp_path / "whole"), edit(save(gpt2(), tmp_path / "odd"), n_layer=3)
    for run in (
        lambda: verify_growth(whole, odd),
        lambda: grow_checkpoint(odd, tmp_path / "child", {"n_layer": 4}),
    ):
        with pytest.raises(ValueError, match=r"odd/model\.safetensors: 12 tensors do not .*with n_layer 2 \(now 3\)$"):
            run()
    assert not (tmp_path / "child").exists()


def test_of_shards_the_index_is_named(tmp_path, nothing_loaded):
    odd = edit(save(gpt2(), tmp_path / "odd", max_shard_size=20_000), n_layer=3)
    with pytest.raises(ValueError, match=r"odd/model\.safetensors\.index\.json: 12 tensors do not fit"):
        verify_growth(odd, odd)


@pytest.mark.parametrize(
    ("model_type", "fields", "changes"),
    [
        ("llama", {}, {"hidden_size": 32}),
        ("llama", {}, {"num_attention_heads": 6}),
        ("llama", {}, {"num_key_value_heads": 4}),
        ("llama", {}, {"num_key_value_heads": 1}),
        ("llama", {}, {"intermediate_size": 50}),
        ("llama", {}, {"vocab_size": 21}),
        ("llama", {}, {"head_dim": 16}),
        ("llama", {}, {"num_hidden_layers": 5, "vocab_size": 30}),
        ("llama", {}, {"attention_bias": True}),
        ("llama", {"attention_bias": True}, {"attention_bias": False}),
        ("llama", {"tie_word_embeddings": True}, {"tie_word_embeddings": False}),
        ("mixtral", EXPERTS, {"num_local_experts": 5}),
        ("mixtral", EXPERTS, {"num_local_experts": 2}),
        ("mixtral", EXPERTS, {"intermediate_size": 50}),
    ],
)
def test_the_field_that_explains_all_is_named_with_its_value(tmp_path, model_type, fields, changes):
    folder = stored(tmp_path / "odd", model_type, **fields)
    edit(folder, **changes)
    before = SMALL | EXPERTS | {"attention_bias": False} | fields
    expected = " and ".join(f"{name} {before[name]} (now {value})" for name, value in changes.items())
    with pytest.raises(ValueError, match="odd/model.safetensors: .* not fit the config: ") as caught:
        verify_growth(folder, folder)
    assert f"all would fit with {expected}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_shape_is_given_as_the_file_and_as_the_config_has_it(tmp_path):
    odd = edit(save(gpt2(), tmp_path / "odd"), vocab_size=90)
    with pytest.raises(
        ValueError, match=r"1 tensor does not fit .*wte.weight has shape \(96, 24\), the config says \(90,"
    ):
        verify_growth(odd, odd)


def test_where_no_field_explains_it_none_is_named(tmp_path):
    model = gpt2()
    del model.transformer.h[1].ln_2.bias
    odd = save(model, tmp_path / "odd")
    with pytest.raises(ValueError, match=r"1 tensor does not fit the config: transformer.h.1.ln_2.bias is missing$"):
        verify_growth(odd, odd)


def test_more_layers_than_a_model_has_are_not_listed(tmp_path):
    odd = edit(save(gpt2(), tmp_path / "odd"), n_layer=10**9)
    with pytest.raises(ValueError, match="n_layer is 1,000,000,000; 10,000 are the most"):
        verify_growth(odd, odd)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"num_hidden_layers": 3},
            r"8 tensors do not fit the config: model.layers.2.input_layernorm.weight is missing",
        ),
        ({"vocab_size": 30}, r"has shape \(20, 24\), the config says \(30, 24\)"),
    ],
)
def test_of_a_family_that_growth_does_not_know_too(tmp_path, changes, message):
    odd = edit(stored(tmp_path / "odd", "cohere", tie_word_embeddings=True), **changes)
    with pytest.raises(ValueError, match=f"odd/model.safetensors: .*{message}"):
        verify_growth(odd, odd)


def test_what_an_unknown_familys_class_leaves_out_is_said(tmp_path, caplog):
    odd = edit(stored(tmp_path / "odd", "cohere", tie_word_embeddings=True), num_hidden_layers=1)
    assert verify_growth(odd, odd).preserved
    assert "tensors unknown to the class are left out, model.layers.1.input_layernorm.weight first" in caplog.text


def test_a_model_in_memory_is_named_by_its_class():
    model = gpt2()
    model.config.n_layer = 3
    with pytest.raises(ValueError, match=r"^GPT2LMHeadModel: 12 tensors do not fit"):
        grow_model(model, {"n_layer": 4})
