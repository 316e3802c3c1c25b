"""What goes along with the weights: tokenizer, generation's settings and licences, and nothing else."""

import json
import shutil

import pytest
from growth_checkpoints import WIDER, contents
from transformers import GPT2Config, GPT2LMHeadModel

from hf_progressive.growth import grow_checkpoint
from hf_progressive.storage import check_manifest, read_json


def test_tokenizer_and_generation_config_go_along_and_nothing_else(parent, tmp_path):
    source = tmp_path / "parent"
    shutil.copytree(parent, source)
    along = {
        "generation_config.json": '{"eos_token_id": 2, "do_sample": true, "temperature": 0.6}',
        "tokenizer.json": "{}",
        "tokenizer_config.json": '{"model_max_length": 32}',
        "chat_template.jinja": "{{ messages }}",
        "additional_chat_templates/rag.jinja": "{{ documents }}",
        "LICENSE": "a licence",
    }
    behind = {
        "modeling_custom.py": "raise SystemExit",
        "training_args.bin": "a token",
        "optimizer.pt": "",
        "README.md": "the parent's card",
        ".hidden": "",
        "notes/vocab.json": "",
    }
    for name, text in (along | behind).items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(text)
    grow_checkpoint(source, tmp_path / "child", WIDER)

    written = contents(tmp_path / "child")
    own = {"config.json", "model.safetensors", "growth.json", "manifest.json"}
    assert set(written) == own | set(along)
    assert {name: written[name].decode() for name in along} == along
    assert GPT2LMHeadModel.from_pretrained(tmp_path / "child").generation_config.temperature == 0.6
    check_manifest(tmp_path / "child")


def test_lengths_that_were_the_parent_s_context_are_the_child_s(parent, tmp_path):
    source = tmp_path / "parent"
    shutil.copytree(parent, source)
    before = GPT2Config.from_pretrained(source).n_positions
    (source / "tokenizer_config.json").write_text(json.dumps({"model_max_length": before, "pad_token": "x"}))
    (source / "generation_config.json").write_text(json.dumps({"max_length": before - 1, "eos_token_id": 2}))
    grow_checkpoint(source, tmp_path / "child", {"n_positions": 2 * before})
    tokenizer, generation = (
        read_json(tmp_path / "child" / f"{name}_config.json") for name in ("tokenizer", "generation")
    )
    assert tokenizer == {"model_max_length": 2 * before, "pad_token": "x"}
    assert generation == {"max_length": before - 1, "eos_token_id": 2}  # a length of one's own stays
    check_manifest(tmp_path / "child")


def test_a_cut_generation_config_is_refused(parent, tmp_path):
    source = tmp_path / "parent"
    shutil.copytree(parent, source)
    (source / "generation_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"generation_config.json: not valid JSON"):
        grow_checkpoint(source, tmp_path / "child", WIDER)
