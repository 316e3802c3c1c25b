"""Documents from every source: the same texts, in a known order, and one line about what is wrong."""

import dataclasses
import inspect
import json
import sysconfig
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_progressive.config import DataConfig, TokenizerConfig
from hf_progressive.data import prepare_corpus
from hf_progressive.data.documents import (
    DocumentStream,
    Holdout,
    cut_pieces,
    read_documents,
    read_validation_texts,
    stdlib_texts,
)


def test_standard_library_is_read_in_the_order_of_its_paths():
    texts = stdlib_texts()
    root = Path(sysconfig.get_path("stdlib"))
    paths = [p for p in sorted(root.glob("json/*.py"))]
    start = texts.index(paths[0].read_text(encoding="utf-8"))
    assert texts[start : start + len(paths)] == [p.read_text(encoding="utf-8") for p in paths]
    assert inspect.getsource(pytest) not in texts  # a site package
    assert sum(map(len, texts)) > 10_000_000


@pytest.mark.parametrize("source", ["json", "parquet", "text"])
def test_each_format_gives_the_same_documents(write, texts, source):
    documents = read_documents(write(texts, source, shards=2, shuffle_seed=None))
    assert documents["text"][:] == [text for text in texts if text]
    assert documents.column_names == ["text"]


def test_another_column_can_hold_the_text(write, texts):
    assert read_documents(write(texts, column="body", shuffle_seed=None))["text"][0] == texts[0]


def test_files_are_named_by_path_folder_or_pattern(write, texts):
    config = write(texts, shards=3, shuffle_seed=None)
    folder = config.files[0]
    expected = read_documents(config)["text"][:]
    for files in ((f"{folder}/*.jsonl",), tuple(f"{folder}/{i}.jsonl" for i in range(3))):
        assert read_documents(dataclasses.replace(config, files=files))["text"][:] == expected


def test_seed_decides_one_order_of_the_same_documents(write, texts):
    config = write(texts)
    orders = [read_documents(dataclasses.replace(config, shuffle_seed=seed))["text"][:] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) == sorted(text for text in texts if text)


def test_max_documents_are_the_source_s_first(write, texts):
    documents = read_documents(write(texts, max_documents=5))
    assert sorted(documents["text"]) == sorted(texts[:5])


