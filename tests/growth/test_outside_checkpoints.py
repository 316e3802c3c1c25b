"""A checkpoint's config.json and weights with values that nobody wrote on purpose: read, or refused in one line."""

import json
import random
import struct

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from hf_progressive import grow_checkpoint
from hf_progressive.growth.reader import CheckpointReader
from hf_progressive.growth.source import locate_source
from hf_progressive.records.origin import locate_origin

ODD = [None, -1, "x", [], {}, 1e308, 2**70, True, [[]], [1, 2, 3], {"a": None}, 0, ""]


@pytest.fixture
def checkpoint(tmp_path):
    sizes = {"vocab_size": 30, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 8}
    GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=2)).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dtype", "x"),
        ("dtype", []),
        ("model_type", []),
        ("rope_scaling", "x"),
        ("id2label", 3),
        ("quantization_config", "x"),
        ("n_layer", "x"),
    ],
)
def test_a_field_of_another_kind_is_named_with_its_file(checkpoint, field, value):
    path = checkpoint / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(ValueError, match=f"^{path}: (not valid|model_type is)") as caught:
        locate_source(str(checkpoint)).read_config()
    assert "\n" not in str(caught.value)


def test_any_field_may_be_odd(checkpoint):
    path, drawn, refusals = checkpoint / "config.json", random.Random(0), []
    config = json.loads(path.read_text())
    for _ in range(150):
        path.write_text(json.dumps({**config, drawn.choice([*config, "auto_map", "id2label"]): drawn.choice(ODD)}))
        try:
            locate_source(str(checkpoint)).read_config()
        except (ValueError, OSError) as error:
            refusals.append(str(error))
    assert refusals
    assert not [line for line in refusals if "\n" in line or "config.json" not in line]


def test_any_value_of_a_header_may_be_odd(checkpoint):
    path, drawn, refusals = checkpoint / "model.safetensors", random.Random(0), []
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header, tensors = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    for _ in range(150):
        changed = json.loads(json.dumps(header))
        name = drawn.choice(list(changed))
        if isinstance(changed[name], dict) and drawn.random() < 0.8:
            changed[name][drawn.choice(list(changed[name]))] = drawn.choice([*ODD, [-1, 2], [2**63, 2], ["a"]])
        else:
            changed[name] = drawn.choice(ODD)
        text = json.dumps(changed).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + tensors)
        try:
            reader = CheckpointReader(checkpoint)
            for tensor in reader.specs:
                reader.read(tensor)
        except ValueError as error:
            refusals.append(str(error))
    assert refusals
    assert not [line for line in refusals if "\n" in line or str(path) not in line]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01",
        b"\xff" * 8,
        struct.pack("<Q", 2**40) + b"{}",
        struct.pack("<Q", 100_000) + b"[" * 100_000,
        b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n",
    ],
)
def test_what_is_no_safetensors_file_is_named(checkpoint, content):
    path = checkpoint / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{path}: .* no whole safetensors file") as caught:
        CheckpointReader(checkpoint)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "generation_config.json"])
def test_a_link_out_of_the_checkpoint_is_neither_grown_nor_taken_over(name, checkpoint, tmp_path_factory):
    outside, folder = tmp_path_factory.mktemp("outside"), checkpoint
    (folder / name).touch()
    (folder / name).rename(outside / name)
    (folder / name).symlink_to(outside / name)
    with pytest.raises(ValueError, match=rf"{name}: is a link to .*, outside its checkpoint"):
        grow_checkpoint(folder, outside / "out", {"n_layer": 2})
    assert not (outside / "out").exists()
    with pytest.raises(ValueError, match=rf"{name}: is a link to .*, outside its checkpoint"):
        locate_origin(str(folder)).files()


def test_every_licence_goes_along_and_what_else_is_there_stays(checkpoint, tmp_path_factory):
    child = tmp_path_factory.mktemp("grown") / "child"
    for name in ("LICENSE", "LICENSE.md", "LICENCE.txt", "NOTICE.txt", "USE_POLICY.md", "README.md", "train.py"):
        (checkpoint / name).write_text(f"the {name}")
    (checkpoint / "LICENSES").mkdir()
    grow_checkpoint(checkpoint, child, {"n_layer": 2}, verify=False)
    kept = {path.name for path in child.iterdir() if path.suffix not in (".json", ".safetensors")}
    assert kept == {"LICENSE", "LICENSE.md", "LICENCE.txt", "NOTICE.txt", "USE_POLICY.md"}
    assert (child / "NOTICE.txt").read_text() == "the NOTICE.txt"
