"""A ladder whose Φ acts by proximal steps, with L2-SP or on the inside: what is planned, estimated and recorded."""

from pathlib import Path

import pytest
from ladder_fixtures import RUNGS, write_ladder

from hf_progressive.config import load_ladder_config
from hf_progressive.ladder.rung_loop import run_ladder
from hf_progressive.ladder.rung_penalty import load_penalty
from hf_progressive.planning.ladder_plan import plan_ladder
from hf_progressive.planning.overhead import estimate_flops

PHI = {
    "ewc_lambda": 20.0,
    "gamma": 1.0,
    "apply": "proximal",
    "fisher": {"kind": "ones"},
    "subspace": {"side": "inside"},
}


@pytest.mark.slow
def test_a_ladder_trains_with_the_forms_that_its_configuration_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_progressive.ladder.estimates.estimate_fisher", None)  # nothing is estimated
    training = {"tokens_per_parameter": 0.2, "batch_tokens": 128, "micro_batch_size": 2, "checkpoints": 1}
    config = load_ladder_config(write_ladder(tmp_path, rungs=RUNGS[:2], cold=[], phi=PHI, training=training))
    run = tmp_path / "run"
    parent, child = run_ladder(config, run)
    assert set(parent.record["estimates"]) == {"subspace"}
    phi = child.record["phi"]
    assert (phi["apply"], phi["subspace_side"], phi["fisher_kind"]) == ("proximal", "inside", "ones")
    assert "fisher" not in phi
    assert child.record["flops"]["fisher"] == 0.0
    ratios = [entry["phi/moved_ratio"] for entry in child.record["training_log"]]
    assert max(ratios) > 0.0
    kept = load_penalty(run / "l2w16" / "checkpoints")
    assert (kept.apply, kept.subspace_side) == ("proximal", "inside")


def test_l2_sp_is_planned_as_free(tmp_path: Path) -> None:
    config = load_ladder_config(write_ladder(tmp_path, phi=PHI))
    assert estimate_flops(config.phi, plan_ladder(config).rungs[0], 32)["fisher"] == 0.0
