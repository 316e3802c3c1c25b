"""The comparison of Φ's forms with the best rate without it: what it chooses, what it says, a small run."""

import json
import math
import runpy
import statistics
import sys
from pathlib import Path

import pytest
import yaml
from compare import Comparison, table
from trials import FREE, Trial, trials_of, with_trials

from hf_progressive.config import load_study_config
from hf_progressive.storage import write_json
from hf_progressive.study.plan import plan_study

FOLDER = Path(__file__).parents[2] / "examples" / "studies" / "phi_forms"
STUDY = {
    "ladder": {
        "base": "ladder_tiny.yaml",
        "cold": "none",
        "rungs": [{"name": f"l{n}w16", "n_layer": n, "n_embd": 16, "n_head": 1} for n in (1, 2)],
        "phi": {"ewc_lambda": 0.0, "gamma": 0.0},
        "training": {"tokens_per_parameter": 1, "evaluations": 1, "checkpoints": 1},
    },
    "seeds": [0, 1, 2],
    "child_fractions": [0.2, 0.4],
    "recipes": [{"name": "parent", "parent_fraction": 0.4}],
}


def study_file(folder, **changes):
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**STUDY, **changes}), encoding="utf-8")
    return path


def test_the_first_seed_chooses_and_the_others_judge(tmp_path):
    plan = plan_study(with_trials(load_study_config(study_file(tmp_path))), "")
    comparison = Comparison([plan], tmp_path, None)
    short, long = comparison.cases
    strong = Trial(rate=4e-3, form="proximal", kind="optimizer", weight=10.0)
    measured = {(Trial(rate=1e-3), 0): 1.9, (strong, 0): 1.8, (Trial(rate=1e-3), 1): 2.1, (Trial(rate=1e-3), 2): 2.2}
    measured |= {(strong, 1): 2.0, (strong, 2): 2.3, (Trial(rate=2e-3), 1): 1.0}  # the last was not chosen
    for case in (short, long):
        for trial in trials_of(0, "gpt2"):
            for seed in (0, 1, 2):
                found = measured.get((trial, seed), 2.5)
                write_json(comparison.results.result_path(case.child(trial, seed).name), {"bits_per_byte": found})
    assert comparison.chosen(short)[FREE] == Trial(rate=1e-3)
    assert {model.initial.seed for model in comparison.judged()} == {1, 2}
    row = next(comparison.rows())
    assert (row["form"], row["weight"], row["share"]) == ("proximal", 10.0, 0.2)
    assert row["difference"] == pytest.approx(0.0)  # 2.0 − 2.1 and 2.3 − 2.2
    assert row["high"] == pytest.approx(12.7062 * 0.1, rel=1e-3)  # t with one degree of freedom, error .1
    assert "| l2w16 | 0.2 | 2.1500, 0.001 | proximal, Ω optimizer, λ 10, 0.004 |" in table([row])


def test_both_families_step_alike():
    study, gpt2 = (load_study_config(FOLDER / name) for name in ("study.yaml", "gpt2.yaml"))
    layers = [[name.partition("w")[0] for name in config.measured_rungs] for config in (study, gpt2)]
    assert layers == [["l6", "l6"]] * 2
    assert study.ladder.training == gpt2.ladder.training
    assert study.ladder.data == gpt2.ladder.data


def test_the_evidence_has_the_record_s_table():
    record = json.loads((FOLDER / "compared.json").read_text())
    compared = record["compared"]
    steps = {("llama", "l6w64"): 0, ("llama", "l6w72"): 1, ("gpt2", "l6w32"): 0, ("gpt2", "l6w40"): 1}
    for (family, rung), step in steps.items():
        for share in (0.2, 0.4):
            rows = [
                row for row in record["tried"] if (row["family"], row["rung"], row["share"]) == (family, rung, share)
            ]
            fields = ("rate", "form", "kind", "weight")
            assert [Trial(**{name: row[name] for name in fields}) for row in rows] == trials_of(step, family)
    for row in compared:
        differences = [a - b for a, b in zip(row["with_phi"], row["free"], strict=True)]
        half = 4.30265273 * statistics.stdev(differences) / math.sqrt(3)  # t with two degrees of freedom
        mean = statistics.fmean(differences)
        assert (row["low"], row["high"]) == pytest.approx((mean - half, mean + half), abs=1e-7)
    assert table(compared) in (FOLDER.parents[2] / "docs" / "evidence.md").read_text(encoding="utf-8")
    assert sum(row["high"] < 0 for row in compared) == 0


@pytest.mark.slow
def test_it_runs_and_goes_on(monkeypatch, capsys, tmp_path):
    study = study_file(tmp_path, seeds=[0, 1], child_fractions=[0.4])
    small = ["--set", "ladder.data.max_validation_tokens=512", "ladder.training.tokens_per_parameter=0.3"]
    monkeypatch.setattr(
        sys, "argv", ["compare.py", "--studies", str(study), "--output-dir", str(tmp_path / "out"), *small]
    )
    runpy.run_path(str(FOLDER / "compare.py"), run_name="__main__")
    told = capsys.readouterr().out[-1000:].partition("| family")[2]
    assert len(told.splitlines()) == 2 + 2  # two forms
    compared = json.loads((tmp_path / "out" / "compared.json").read_text())
    assert len(compared["tried"]) == len(trials_of(0, "gpt2"))
    runpy.run_path(str(FOLDER / "compare.py"), run_name="__main__")  # all is there
    assert capsys.readouterr().out.endswith(told)
