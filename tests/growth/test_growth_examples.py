"""The example and the benchmark of growth run and say what they should."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from growth_checkpoints import gpt2, save

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, EXAMPLES / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_shows_parent_and_child_writing_the_same(tmp_path, monkeypatch, capsys):
    example = load(Path("grow_checkpoint.py"))
    monkeypatch.setattr(sys, "argv", ["grow_checkpoint.py", "--steps", "3", "--output", str(tmp_path / "child")])
    assert example.main() == 0
    printed = capsys.readouterr().out
    parent, child = (
        printed.split(f"{name} (")[1].split("\n\n")[0].partition(":\n")[2] for name in ("parent", "child")
    )
    assert parent == child
    assert parent.startswith("A small model")
    assert "n_embd: 64 → 96\n" in printed
    assert "function preserved" in printed
    assert (tmp_path / "child" / "tokenizer_config.json").is_file()


def test_the_example_grows_a_checkpoint_that_is_named(tmp_path, monkeypatch, capsys):
    example = load(Path("grow_checkpoint.py"))
    source = save(gpt2(vocab_size=259), tmp_path / "parent")
    example.ByT5Tokenizer(extra_ids=0).save_pretrained(source)
    arguments = ["--source", str(source), "--set", "n_embd=32", "n_head=4", "--new-tokens", "8", "--prompt", "Hi"]
    monkeypatch.setattr(sys, "argv", ["grow_checkpoint.py", *arguments])
    assert example.main() == 0
    assert "n_embd: 24 → 32\n" in capsys.readouterr().out


def test_every_variant_of_the_benchmark_writes_the_grown_size(tmp_path):
    bench = load(Path("benchmarks/bench_growth.py"))
    target = {"n_embd": 128, "n_head": 2, "n_layer": 2}
    for name, width, layers in (("parent", 64, 1), ("half", 64, 1), ("grown", 128, 2)):
        bench.build_parent(tmp_path / name, width, layers)
    grown = (tmp_path / "grown" / "model.safetensors").stat().st_size
    for variant in bench.VARIANTS:
        result = bench.run_variant(variant, tmp_path, target)
        assert result["seconds"] > 0
        assert result["processor_seconds"] > 0
        assert result["peak_rss_mb"] > 10
        assert result["cores_of_others"] >= 0
        if variant != "half_the_layers":
            assert grown <= result["bytes"] < grown + 50_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["grown", "half", "parent"]


@pytest.mark.slow
def test_the_benchmark_prints_one_json_line(tmp_path):
    command = [sys.executable, EXAMPLES / "benchmarks" / "bench_growth.py", "--gb", "0.02", "--width", "128"]
    options = ["--rounds", "3", "--variants", "growth", "copy", "half_the_layers", "--folder", tmp_path]
    run = subprocess.run([*command, *options], stdout=subprocess.PIPE, text=True, check=True)
    (line,) = run.stdout.splitlines()
    result = json.loads(line)
    growth, copy = result["growth"], result["copy"]
    ratios = [one / other for one, other in zip(growth["all_seconds"], copy["all_seconds"], strict=True)]
    found = result["ratios"]["growth_to_copy"]
    assert len(ratios) == 3
    assert found["seconds"] == pytest.approx(sorted(ratios)[1], rel=0.2)  # of seconds that are rounded
    assert found["range"][0] <= found["seconds"] <= found["range"][1]
    assert min(growth["peak_rss_mb"], result["half_the_layers"]["peak_rss_mb"]) > 10
    assert growth["cores_of_others"] >= 0
