"""The command for a machine with a GPU, rehearsed on the CPU: it comes to its end, and a second start rests."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from documents.told import EVIDENCE, NUMBERS, README, cells, percent, short

from hf_progressive.growth.verify import TOLERANCES

SCRIPT = Path(__file__).parents[2] / "examples" / "gpu" / "run.py"
PARTS = ("correctness", "benchmark", "configuration", "study")


def start(*arguments, timeout):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd="/")


@pytest.mark.slow
def test_a_rehearsal_comes_to_its_end_and_a_second_start_does_nothing(tmp_path):
    out = tmp_path / "out"
    arguments = ("--minutes", 20, "--out", out, "--work", tmp_path / "work", "--rehearse")
    done = start(*arguments, timeout=1200)
    log = (out / "run.log").read_text() if (out / "run.log").exists() else ""
    assert done.returncode == 0, done.stdout + done.stderr + log[-6000:]
    records = {part: json.loads((out / f"{part}.json").read_text()) for part in PARTS}
    assert {part: record["status"] for part, record in records.items()} == dict.fromkeys(PARTS, "finished")
    assert all(record["rehearsal"] and record["machine"]["torch"] for record in records.values())
    assert sorted(path.name for path in out.iterdir()) == sorted([*(f"{part}.json" for part in PARTS), "run.log"])

    counts = records["correctness"]["counts"]
    assert counts["passed"] > 20
    assert set(counts) <= {"passed", "skipped"}
    assert (
        records["benchmark"]["results"][0]["size"] == "l1w32"
    )  # on a busy machine there may be no time to measure it
    assert [run["rung"] for run in records["configuration"]["runs"]][:2] == ["d1", "d3"]
    study = records["study"]
    assert study["complete"]
    costs = {entry["recipe"]: entry["last_model_cost"] for entry in study["recipes"]}
    assert list(costs) == ["stacked", "exact, moments grown"]
    for recipe in study["study"]["recipes"]:
        assert_last_model_cost(study["study"], recipe, costs[recipe["name"]])
    assert study["last_model"] == costs["stacked"]
    assert study["summary"][0].startswith("last-model cost ")
    assert study["summary"][0] in done.stdout

    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.iterdir()}
    again = start(*arguments, timeout=120)
    assert again.returncode == 0
    assert {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.iterdir()} == before
    assert again.stdout == done.stdout[done.stdout.index("correctness    finished") :]


def assert_last_model_cost(record, recipe, cost):
    """(C_lineage + C_child) / C_scratch of the one seed, from shares, FLOPs per token and finished models alone."""
    end = record["rungs"][-1]
    stages = [(stage["until"], stage["flops_per_token"]) for stage in recipe["trunk"]]
    (first, quarter), (second, half) = stages
    spent = first * quarter + (second - first) * half + (1 - second) * end["flops_per_token"]
    spent *= end["cold_tokens"]
    reached = recipe["points"][0]["points"][0]["bits_per_byte"]
    curve = [(point["bits_per_byte"], math.log(point["flops"])) for point in record["cold"][0]["points"]]
    if cost is None:  # toys may learn nothing between two budgets
        assert reached > min(value for value, _ in curve)
        return
    assert cost["seeds"] == 1
    assert cost["by_seed"][0]["c_lineage"] + cost["by_seed"][0]["c_child"] == pytest.approx(spent, rel=0.05)
    for (above, few), (below, many) in zip(curve, curve[1:], strict=False):
        if above >= reached >= below:
            scratch = math.exp(few + (above - reached) / (above - below) * (many - few))
            assert cost["value"] == pytest.approx(spent / scratch, rel=0.05)
            return
    assert cost["extrapolated"] == 1


def test_a_part_that_fails_or_takes_too_long_stops_no_other(tmp_path, monkeypatch):
    """Three parts: one ends with an error, one goes on beyond its time with a child of its own, one is well."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import run

    fake = tmp_path / "scripts"
    fake.mkdir()
    common = "import sys, json, time, subprocess\npath = sys.argv[sys.argv.index('--json') + 1]\n"
    bodies = {
        "correctness": "raise SystemExit('no such thing')",
        "benchmark": (
            "json.dump({'status': 'running', 'machine': {}, 'summary': ['half']}, open(path, 'w'))\n"
            "child = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
            f"open({str(tmp_path / 'child')!r}, 'w').write(str(child.pid))\n"
            "time.sleep(600)"
        ),
        "configuration": "json.dump({'status': 'finished', 'summary': ['well']}, open(path, 'w'))",
    }
    for name, body in bodies.items():
        (fake / f"{name}.py").write_text(common + body)
    monkeypatch.setattr(run, "HERE", fake)
    monkeypatch.setattr(run, "GRACE_SECONDS", 0.5)
    monkeypatch.setattr(run, "RESERVE_SECONDS", 0.0)
    out = tmp_path / "out"
    options = ["--minutes", "0.15", "--out", str(out), "--work", str(tmp_path), "--rehearse", "--parts", *bodies]
    assert run.main(options) == 1
    records = {name: json.loads((out / f"{name}.json").read_text()) for name in bodies}
    assert {name: record["status"] for name, record in records.items()} == {
        "correctness": "failed", "benchmark": "stopped", "configuration": "finished"
    }  # fmt: skip
    assert records["correctness"]["traceback"] == ["no such thing"]
    assert records["benchmark"]["summary"] == ["half"]
    child = int((tmp_path / "child").read_text())
    assert not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2]
    assert not os.path.exists(out / "study.json")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--parts", "studdy"], "--parts: 'studdy' is none of correctness, benchmark, configuration, study"),
        (["--minutes", "0"], "--minutes: 0.0 is not a number above 0"),
        (["--data", "/nowhere/text.txt"], "--data: /nowhere/text.txt does not exist"),
    ],
)
def test_a_wrong_command_is_refused_in_one_line(arguments, message, tmp_path):
    done = start("--out", tmp_path / "out", *arguments, timeout=60)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"run.py: error: {message}"
    assert not (tmp_path / "out").exists()


