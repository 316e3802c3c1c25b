"""`hf-progressive prepare`: what it leaves, a ladder trains on without its source."""

import json
import shutil

import pytest

from hf_progressive import run_ladder
from hf_progressive.cli import main
from hf_progressive.config import load_ladder_config


@pytest.fixture
def settings(tmp_path):
    words = ["the", "rung", "grows", "wider,", "deeper", "and", "naïve", "漢字", "trains\n", "on", "again!"]
    rows = [" ".join(words[(i * j + j) % len(words)] for j in range(1, 60 + i % 50)) + f" {i}" for i in range(300)]
    (tmp_path / "rows").mkdir()
    lines = "".join(json.dumps({"text": row}) + "\n" for row in rows)
    (tmp_path / "rows" / "a.jsonl").write_text(lines, encoding="utf-8")
    return [
        "data.source=json", f"data.files=[{tmp_path / 'rows'}]", "data.max_documents=null", "cold=none",
        "rungs=[{name: a, n_layer: 1, n_embd: 32, n_head: 2}]", "training.tokens_per_parameter=0.2",
        "training.evaluations=1",
    ]  # fmt: skip


@pytest.mark.parametrize("streaming", ["false", "true"])
def test_a_ladder_trains_on_what_was_prepared(settings, tmp_path, capsys, streaming):
    settings = [*settings, f"data.streaming={streaming}"]
    prepare = ["prepare", "ladder_tiny", "--output-dir", str(tmp_path / "run"), "--json", "--set", *settings]
    assert main(prepare) == 0
    printed = capsys.readouterr()
    record = json.loads(printed.out.splitlines()[-1])
    assert record["train_tokens"] >= record["wanted_tokens"] > 0
    assert "tokens to train on in " in printed.err
    assert "token" in printed.err  # the bar's rate
    shutil.rmtree(tmp_path / "rows")
    assert main(prepare) == 0  # nothing to be done
    elsewhere = [*settings, f"data.prepared={record['folder']}"]
    rungs = [
        run_ladder(load_ladder_config("ladder_tiny", overrides), tmp_path / folder)[0].record
        for folder, overrides in (("run", settings), ("elsewhere", elsewhere))
    ]
    assert rungs[0]["bits_per_byte"] == rungs[1]["bits_per_byte"]
    assert not (tmp_path / "elsewhere" / "data").exists()


def test_the_number_of_processes_must_be_one(settings, tmp_path, capsys):
    assert main(["prepare", "ladder_tiny", "--output-dir", str(tmp_path), "--num-proc", "0", "--set", *settings]) == 2
    assert "num_proc: 0 processes cannot tokenize; use 1 or more" in capsys.readouterr().err


def test_a_stream_of_nothing_to_train_on_is_refused(settings, tmp_path, capsys):
    """Every document is one of those that are validated on."""

    def prepare(folder, *more):
        overrides = [*settings, "data.streaming=true", *more]
        return main(["prepare", "ladder_tiny", "--output-dir", str(folder), "--set", *overrides])

    assert prepare(tmp_path / "first") == 0
    tokenizer = tmp_path / "first" / "data" / "tokenizer"
    held_out = [f"data.validation_files=[{tmp_path / 'rows' / 'a.jsonl'}]", f"data.tokenizer={{name: {tokenizer}}}"]
    held_out.append("data.validation_fraction=0.02")
    assert prepare(tmp_path / "second", *held_out) == 2
    assert "error: data: the stream holds less than one block of 64 tokens; give more" in capsys.readouterr().err
