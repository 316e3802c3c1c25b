"""Corpora and tokenizers that are damaged, or made to do harm: one clear line that names the file."""

import gzip
import json
import logging
import random

import pytest

from hf_progressive.config import DataConfig, TokenizerConfig
from hf_progressive.data import json_depth
from hf_progressive.data.documents import DocumentStream, read_documents
from hf_progressive.data.json_depth import require_shallow
from hf_progressive.data.tokenizer import load_tokenizer, train_tokenizer

LINES = "\n".join(json.dumps({"text": f"report {i}: rain [in] the {{north}}. " * 9}) for i in range(60)).encode()
ZIPPED = gzip.compress(LINES)


def read(folder, *, streaming, source="json"):
    config = DataConfig(source=source, files=(str(folder),), streaming=streaming, shuffle_seed=None)
    if streaming:
        return [text for texts in DocumentStream(config) for text in texts]
    return read_documents(config)["text"]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bad.jsonl.gz", ZIPPED[: len(ZIPPED) // 2], "Compressed file ended before the end-of-stream marker"),
        ("bad.jsonl.gz", ZIPPED[:40] + b"\xff\xff" + ZIPPED[42:], "Error -3 while decompressing data"),
        ("bad.jsonl.gz", LINES, "Not a gzipped file"),
        ("bad.jsonl.zst", LINES, "zstd decompress error"),
        ("bad.jsonl", b'{"text": "a", "m": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", "more than 2000 levels deep"),
    ],
)
def test_the_damaged_file_is_named(tmp_path, name, content, message, streaming):
    (tmp_path / "good.jsonl").write_bytes(LINES)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"^data.files: cannot read \S*/{name}: .*{message}") as caught:
        read(tmp_path, streaming=streaming)
    assert "\n" not in str(caught.value)


def test_depth_is_that_of_values_and_not_of_texts(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"

    def is_refused(*lines):
        path.write_text("\n".join(lines), encoding="utf-8")
        try:
            require_shallow(str(path))
        except ValueError:
            return True
        return False

    deep = '{"m": ' + "[" * 1999 + "]" * 1999 + "}"
    text = json.dumps({"text": '\\"[{' * 3000})
    for size in (16, 1 << 24):  # bytes that are looked at together
        monkeypatch.setattr(json_depth, "_CHUNK_BYTES", size)
        assert not is_refused(deep, text, deep)
        assert is_refused(text, deep.replace("[]", "[[]]"))
        assert is_refused(*["["] * 2001)  # over many lines


@pytest.mark.parametrize("streaming", [False, True])
def test_a_byte_order_mark_is_no_text(tmp_path, streaming):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfto be or not to be\n")
    assert list(read(tmp_path, streaming=streaming, source="text")) == ["to be or not to be\n"]


def test_files_passed_over_are_told(tmp_path, caplog):
    (tmp_path / "a.jsonl").write_bytes(LINES)
    with caplog.at_level(logging.WARNING):
        read(tmp_path, streaming=True)
        assert not caplog.records
        (tmp_path / "b.JSONL").write_bytes(LINES)
        (tmp_path / "c.json.zst").write_bytes(LINES)
        read(tmp_path, streaming=True)
    assert f"{tmp_path}: 1 files are read and 2 passed over, such as b.JSONL: names must end in" in caplog.text


@pytest.fixture(scope="module")
def tokenizer_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["to be or not to be"], vocab_size=262, training_bytes=100).save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


BROKEN = {
    "tokenizer.json": [b"", b"{}", b"[]", b"3", b"\xff", b"[" * 50_000, b'{"version": 3}'],
    "tokenizer_config.json": [
        b"[]",
        b"3",
        b'{"tokenizer_class": 3}',
        b'{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": 3}',
        b'{"added_tokens_decoder": 3}',
        b'{"auto_map": {"AutoTokenizer": ["mine.Mine", null]}}',
        b'{"a":' * 50_000,
    ],
}


@pytest.mark.parametrize(("name", "content"), [(name, content) for name in BROKEN for content in BROKEN[name]])
def test_a_broken_tokenizer_is_named(tmp_path, tokenizer_files, name, content):
    for other, right in tokenizer_files.items():
        (tmp_path / other).write_bytes(right)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"^data.tokenizer.name: cannot load '{tmp_path}': ") as caught:
        load_tokenizer(TokenizerConfig(name=str(tmp_path)), [])
    assert "\n" not in str(caught.value)


def test_a_mutated_tokenizer_is_read_or_named(tmp_path, tokenizer_files):
    drawn, refusals = random.Random(0), []
    for other, right in tokenizer_files.items():
        (tmp_path / other).write_bytes(right)
    for _ in range(40):
        content = json.loads(tokenizer_files["tokenizer.json"])
        holder, key = content, drawn.choice(list(content))
        while isinstance(holder[key], dict) and holder[key] and drawn.random() < 0.7:
            holder = holder[key]
            key = drawn.choice(list(holder))
        holder[key] = drawn.choice([None, -1, "x", [], {}, 1e308, 2**70, True, [[]]])
        (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
        try:
            load_tokenizer(TokenizerConfig(name=str(tmp_path)), [])
        except ValueError as error:
            refusals.append(str(error))
    assert refusals
    assert not [line for line in refusals if "\n" in line]
