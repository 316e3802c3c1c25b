"""The benchmark of Φ runs and reports what it promises."""

import json
import runpy
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[2] / "examples" / "benchmarks" / "bench_phi.py"


def test_the_last_line_holds_every_ratio(monkeypatch, capsys):
    arguments = [
        "--models",
        "gpt2-4x128",
        "--tokens",
        "64",
        "128",
        "--batch",
        "1",
        "--length",
        "64",
        "--repetitions",
        "1",
    ]
    monkeypatch.setattr(sys, "argv", [str(BENCHMARK), *arguments])
    runpy.run_path(str(BENCHMARK), run_name="__main__")
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [(result["model"], result["tokens"]) for result in report["results"]] == [
        ("gpt2-4x128", 64), ("gpt2-4x128", 128)
    ]  # fmt: skip
    for result in report["results"]:
        assert result["anchor_and_fisher_over_parameters"] == 2.0
        assert min(result["phi_over_plain"], result["one_plus_phi_share"], result["naive_over_plain"]) > 0
