"""A corpus that streams, read by forked workers, in the environment of production and not of these tests."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from environment import user_environment


def run(arguments, folder, *, timeout, **environment):
    """The installed command, or the module where the script is not on the path."""
    script = Path(sys.executable).with_name("hf-progressive")
    command = [str(script)] if script.exists() else [sys.executable, "-m", "hf_progressive"]
    return subprocess.run(
        [*command, *arguments],
        cwd=folder,
        env={**user_environment(), "HF_HOME": str(folder / "hf"), "CUDA_VISIBLE_DEVICES": "", **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def stream(folder):
    words = ["the", "rung", "grows", "wider,", "deeper", "and", "naïve", "漢字", "trains\n", "on", "again!"]
    rows = [" ".join(words[(i * j + j) % len(words)] for j in range(1, 60 + i % 50)) + f" {i}" for i in range(400)]
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), encoding="utf-8")
    settings = {
        "data.source": "json",
        "data.files": "[rows.jsonl]",
        "data.streaming": "true",
        "data.max_documents": "null",
        "data.tokenizer.training_bytes": "20_000",
        "rungs": "[{name: a, n_layer: 1, n_embd: 32, n_head: 2}]",
        "cold": "none",
        "training.arguments.dataloader_num_workers": "2",
    }
    overrides = [f"{key}={value}" for key, value in settings.items()]
    return ["ladder", "ladder_tiny", "--output-dir", "run", "--json", "--set", *overrides]


@pytest.mark.parametrize("parallelism", [pytest.param("", marks=pytest.mark.slow), "true"])
def test_two_workers_read_a_stream_whatever_the_environment_says(tmp_path, parallelism):
    environment = {"TOKENIZERS_PARALLELISM": parallelism} if parallelism else {}
    done = run(stream(tmp_path), tmp_path, timeout=240, **environment)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout.splitlines()[-1])["rungs"]) == 1
    assert "huggingface/tokenizers: The current process just got forked" not in done.stderr


def test_a_source_that_breaks_off_is_told_in_one_line_from_a_worker(tmp_path):
    (tmp_path / "z.jsonl").write_text("{nope")
    changed = ["data.files=[rows.jsonl,z.jsonl]", "data.max_validation_tokens=256", "training.tokens_per_parameter=50"]
    command = [*stream(tmp_path), *changed]  # the end comes after the validation part, while training
    done = run(command, tmp_path, timeout=240)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("hf-progressive: error: data.files: cannot read ")
    assert "z.jsonl: JSON parse error" in last
    assert "Traceback" not in done.stderr
