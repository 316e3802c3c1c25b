"""Small corpora on the disk, in each format that can be read."""

import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_progressive.config import DataConfig, TokenizerConfig


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def texts():
    """Sixty documents of 20 to 80 words; the fifth is the second once more, the seventh is empty."""
    words = ["the", "a", "rung", "grows", "wider,", "deeper", "and", "naïve", "漢字", "🙂", "trains\n", "on", "again!"]
    documents = [" ".join(words[(i * j + j) % len(words)] for j in range(1, 20 + i)) + f" {i}" for i in range(60)]
    documents[4], documents[6] = documents[1], ""
    return documents


@pytest.fixture
def write(tmp_path):
    """Write texts as one or more files and return the configuration that reads them."""

    def write(texts, source="json", *, shards=1, column="text", **options):
        folder = tmp_path / f"{source}-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        size = -(-len(texts) // shards)
        for shard in range(shards):
            part = texts[shard * size : (shard + 1) * size]
            if source == "json":
                lines = "".join(json.dumps({"id": i, column: text}) + "\n" for i, text in enumerate(part))
                (folder / f"{shard}.jsonl").write_text(lines, encoding="utf-8")
            elif source == "parquet":
                pq.write_table(pa.table({"id": range(len(part)), column: part}), folder / f"{shard}.parquet")
            else:
                for i, text in enumerate(part):
                    (folder / f"{shard}-{i:03d}.txt").write_text(text, encoding="utf-8", newline="")
        options = {"validation_fraction": 0.2, "tokenizer": TokenizerConfig(vocab_size=280), **options}
        return DataConfig(source=source, files=(str(folder),), text_column=column, **options)

    return write
