"""The profile of a step runs where there is no GPU, too, and knows the ways that it compares."""

import json
import sys
from pathlib import Path

import pytest


@pytest.fixture
def profile_step(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples" / "benchmarks"))
    import profile_step

    return profile_step


def test_every_way_is_measured(profile_step, monkeypatch, tmp_path):
    output = tmp_path / "profile.json"
    monkeypatch.setattr(sys, "argv", ["x", "--size", "l1w32", "--eager", "--output", str(output)])
    profile_step.main()
    ways = json.loads(output.read_text())["ways"]
    assert list(ways) == list(profile_step.WAYS)
    assert all(way["tokens_per_s"] > 0 for way in ways.values())
