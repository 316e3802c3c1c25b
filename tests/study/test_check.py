"""What the check of the instrument accepts and refuses."""

import dataclasses
from typing import Any

import pytest

from hf_progressive.study.check import InstrumentCheck

SOUND = InstrumentCheck(
    branch_difference=0.0, baseline_eta=1.0, random_eta=0.02, random_low=-0.2, random_high=0.24, study="runs/check"
)


def test_a_sound_instrument_passes_with_its_figures() -> None:
    assert SOUND.passed
    assert "η 0.020 in [-0.200, 0.240]" in SOUND.describe()
    assert SOUND.to_dict()["problems"] == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"branch_difference": 1e-6}, "a branch differs from a plain run by 1e-06 bits per byte"),
        ({"baseline_eta": 0.9}, "the baseline's own checkpoint has η 0.900000 instead of 1"),
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
