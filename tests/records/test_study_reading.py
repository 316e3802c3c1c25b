"""A study's record is read as it was written, under old names too, and a damaged one is refused in one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from hf_progressive import cli
from hf_progressive.config.renamed import RENAMED
from hf_progressive.records.study import FailedRun, StudyRecord, read_study

STUDIES = Path(__file__).parents[2] / "examples" / "studies"
OLD_NAMES = {new: old for old, new in RENAMED.items()}


def with_old_names(value: Any) -> Any:
    if isinstance(value, dict):
        return {OLD_NAMES.get(key, key): with_old_names(item) for key, item in value.items()}
    return [with_old_names(item) for item in value] if isinstance(value, list) else value


def committed(name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((STUDIES / name / "study.json").read_text())
    return record


@pytest.mark.parametrize("name", ["books", "books_llama", "books_screen"])
def test_committed_studies_are_read_as_they_were_written(name: str, tmp_path: Path) -> None:
    assert read_study(STUDIES / name).to_dict() == committed(name)
    (tmp_path / "study.json").write_text(json.dumps(with_old_names(committed(name))))
    assert read_study(tmp_path).to_dict() == committed(name)


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
