"""Studies that really train."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from study_fixtures import study_mapping

from hf_progressive import cli, storage

EVERYTHING = {
    "name": "everything",
    "set": {"growth.parent": "stable", "phi.ewc_lambda": 0.1, "phi.gamma": 1e-3},
    "carry_moments": True,
    "parent_recipe": "exact",
}


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_study_trains_reports_cleans_up_and_can_be_taken_up_again(
    corpus_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, root = tmp_path / "study.yaml", tmp_path / "run"
    mapping = study_mapping(corpus_file, recipes=[{"name": "exact"}, EVERYTHING], child_fractions=[0.5, 0.8])
    config.write_text(yaml.safe_dump(mapping))
    command = ["study", str(config), "--output-dir", str(root), "--json", "--set", "reference=exact"]
    assert cli.main(command) == 0
    outcome = last_line(capsys)
    record = storage.read_json(root / "study.json")
    assert outcome["complete"]
    assert record["finished"] == record["runs"] == 1 + 2 + 2 + 2
    assert outcome["headline"] == record["headline"]
    points = {recipe["name"]: recipe["points"][0]["points"] for recipe in record["recipes"]}
    assert all(point["estimates_flops"] > 0 for point in points["everything"])
    assert all(math.isfinite(point["bits_per_byte"]) for group in points.values() for point in group)
    assert [point["branched_at"] > 0 for point in points["exact"]] == [True, False]
    assert (root / "study.html").is_file()
    assert not any((root / "weights").iterdir())
    assert (root / "study.json").stat().st_size < 2_000_000

    # A branch whose longest run, initial model and parent are gone is trained again from nothing, to the same bits.
    removed = next((root / "results").glob("l2w16-s0-child-f0.5-*.json"))
    before = storage.read_json(removed)
    removed.unlink()
    assert cli.main(command) == 0
    last_line(capsys)
    after = storage.read_json(removed)
    assert before["branched_at"] > after["branched_at"] == 0
    assert before["bits_per_byte"] == after["bits_per_byte"]


@pytest.mark.slow
def test_the_shipped_study_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["study", "study_tiny", "--output-dir", str(tmp_path), "--json"]) == 0
    assert len(last_line(capsys)["headline"]["rungs"]) == 2
    assert (tmp_path / "study.md").is_file()


@pytest.mark.slow
def test_the_instrument_passes_its_own_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["study", "study_tiny", "--check", "--output-dir", str(tmp_path), "--json"]) == 0
    check = last_line(capsys)
    assert check["passed"]
    assert check["branch_difference"] == 0
    assert check["random_low"] <= 0 <= check["random_high"]
