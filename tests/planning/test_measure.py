"""Real steps timed for a plan, and what a plan makes of them, against sums by hand."""

import dataclasses
import json
import os

import pytest
import torch

from hf_progressive import cli
from hf_progressive.config import load_ladder_config
from hf_progressive.distributed.accelerators import GPUS, Gpu
from hf_progressive.planning.cluster import Cluster
from hf_progressive.planning.ladder_plan import plan_ladder
from hf_progressive.planning.measure import _Clock, measure_ladder
from hf_progressive.planning.pricing import LadderPrice
from hf_progressive.planning.speed import MeasuredRung, Measurement, speeds

CPU = Gpu(name="cpu", peak_flops=None, memory_gb=16, source="the machine at hand")


def measured(name, flops_per_token, tokens_per_second):
    return MeasuredRung(
        name=name,
        flops_per_token=flops_per_token,
        micro_batch_size=8,
        steps=3,
        accumulation_steps=1,
        tokens_per_second=tokens_per_second,
        evaluation_tokens_per_second=4 * tokens_per_second,
        peak_bytes=None,
        predicted_bytes=10**6,
    )


@pytest.fixture(scope="module")
def plan():
    return plan_ladder(load_ladder_config("ladder_tiny"))


@pytest.fixture
def measurement(plan):
    first, _, third = plan.rungs
    rungs = (
        measured("l2w32", first.size.flops_per_token, 1000.0),
        measured("l3w48", third.size.flops_per_token, 400.0),
    )
    return Measurement(
        device=CPU,
        seconds=1.0,
        rungs=rungs,
        skipped={"l3w32": "it was left out"},
        saving_bytes_per_second=1e6,
        folder="here",
    )


def test_hours_are_tokens_over_measured_tokens_per_second(plan, measurement):
    record = LadderPrice(
        plan=plan, cluster=Cluster(gpu=CPU, count=2, mfu=None, price=3.0), measurement=measurement
    ).to_dict()
    first, second, third = record["rungs"]
    assert first["as_configured"]["hours"] == pytest.approx(first["tokens"] / (2 * 1000.0) / 3600)
    assert third["cold"]["hours"] == pytest.approx(third["cold_tokens"] / (2 * 400.0) / 3600)
    assert third["cold"]["dollars"] == pytest.approx(third["cold"]["hours"] * 2 * 3.0)
    assert first["validation"]["hours"] == pytest.approx(first["validation"]["tokens"] / (2 * 4000.0) / 3600)
    # The rung between takes as many FLOPs per second as the nearer of the two by FLOPs per token, the first.
    assert second["speed"] == {**second["speed"], "basis": "extrapolated", "source": "l2w32", "mfu": None}
    rate = 1000.0 * first["flops_per_token"] / second["flops_per_token"]
    assert second["tokens_per_second"] == pytest.approx(2 * rate)
    assert [rung["speed"]["basis"] for rung in (first, third)] == ["measured", "measured"]
    for rung in record["rungs"]:
        assert rung["saving"]["hours"] == pytest.approx(rung["saving"]["bytes"] / 1e6 / 3600)
    family = record["family"]
    parts = [family[key]["hours"] for key in ("this_run", "validation", "estimates", "saving")]
    assert family["in_all"]["hours"] == pytest.approx(sum(parts))
    training = [rung["as_configured"]["hours"] for rung in record["rungs"]] + [third["cold"]["hours"]]
    assert family["this_run"]["hours"] == pytest.approx(sum(training))


def test_another_accelerator_keeps_the_measured_share_of_the_peak(plan, measurement):
    on_a100 = dataclasses.replace(measurement, device=GPUS["a100"])
    here = speeds(plan, Cluster(gpu=GPUS["a100"], mfu=None), on_a100)
    there = speeds(plan, Cluster(gpu=GPUS["h100"], mfu=None), on_a100)
    for a, b in zip(here, there, strict=True):
        assert b.training / a.training == pytest.approx(989.4 / 312)
        assert b.mfu == pytest.approx(a.mfu)
        assert b.basis == "extrapolated"
    with pytest.raises(ValueError, match="the speed of cpu says nothing of the h100"):
        speeds(plan, Cluster(gpu=GPUS["h100"], mfu=None), measurement)


def test_a_step_is_its_micro_batches_and_one_step_of_the_optimizer():
    clock = _Clock(torch.device("cpu"), seconds=1.0)
    clock.fetching, clock.accumulating, clock.stepping = [0.1, 0.1, 9.0], [2.0, 2.0, 2.5], [3.0, 2.9, 3.1]
    assert clock.step_seconds(8) == pytest.approx(0.1 * 8 / 2 + 7 * 2.0 + 3.0)
    clock.accumulating = []
    assert clock.step_seconds(1) == pytest.approx(0.1 + 3.0)


def test_a_plan_is_measured_on_this_machine_and_leaves_nothing_behind(capsys, tmp_path):
    words = ["plan", "ladder_tiny", "--measure", "30", "--output-dir", str(tmp_path / "run"), "--json"]
    assert cli.main(words) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert os.listdir(tmp_path) == []
    assert record["measurement"]["folder"] == str(tmp_path)
    assert [rung["name"] for rung in record["measurement"]["rungs"]] == ["l2w32", "l3w32", "l3w48"]
    hours = 0.0
    for rung, entry in zip(record["rungs"], record["measurement"]["rungs"], strict=True):
        assert rung["speed"]["basis"] == "measured"
        assert rung["tokens_per_second"] == pytest.approx(entry["tokens_per_second"])
        assert entry["steps"] >= 2
        tokens = rung["tokens"] + (rung["cold_tokens"] if rung["trains_baseline"] else 0)
        hours += tokens / entry["tokens_per_second"] / 3600
    assert record["family"]["this_run"]["hours"] == pytest.approx(hours)
    assert record["family"]["saving"]["hours"] > 0


def test_a_rung_that_does_not_fit_is_extrapolated_and_the_table_says_so(capsys):
    big = "{name: big, n_layer: 24, n_embd: 4096, n_head: 256}"
    words = ["--set", "cold=none", f"rungs=[{{name: small, n_layer: 2, n_embd: 32, n_head: 2}}, {big}]"]
    assert cli.main(["plan", "ladder_tiny", "--full", "--measure", "1", "--gpus", "2", *words]) == 0
    table = capsys.readouterr().out
    assert "  small: " in table
    assert "  big: extrapolated from small's FLOPs per second on the cpu, because " in table
    assert "extrapolated to 2: taken as 2 times one" in table


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--measure", "0"], "measure: 0 is not a number of seconds above 0"),
        (["--measure", "1e-6"], "no rung fits on this machine (l2w32: the fewest steps to time would take about"),
        (["--measure", "--mfu", "0.3"], "mfu: --measure finds it; give one of the two"),
    ],
)
def test_what_cannot_be_measured_is_one_line(capsys, words, message):
    assert cli.main(["plan", "ladder_tiny", *words]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error.splitlines()[-1]


def test_phi_is_part_of_what_is_timed(plan, monkeypatch):
    seen = []
    from hf_progressive.penalty import BoundPenalty

    add = BoundPenalty.add_gradient
    monkeypatch.setattr(BoundPenalty, "add_gradient", lambda self, *a, **k: (seen.append(self), add(self, *a, **k))[1])
    grown = dataclasses.replace(plan, rungs=plan.rungs[1:2])
    result = measure_ladder(grown, seconds=0.5)
    assert len(seen) == result.rungs[0].steps + 2  # the warm-up too
    assert (seen[0].ewc_lambda, seen[0].gamma) == (0.1, 1e-3)