def committed(part):
    return json.loads((SCRIPT.parent / "results" / f"{part}.json").read_text(encoding="utf-8"))


def test_readme_and_evidence_have_how_exact_growth_was_on_a_gpu():
    record = committed("correctness")
    growths = [test for test in record["tests"] if "a_grown_model_computes_what_its_parent_computes" in test["test"]]
    families = {re.search(r"\[(\w+)-", test["test"])[1] for test in growths}
    largest = max(test["figures"]["relative_difference"] for test in growths)
    _, told = cells(EVIDENCE, "correctness |")
    assert f"{record['counts']['passed']} of them in each of two runs" in told
    assert f"growth in {NUMBERS[len(families)]} families within {largest:.1e}".replace("e-0", "e-") in told
    assert largest < TOLERANCES[torch.float32]
    _, told = cells(README, "exact growth, every family, float32 |")
    assert f" by less than {TOLERANCES[torch.float32]:.0e} of their scale;".replace("e-0", "e-") in told


def test_readme_and_evidence_have_how_fast_a_gpu_trained():
    small, large = committed("configuration")["runs"]
    for row, run in (("d10 as configured", small), ("d16 grown from d15", large)):
        predicted = run["plan"]["replicated_bytes"] / 1e9
        told = cells(EVIDENCE, row)[1].partition(";")[0]
        assert told == (
            f"{run['tokens_per_second'] / 1e3:.0f} k tokens/s, MFU {100 * run['mfu']:.1f} %,"
            f" {run['memory']['allocated_bytes'] / 1e9:.1f} GB where `plan` predicted {predicted:.1f}"
        )
    name, told = cells(EVIDENCE, "d10 as configured")
    assert f"({small['tokens_per_step']:,} tokens a step," in name
    assert told.endswith(f"takes {short(small['whole_run']['gpu_hours'])} GPU hours")
    _, told = cells(README, f"d10 of `ladder_d10_d18` ({small['parameters'] / 1e6:.0f} M parameters), one H100 |")
    assert told == f"{small['tokens_per_second'] / 1e3:.0f} k tokens/s, {percent(small['mfu'])} MFU"


def test_the_evidence_has_where_a_gpu_s_time_goes():
    ours, stock = (committed("profile")["ways"][way]["tokens_per_s"] / 1e3 for way in ("ours", "stock"))
    _, told = cells(EVIDENCE, "`profile_step.py --size d10`")
    assert f"our forward and backward pass {ours:.0f} k tokens/s, the stock one {stock:.0f} k:" in told
    [found] = [run for run in committed("benchmark")["results"] if run["size"] == "d10" and not run["compiled"]]
    bare, trainer = (short(found[ratio]) for ratio in ("ours_over_bare", "ours_over_stock"))
    _, told = cells(EVIDENCE, "training benchmark |")
    assert f"{bare} of a bare loop, {trainer} of the stock Trainer, Φ {found['phi_over_ours']:.3f};" in told


def test_the_evidence_has_what_passed_on_another_gpu():
    tests = committed("correctness_h200")["tests"]
    failed = [test for test in tests if test["outcome"] != "passed"]
    growth = [test for test in tests if "test_growth_on_device" in test["test"]]
    grown = [test for test in growth if "computes_what_its_parent" in test["test"]]
    families = {test["test"].partition("[")[2].partition("-")[0] for test in grown}
    largest = max(test["figures"]["relative_difference"] for test in grown)
    assert {test["outcome"] for test in growth} == {"passed"}
    assert all("No module named 'pydantic'" in test["message"] for test in failed)
    text = " ".join(EVIDENCE.read_text(encoding="utf-8").split())
    assert f"{len(tests) - len(failed)} of {len(tests)} tests passed" in text
    within = f"within {largest:.1e}".replace("e-0", "e-")
    assert f"all {len(growth)} of growth, in {len(families)} families {within}, and" in text
    assert f"The other {len(failed)} stopped where DeepSpeed was imported" in text


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("E             from pydantic import Field\nE         ModuleNotFoundError: No module named 'x'\nE       "
         "assert 1 == 0\n\na.py:37: AssertionError", ": ModuleNotFoundError: No module named 'x'"),
        ("E   torch.OutOfMemoryError: CUDA", ": torch.OutOfMemoryError: CUDA"),
        ("E   assert 1 == 0", ""),
    ],
)  # fmt: skip
def test_a_failed_test_s_reason_is_the_last_exception(monkeypatch, message, reason):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import correctness

    assert correctness._reason({"message": message}) == reason
