"""What the check of the instrument accepts and refuses."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback
from trunk_studies import trunk_study

from hf_progressive.study.check import InstrumentCheck, check_instrument

SOUND = InstrumentCheck(
    branch_difference=0.0,
    baseline_eta=1.0,
    random_eta=0.02,
    random_low=-0.2,
    random_high=0.24,
    trunk_difference=0.0,
    trunk_cost=1.0,
    study="runs/check",
)
OF_TRUNKS = {"has_chains": False, "random_eta": None, "random_low": None, "random_high": None}


def test_a_sound_instrument_passes_with_its_figures() -> None:
    assert SOUND.passed
    assert "η 0.020 in [-0.200, 0.240]" in SOUND.describe()
    assert SOUND.to_dict()["problems"] == []
    of_trunks = dataclasses.replace(SOUND, **OF_TRUNKS)
    assert of_trunks.describe().endswith("has η 1, a trunk that never grows has a last-model cost of 1.00")
    of_chains = dataclasses.replace(SOUND, trunk_difference=None, trunk_cost=None)
    assert "trunk" not in of_chains.describe()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"branch_difference": 1e-6}, "a branch differs from a plain run by 1e-06 bits per byte"),
        ({"baseline_eta": 0.9}, "the baseline's own checkpoint has η 0.900000 instead of 1"),
        ({"trunk_difference": 1e-7}, "a trunk that never grows differs from its baseline by 1e-07 bits per byte"),
        ({"trunk_cost": 1.01}, "a trunk that never grows has a last-model cost of 1.010000 instead of 1"),
        ({"random_low": 0.01}, r"the random child has η in \[0.010, 0.240\], without 0"),
        ({"random_low": -2.0, "random_high": 2.0}, "η is uncertain by 2.00, which tells nothing"),
        ({"random_low": None, "random_high": None}, "the random child did not match its baseline in every seed"),
        ({"random_high": None}, "the random child matched its baseline at the smallest budget already"),
    ],
)
def test_every_fault_is_named_in_one_line(changes: dict[str, Any], message: str) -> None:
    check = dataclasses.replace(SOUND, **changes)
    assert not check.passed
    with pytest.raises(ValueError, match=message):
        raise ValueError(check.describe())
    assert "\n" not in check.describe()


def test_a_study_of_trunks_checks_one_that_never_grows(corpus_file: Path, tmp_path: Path) -> None:
    check = check_instrument(trunk_study(corpus_file), tmp_path)
    assert check.passed, check.describe()
    assert (check.trunk_difference, check.branch_difference, check.has_chains) == (0, 0, False)
    assert check.trunk_cost == pytest.approx(1, abs=1e-12)


@pytest.mark.slow
def test_the_check_of_trunks_sees_moments_that_are_lost(
    corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_progressive.training.training_run.CarriedMoments", lambda path: TrainerCallback())
    check = check_instrument(trunk_study(corpus_file), tmp_path)
    assert not check.passed
    assert check.trunk_difference
    assert any("differs from its baseline" in problem for problem in check.problems)
