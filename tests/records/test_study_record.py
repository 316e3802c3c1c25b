"""study.json: what it holds, and that its sums agree with a second count."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from ladder_fixtures import RUNGS
from study_fixtures import study_config, study_mapping
from study_pretence import ESTIMATE_FLOPS, HEAD_START, LEVEL, SLOPE, pretend

from hf_progressive.config import StudyConfig, strict_yaml
from hf_progressive.study.run import run_study

RECIPES = [{"name": "exact"}, {"name": "Φ", "set": {"phi.ewc_lambda": 0.1, "phi.until": 0.25}}]
RUNG_KEYS = {"parent", "child", "c_parent_over_c_cold", "saving", "eta", "eta_low", "eta_high", "seeds"}


@pytest.fixture(scope="module")
def record(corpus_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A study of pretended tasks on three rungs: two chains, two seeds, and a sweep."""
    folder = tmp_path_factory.mktemp("study")
    config = study_config(
        corpus_file,
        ladder={**study_mapping(corpus_file)["ladder"], "rungs": RUNGS},
        recipes=RECIPES,
        headline="exact",
        reference="exact",
        seeds=[0, 1],
        learning_rates={"cold": [1e-3], "child": [1e-3], "rung": "l2w24"},
    )
    with pytest.MonkeyPatch.context() as patch:
        pretend(patch, folder / "log")
        return run_study(config, folder / "run")


def test_the_headline_has_its_promised_keys_and_all_is_json(record: dict[str, Any]) -> None:
    headline = record["headline"]
    assert set(headline) >= {"recipe", "rungs", "family", "phi_effect"}
    assert [rung["child"] for rung in headline["rungs"]] == ["l2w16", "l2w24"]
    assert all(set(rung) >= RUNG_KEYS for rung in headline["rungs"])
    assert set(headline["family"]) >= {"cold", "inherited", "last_alone"}
    text = json.dumps(record, allow_nan=False)
    assert strict_yaml.build(StudyConfig, json.loads(text)["config"]).to_dict() == record["config"]


def test_eta_and_the_family_agree_with_a_count_by_hand(record: dict[str, Any]) -> None:
    sizes = {rung["name"]: rung for rung in record["rungs"]}
    lineage = sizes["l1w16"]["cold_flops"]
    family = lineage
    for rung in record["headline"]["rungs"]:
        cold = sizes[rung["child"]]
        # The pretended curve crosses at a share of the cold steps, a straight line in log FLOPs.
        expected = HEAD_START * cold["cold_flops"]
        assert rung["saving"] == pytest.approx(1 - HEAD_START)
        assert rung["eta"] == pytest.approx((cold["cold_flops"] - expected) / lineage)
        half = round(0.5 * cold["cold_steps"]) / cold["cold_steps"] * cold["cold_flops"]
        lineage += half
        family += half if rung["child"] != "l2w24" else expected
    assert record["headline"]["family"]["inherited"] == pytest.approx(family)
    assert record["headline"]["family"]["cold"] == sum(rung["cold_flops"] for rung in record["rungs"])
    assert record["headline"]["family"]["last_alone"] == sizes["l2w24"]["cold_flops"]


def test_estimates_count_into_every_child_and_down_the_lineage(record: dict[str, Any]) -> None:
    exact, phi = record["recipes"]
    for plain, with_phi in zip(exact["points"], phi["points"], strict=True):
        for a, b in zip(plain["points"], with_phi["points"], strict=True):
            assert b["flops"] - a["flops"] == b["estimates_flops"] == ESTIMATE_FLOPS
    parents = [rung["by_seed"][0]["c_parent"] for recipe in (exact, phi) for rung in recipe["rungs"]]
    assert parents[2] == parents[0]  # the first rung is the same
    assert parents[3] - parents[1] == ESTIMATE_FLOPS  # the second's lineage holds one estimate


def test_phi_is_compared_at_equal_total_flops(record: dict[str, Any]) -> None:
    effect = record["headline"]["phi_effect"]
    assert effect["reference"] == "exact"
    (recipe,) = effect["recipes"]
    for rung in recipe["rungs"]:
        size = next(row for row in record["rungs"] if row["name"] == rung["rung"])
        for point in rung["points"]:
            # Same bits per byte at the same step: what Φ lost is what the reference gains with the estimates' FLOPs.
            steps = round(point["fraction"] * size["cold_steps"])
            without = steps * size["cold_flops"] / size["cold_steps"]
            assert point["flops"] == pytest.approx(without + ESTIMATE_FLOPS)
            assert point["difference"] == pytest.approx(SLOPE * math.log(point["flops"] / without), rel=1e-6)
            assert point["low"] == pytest.approx(point["difference"])
            assert point["seeds"] == 2
            assert point["at_equal_tokens"] == {"difference": 0, "low": 0, "high": 0}


def test_a_recipe_is_compared_with_its_own_baseline(corpus_file: Path, tmp_path: Path) -> None:
    slow = {"training.inherited_learning_rate": 1e-4}
    recipes = [
        {"name": "slow", "set": slow},
        {"name": "slow Φ", "set": {**slow, **RECIPES[1]["set"]}, "reference": "slow"},
    ]
    with pytest.MonkeyPatch.context() as patch:
        pretend(patch, tmp_path / "log")
        record = run_study(study_config(corpus_file, recipes=[*RECIPES, *recipes]), tmp_path / "run")
    (recipe,) = record["headline"]["phi_effect"]["recipes"]  # the study names no reference for the other
    assert (recipe["recipe"], recipe["reference"]) == ("slow Φ", "slow")
    assert [rung["rung"] for rung in recipe["rungs"]] == ["l2w16"]


def test_what_the_study_spent_counts_shared_steps_once(record: dict[str, Any]) -> None:
    total = 0.0
    recipes = [entry for recipe in record["recipes"] for entry in recipe["points"]]
    sweep = [{"rung": row["rung"], "points": [row["point"]]} for row in record["learning_rates"]]
    for entry in [*record["cold"], *recipes, *sweep]:
        size = next(row for row in record["rungs"] if row["name"] == entry["rung"])
        per_step = size["cold_flops"] / size["cold_steps"]
        longest = max(point["steps"] for point in entry["points"])
        total += longest * per_step
        for point in entry["points"]:
            if point["steps"] != longest:
                total += math.ceil(0.5 * point["steps"]) * per_step  # its decay
    assert record["costs"]["training_flops"] == pytest.approx(total)
    # Φ's estimates: two steps, two seeds.
    assert record["costs"]["estimates_flops"] == 4 * ESTIMATE_FLOPS
    swept = sum(row["point"]["flops"] for row in record["learning_rates"])
    assert record["costs"]["learning_rates_flops"] == pytest.approx(swept)


def test_the_advantage_is_taken_at_every_budget_of_the_baseline(record: dict[str, Any]) -> None:
    rows = record["recipes"][0]["rungs"][0]["advantage"]
    assert [row["cold_fraction"] for row in rows] == [0.5, 1.0]
    assert rows[0]["saving"] == pytest.approx(1 - HEAD_START, abs=0.01)
    assert record["cold"][1]["points"][1]["bits_per_byte"] == LEVEL
