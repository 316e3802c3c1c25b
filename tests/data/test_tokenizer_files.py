"""A tokenizer's folder reads and writes its own files alone."""

import json
from pathlib import Path
from typing import Any

import pytest

from hf_progressive.data.tokenizer import read_tokenizer, train_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound tokenizer beside a file that is no part of it."""
    train_tokenizer(["to be or not to be"], vocab_size=260, training_bytes=1000).save_pretrained(
        tmp_path / "tokenizer"
    )
    (tmp_path / "secret.json").write_bytes((tmp_path / "tokenizer/tokenizer.json").read_bytes())
    return tmp_path / "tokenizer"


def change(folder: Path, **keys: Any) -> None:
    """Set keys of the tokenizer's settings."""
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def test_a_sound_tokenizer_with_templates_is_read(folder: Path) -> None:
    change(folder, chat_template=[{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}])
    assert read_tokenizer(folder).chat_template["tool_use"] == "b"


@pytest.mark.parametrize("name", ["../../planted", "/tmp/planted", "a/b", "..", "x\ny"])
def test_a_template_s_name_is_no_path(folder: Path, name: str) -> None:
    change(folder, chat_template=[{"name": "default", "template": "a"}, {"name": name, "template": "planted"}])
    with pytest.raises(ValueError, match="its chat templates: ") as caught:
        read_tokenizer(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["tokenizer_file", "vocab_file", "merges_file"])
def test_a_tokenizer_s_settings_name_no_file_elsewhere(folder: Path, key: str) -> None:
    change(folder, **{key: str(folder.parent / "secret.json")})
    with pytest.raises(ValueError, match=rf"{key} names .*secret\.json, a file elsewhere; take the key out"):
        read_tokenizer(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "additional_chat_templates/x.jinja", "chat_template.jinja"])
def test_a_tokenizer_s_links_stay_in_its_folder(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(folder.parent / "secret.json")
    with pytest.raises(ValueError, match=r"is a link to .*secret\.json, outside its checkpoint"):
        read_tokenizer(folder)
