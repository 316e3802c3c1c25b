"""A study's record is read as it was written, under old names too, and a damaged one is refused in one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from hf_progressive import cli
from hf_progressive.config.renamed import RENAMED
from hf_progressive.records.study import FailedRun, StudyRecord, read_study

STUDIES = Path(__file__).parents[2] / "examples" / "studies"
LATER = {"last_model_cost": None, "trunk": [], "by_share": [], "recipe": None, "members": [], "seed": None}
"""Keys that came later, and their defaults."""
OLD_NAMES = {new: old for old, new in RENAMED.items()}


def with_old_names(value: Any) -> Any:
    if isinstance(value, dict):
        return {OLD_NAMES.get(key, key): with_old_names(item) for key, item in value.items()}
    return [with_old_names(item) for item in value] if isinstance(value, list) else value


def committed(name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((STUDIES / name / "study.json").read_text())
    return record


def without_later_keys(value: Any) -> Any:
    """What was read, without the keys that came after it was written, which then have their defaults."""
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if key not in LATER or item != LATER[key]}
        return {key: without_later_keys(item) for key, item in kept.items()}
    return [without_later_keys(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", ["books", "books_llama", "books_screen"])
def test_committed_studies_are_read_as_they_were_written(name: str, tmp_path: Path) -> None:
    assert without_later_keys(read_study(STUDIES / name).to_dict()) == without_later_keys(committed(name))
    (tmp_path / "study.json").write_text(json.dumps(with_old_names(committed(name))))
    assert without_later_keys(read_study(tmp_path).to_dict()) == without_later_keys(committed(name))


def test_of_an_older_study_the_last_model_cost_is_worked_out_of_its_parts() -> None:
    record = committed("books")
    record["headline"].pop("last_model_cost", None)
    for step in [*record["headline"]["rungs"], *(step for recipe in record["recipes"] for step in recipe["rungs"])]:
        step.pop("last_model_cost", None)
    study = StudyRecord.from_dict(record)
    assert study.headline.last_model_cost is None
    cost, family = study.last_model_cost, study.headline.family
    # In a chain the last model's lineage is the rest of the family: the sum is the same.
    assert cost is not None
    assert cost.value == pytest.approx(family.over_last_alone)
    assert (cost.low, cost.high) == pytest.approx((family.over_last_alone_low, family.over_last_alone_high))
    assert (cost.seeds, cost.at_most, cost.extrapolated, cost.by_seed) == (3, False, 0, ())
    steps = {step.child: step for step in study.headline_recipe.rungs}
    assert steps["l7w72"].eta_ceiling == pytest.approx(11853636304896 / 9006231846912)
    unmatched = next(recipe for recipe in study.recipes if recipe.name == "EWC 1").rungs[0]
    assert (unmatched.known_cost, unmatched.matched) == (None, 0)


def test_failed_and_finished_models_are_told_apart() -> None:
    record = committed("books")
    failed = {"fraction": 1.0, "task": "one", "failed": "the loss is not finite"}
    record["cold"][0]["points"].append(failed)
    runs = StudyRecord.from_dict(record).cold[0]
    assert runs.points[-1] == FailedRun(**failed)
    assert runs.finished == list(runs.points[:-1])
    assert runs.to_dict()["points"][-1] == failed


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("complete", "yes", "complete: expected true or false, got 'yes'"),
        ("headline.family.inherited", "much", "headline.family.inherited: expected a number, got 'much'"),
        ("headline.rungs.0.eta_low", float("nan"), "headline.rungs.0.eta_low: nan is not a finite number"),
        ("headline.rungs.1.seeds", -1, "headline.rungs.1.seeds: expected 0 or more, got -1"),
        ("headline.recipe", "another", "headline.recipe: 'another' is not among the recipes exact, "),
        ("recipes.2.points.1.points.0.flops", None, "recipes.2.points.1.points.0.flops: expected a number, got None"),
        (
            "recipes.0.rungs.0.by_seed.0.reached",
            "maybe",
            "reached: 'maybe' is not one of between, at_most, no",
        ),
        ("learning_rates.0.point.bits_per_byte", True, "learning_rates.0.point.bits_per_byte: expected a number"),
        ("rungs", [], "rungs: there are none"),
        ("config.ladder.training.batch_tokens", "512", "config.ladder.training.batch_tokens: expected a whole number"),
        ("environment.cpus", float("inf"), "environment.cpus: inf is not a finite number"),
        ("cold", [], "headline.rungs: l6w64 has no baseline of the whole budget"),
        ("recipes.0.rungs", [], "headline.rungs: l6w64 has no step in the recipe"),
        ("headline.family.over_last_alone", None, "headline.family.over_last_alone: is null, although inherited is"),
        ("format", 2, "format: 2 is not 1, which this version reads; update hf_progressive"),
    ],
)
def test_a_damaged_record_is_refused_in_one_line(
    path: str, value: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = committed("books")
    place: Any = record
    *parents, last = path.split(".")
    for key in parents:
        place = place[int(key) if key.isdigit() else key]
    place[int(last) if last.isdigit() else last] = value
    (tmp_path / "study.json").write_text(json.dumps(record))
    assert cli.main(["report", str(tmp_path)]) == cli.EXIT_BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "study.json") in line
    assert message in line


def test_a_missing_value_is_named_with_its_path(tmp_path: Path) -> None:
    record = committed("books_llama")
    del record["recipes"][0]["points"][0]["points"][1]["loss"]
    (tmp_path / "study.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"study\.json: recipes\.0\.points\.0\.points\.1\.loss is missing"):
        read_study(tmp_path)
