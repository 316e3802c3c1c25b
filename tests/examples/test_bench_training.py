"""The benchmark of training runs all its variants, and its figures follow from the times it lists."""

import importlib
import json
import statistics
import sys
from pathlib import Path
from types import ModuleType

import pytest
from accelerate import Accelerator

FOLDER = Path(__file__).parents[2] / "examples" / "benchmarks"
VARIANTS = ["bare", "stock", "ours", "phi"]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("bench_training")


def test_every_figure_follows_from_the_times(benchmark, monkeypatch, capsys, tmp_path):
    arguments = ["--sizes", "l1w32", "--step-tokens", "512", "--mode", "eager", "--rounds", "3", "--peak", "1e10"]
    monkeypatch.setattr(
        sys, "argv", ["x", *arguments, "--device", "cpu", "--json", "--output", str(tmp_path / "o.json")]
    )
    benchmark.main()
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report == json.loads((tmp_path / "o.json").read_text())
    [result] = report["results"]
    assert list(result["variants"]) == VARIANTS
    assert (result["tokens_per_step"], result["rounds"]) == (512, 3)
    layer, width, vocabulary, context = 12 * 32**2, 32, 1024, 256
    assert result["flops_per_token"] == 6 * (layer + vocabulary * width) + 12 * width * context
    times = {name: variant["turn_seconds"] for name, variant in result["variants"].items()}
    for name, variant in result["variants"].items():
        rate = result["steps_per_turn"] * 512 / statistics.median(times[name])
        assert variant["tokens_per_second"] == pytest.approx(rate, rel=1e-2)  # the times are rounded
        assert variant["mfu"] == pytest.approx(rate * result["flops_per_token"] / 1e10, rel=1e-2)
        assert variant["peak_bytes"] > 3 * 4 * result["parameters"]  # weights and Adam's moments
    for key, over, under in (("ours_over_bare", "bare", "ours"), ("phi_over_ours", "phi", "ours")):
        ratio = statistics.median(a / b for a, b in zip(times[over], times[under], strict=True))
        assert result[key] == pytest.approx(ratio, rel=1e-2)
    # Trainer's filter of losses that are not finite reads one at every micro-batch; there is one per step here.
    [place] = [place for place in result["variants"]["stock"]["read_places"] if "_run_epoch" in place]
    assert result["variants"]["stock"]["read_places"][place] >= result["steps_per_turn"]
    bare, phi = (result["variants"][name]["peak_bytes"] for name in ("bare", "phi"))
    assert phi - bare >= 2 * 4 * result["parameters"]  # anchor and Fisher information


def test_what_does_not_fit_is_tried_smaller_and_what_has_no_time_is_skipped(benchmark, monkeypatch, capsys):
    size = benchmark.size_named("l3w32")
    tried = [(s.micro_batch, s.accumulation, s.config.n_layer) for s in benchmark.smaller(size)]
    assert tried == [(16, 4, 3), (8, 8, 3), (4, 16, 3), (2, 32, 3), (1, 64, 3), (1, 64, 2), (1, 64, 1)]
    monkeypatch.setattr(sys, "argv", ["x", "--sizes", "l1w32", "--seconds", "0", "--device", "cpu", "--json"])
    benchmark.main()
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [entry["compiled"] for entry in report["results"]] == [False, True]
    assert all("--seconds" in entry["skipped"] for entry in report["results"])


def test_sizes_follow_the_real_ladder(benchmark):
    config = benchmark.size_named("d12").config
    assert (config.n_layer, config.n_embd, config.n_head, config.n_positions, config.vocab_size) == (
        12, 768, 12, 2048, 65536
    )  # fmt: skip
    with pytest.raises(SystemExit, match="--sizes: 'x'"):
        benchmark.size_named("x")


def test_a_variant_that_fails_is_named_and_the_others_are_measured(benchmark, monkeypatch, capsys):
    def broken(workload, pause, observer):
        pause()
        raise RuntimeError("a kernel is missing\nand more")

    monkeypatch.setitem(benchmark.VARIANTS, "stock", broken)
    arguments = ["--sizes", "l1w32", "--step-tokens", "256", "--mode", "eager", "--rounds", "2", "--json"]
    monkeypatch.setattr(sys, "argv", ["x", *arguments, "--device", "cpu"])
    benchmark.main()
    [result] = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]
    assert result["failures"] == {"stock": "RuntimeError: a kernel is missing"}
    assert list(result["variants"]) == ["bare", "ours", "phi"]
    assert result["ours_over_stock"] is None
    assert result["ours_over_bare"] > 0
    assert result["variants"]["ours"]["reads_between_logs"] == result["variants"]["phi"]["reads_between_logs"] == 0


def test_what_one_measurement_sets_for_all_is_gone_before_the_next(benchmark, monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    benchmark.Bench(benchmark.torch.device("cpu"), peak=None, deadline=0, rounds=1, clock=float)._clean()
    assert Accelerator(cpu=True).state.dynamo_plugin.backend == "NO"
