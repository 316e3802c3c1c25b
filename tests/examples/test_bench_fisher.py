"""The measurements of the Fisher estimate run and report what they promise."""

import json
import runpy
import sys
from pathlib import Path

import torch

BENCHMARKS = Path(__file__).parents[2] / "examples" / "benchmarks"


def report_of(name, arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, *arguments.split()])
    runpy.run_path(str(BENCHMARKS / name), run_name="__main__")
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_times_of_the_estimate(monkeypatch, capsys):
    sizes = f"--batch 2 --length 16 --batches 1 --threads {torch.get_num_threads()}"
    arguments = f"--models gpt2-4x128 {sizes} --repetitions 1"
    report = report_of("bench_fisher.py", arguments, monkeypatch, capsys)
    result = report["models"]["gpt2-4x128"]
    assert result["parameters"] > 1_000_000
    assert report["worst_ratio"] == result["batched_over_plain"] > 0
    assert result["loop_over_plain"] > 0


def test_scale_of_the_estimate(monkeypatch, capsys):
    # Before any training the moves barely change the loss; larger ones show that it is the quadratic form they meet.
    arguments = "--sizes 2x64 --steps 20 --sequences 64 --draws 1 --move 0.1"
    result = report_of("fisher_scale.py", arguments, monkeypatch, capsys)["2x64"]
    assert result["increase"] > 0
    for estimate in ("empirical, token", "true"):
        assert 0.3 < result[estimate] < 3