def test_long_text_files_are_cut_at_line_ends(write):
    lines = "".join(f"line {i} of a long file\n" for i in range(2000))
    documents = read_documents(write([lines], "text", shuffle_seed=None))["text"][:]
    assert "".join(documents) == lines
    assert [len(text) // 1000 for text in documents] == [16, 16, 16]
    assert all(text.endswith("\n") for text in documents)


@given(st.text(alphabet="ab\n", max_size=60), st.integers(1, 10))
def test_pieces_join_to_the_text_and_end_with_a_line(text, characters):
    pieces = cut_pieces(text, characters)
    assert "".join(pieces) == text
    for piece in pieces[:-1]:
        assert piece.endswith("\n")
        assert "\n" not in piece[characters - 1 : -1]


def test_holdout_takes_its_share_and_the_texts_it_is_given():
    holdout = Holdout(0.25, ["given"])
    held_out = {f"text {i}" for i in range(4000) if f"text {i}" in holdout}
    assert 0.22 < len(held_out) / 4000 < 0.28
    assert held_out < {f"text {i}" for i in range(4000) if f"text {i}" in Holdout(0.5)}  # a larger share adds to it
    assert "given" in holdout
    assert "given" not in Holdout(0.0)


@pytest.mark.parametrize("source", ["json", "parquet", "text"])
@pytest.mark.parametrize("limit", [None, 37])
def test_stream_goes_on_from_any_position(write, texts, source, limit):
    config = write(texts, source, shards=3, max_documents=limit)
    everything = list(DocumentStream(config))
    assert everything == [[text] for text in texts[:limit] if text]
    for read in (1, 19, 20, 31):
        stream = DocumentStream(config)
        rows = iter(stream)
        before = [next(rows) for _ in range(read)]
        position = json.loads(json.dumps(stream.position()))
        later = DocumentStream(config)
        later.seek(position)
        assert before + list(later) == everything


def broken(tmp_path, content, name="broken.json", **options):
    (tmp_path / name).write_bytes(content)
    options = {"source": name.split(".")[-1].replace("txt", "text"), "files": (str(tmp_path / name),), **options}
    return DataConfig(**options)


MISTAKES = {
    "missing file": (
        {"source": "parquet", "files": ("nowhere/*.parquet",)},
        r"data.files: nowhere/\*.parquet matches no file; give an existing path or pattern",
    ),
    "missing column": (
        {"content": b'{"txt": "a", "id": 1}\n'},
        r"data.text_column: .*broken.json has no column 'text'; did you mean 'txt'\?",
    ),
    "column of numbers": (
        {"content": b'{"text": 1}\n'},
        r"data.text_column: the column 'text' of .*broken.json holds int64, expected text",
    ),
    "empty file": ({"content": b""}, r"data.files: json \(.*broken.json\) holds no document"),
    "empty documents": ({"content": b'{"text": ""}\n'}, r"data.source: json \(.*broken.json\) holds no document"),
    "not JSON": ({"content": b"{nope"}, r"data.files: cannot read .*broken.json: JSON parse error: .*"),
    "not Parquet": (
        {"content": b"PAR1 and no more", "name": "broken.parquet"},
        r"data.files: cannot read .*broken.parquet: .*Parquet magic bytes not found .*",
    ),
    "not UTF-8": (
        {"content": "é".encode("latin-1"), "name": "broken.txt"},
        r"data.files: cannot read .*broken.txt: 'utf-8' codec can't decode byte 0xe9 .*; write it again as UTF-8",
    ),
    "unreachable": (
        {"source": "nobody/nothing"},
        r"data.source: cannot read 'nobody/nothing': Couldn't reach 'nobody/nothing' on the Hub .*",
    ),
    "nothing but slashes": ({"source": "//"}, r"data.source: cannot read '//': list index out of range"),
    "stars that are no pattern": ({"source": "json", "files": ("**a",)}, r"data.files: \*\*a: Invalid pattern: .*"),
}


@pytest.mark.parametrize(("case", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_named_in_one_line(tmp_path, case, message):
    config = broken(tmp_path, **case) if "content" in case else DataConfig(**case)
    with pytest.raises((ValueError, FileNotFoundError), match=f"^{message}") as caught:
        read_documents(config)
    assert "\n" not in str(caught.value)


def test_folder_without_matching_files_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"matches no file named \*.parquet; give an existing path or pattern"):
        read_documents(DataConfig(source="parquet", files=(str(tmp_path),)))


def test_python_without_sources_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=r"data.source: stdlib found no .py file below .*; name another source"
    ):
        read_documents(DataConfig())


def shards_of_other_columns(folder, source, texts):
    """Two files that agree in the text and in no other column."""
    first = [{"text": text, "id": i, "meta": {"url": "a", "score": 1}} for i, text in enumerate(texts[:30])]
    second = [{"meta": {"lang": "en"}, "id": f"x{i}", "text": text} for i, text in enumerate(texts[30:])]
    folder.mkdir()
    for name, rows in (("a", first), ("b", second)):
        if source == "json":
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        else:
            pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    return DataConfig(source=source, files=(str(folder),), shuffle_seed=None)


@pytest.mark.parametrize("source", ["json", "parquet"])
def test_shards_whose_other_columns_differ_are_one_corpus(texts, tmp_path, source):
    config = shards_of_other_columns(tmp_path / "shards", source, texts)
    expected = [text for text in texts if text]
    assert read_documents(config)["text"][:] == expected
    assert [text for row in DocumentStream(config) for text in row] == expected


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("source", ["json", "parquet"])
def test_the_one_shard_without_the_column_is_named(texts, tmp_path, source, streaming):
    config = shards_of_other_columns(tmp_path / "shards", source, texts)
    bad = tmp_path / "shards" / ("c.jsonl" if source == "json" else "c.parquet")
    if source == "json":
        bad.write_text('{"txt": "a"}\n')
    else:
        pq.write_table(pa.table({"txt": ["a"]}), bad)
    with pytest.raises(
        ValueError, match=rf"^data.text_column: \S*{bad.name} has no column 'text'; did you mean 'txt'"
    ):
        list(DocumentStream(config)) if streaming else read_documents(config)


def test_the_one_unreadable_file_among_many_is_named(tmp_path):
    for i in range(5):
        (tmp_path / f"{i}.txt").write_bytes(b"plain text " * 20 + (b"caf\xe9" if i == 3 else b""))
    config = DataConfig(source="text", files=(str(tmp_path),))
    for read in (read_documents, lambda config: list(DocumentStream(config))):
        with pytest.raises(
            ValueError, match=r"^data.files: cannot read \S*/3.txt: 'utf-8' codec can't decode byte 0xe9"
        ):
            read(config)


def test_rows_without_a_text_are_counted(tmp_path, caplog):
    rows = [{"text": "one"}, {"text": None}, {"title": "no text"}, {"text": ""}, {"text": "two"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = DataConfig(
        source="json", files=(str(tmp_path / "a.jsonl"),), validation_files=(str(tmp_path / "a.jsonl"),)
    )
    assert sorted(read_documents(config)["text"]) == ["one", "two"]
    assert read_validation_texts(config) == ["one", "two"]
    assert [record.getMessage() for record in caplog.records] == [
        f"json ({tmp_path}/a.jsonl): 3 of 5 documents have no text and are left out",
        f"data.validation_files: {tmp_path}/a.jsonl: 3 of 5 documents have no text",
    ]


def test_rows_without_a_text_are_counted_in_a_stream(tmp_path, caplog):
    rows = [row for i in range(50) for row in ({"text": f"one two three {i} " * 50}, {"text": None}, {"text": ""})]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = DataConfig(
        source="json",
        files=(str(tmp_path / "a.jsonl"),),
        streaming=True,
        validation_fraction=0.2,
        tokenizer=TokenizerConfig(vocab_size=260),
    )
    prepare_corpus(config, 16, tmp_path / "data")
    assert [record.getMessage() for record in caplog.records] == [
        f"json ({tmp_path}/a.jsonl): 100 of the first 150 documents have no text and are left out"
    ]


def test_of_whole_documents_and_python_s_own_files_nothing_is_said(write, texts, caplog):
    read_documents(write([text for text in texts if text]))
    read_documents(DataConfig(source="stdlib"))  # whose __init__.py files are often empty
    assert not caplog.records
