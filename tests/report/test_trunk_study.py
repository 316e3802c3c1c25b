"""The page of a study of trunks: costs at equal bits per byte, worked out from its single models."""

import json
import re
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from ladder_fixtures import write_corpus
from study_pretence import pretend
from trunk_studies import THIN, trunk_study

from hf_progressive.records.study import StudyRecord, read_study
from hf_progressive.report import write_report
from hf_progressive.report.figures.study import draw_matches, draw_recipes
from hf_progressive.report.study_findings import find_in_study
from hf_progressive.report.study_tables import recipes_table, steps_table
from hf_progressive.report.trunk_tables import members_table
from hf_progressive.study.run import run_study

RECIPES: list[dict[str, Any]] = [
    {"name": "one step", "trunk": [{**THIN, "until": 0.4}]},
    {"name": "late", "trunk": [{**THIN, "until": 0.6}], "child_fractions": [1.0]},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of pretended trunks and baselines."""
    folder = tmp_path_factory.mktemp("trunks")
    config = trunk_study(write_corpus(folder), recipes=RECIPES, seeds=[0, 1], headline="one step")
    with pytest.MonkeyPatch.context() as patch:
        pretend(patch, folder / "log")
        run_study(config, folder / "run")
    return folder / "run"


@pytest.fixture
def study(folder: Path) -> StudyRecord:
    return read_study(folder)


def cost_by_hand(study: StudyRecord, place: int) -> tuple[float, float, float]:
    """Everything that went into the longest trunk of the first seed, what it is worth, and its bits per byte."""
    recipe = study.recipes[place]
    end = max(recipe.points[0].finished, key=lambda run: run.flops)
    (stage,), model = recipe.trunk, study.rungs[0]
    # Of a trunk's tokens the stage has its share, in whole steps.
    steps = model.cold_steps - end.steps if end.steps < model.cold_steps else round(stage.until * model.cold_steps)
    before = steps * model.cold_tokens / model.cold_steps * stage.flops_per_token
    baselines = sorted((run.flops, run.bits_per_byte) for run in study.cold[0].finished)
    for (x0, y0), (x1, y1) in zip(baselines, baselines[1:], strict=False):
        if y1 <= end.bits_per_byte <= y0:
            worth = x0 * (x1 / x0) ** ((y0 - end.bits_per_byte) / (y0 - y1))
            return before + end.flops, worth, end.bits_per_byte
    raise AssertionError("it lies outside of its baselines")


def test_the_first_screen_is_what_the_models_say(study: StudyRecord, folder: Path) -> None:
    spent, worth, _ = cost_by_hand(study, 0)
    cost = f"{spent / worth:.2f}"
    found = find_in_study(study)
    answer = re.fullmatch(
        rf"The last model for {cost} times its price from scratch \((.+), two seeds\), by a trunk through one smaller",
        found.headline,
    )
    assert answer is not None
    assert answer[1] == found.tiles[0].note
    assert [(tile.title, tile.value) for tile in found.tiles][:1] == [("last-model cost", f"{cost} ×")]
    assert found.tiles[1].title == "η, l2w16"
    assert "(thin until 40 % of the tokens)" in found.explanation
    child = max(study.recipes[0].points[0].finished, key=lambda run: run.flops).flops
    eta, ceiling = (worth - child) / (spent - child), worth / (spent - child)
    assert found.tiles[1].value == f"{eta:.2f}"
    assert found.tiles[1].note.endswith(f"at most {ceiling:.2f}")
    (row,) = steps_table(study).rows
    assert (row[1], row[3], row[5]) == (cost, f"{eta:.2f}", f"{ceiling:.2f}")
    assert [row[5] for row in recipes_table(study).rows] == [
        f"{spent / worth:.2f}" for spent, worth, _ in (cost_by_hand(study, place) for place in range(2))
    ]
    assert found.headline in write_report(folder).markdown.read_text()


def test_a_study_that_has_just_begun_has_a_page(study: StudyRecord, tmp_path: Path) -> None:
    begun = study.to_dict() | {"complete": False, "finished": 1, "cold": []}
    begun["headline"] |= {"rungs": [], "last_model_cost": None}
    for recipe in begun["recipes"]:
        recipe |= {"rungs": [], "points": []}
    (tmp_path / "study.json").write_text(json.dumps(begun))
    text = write_report(tmp_path).markdown.read_text()
    assert "No step is finished with all of its budgets yet" in text
    sized = "l2w16 (11.9 k parameters, 0.494 tokens for each of the 11.4 k that scaling counts)"
    assert f"Recipe “one step” on {sized}: one run at a constant rate" in text


def test_the_figure_shows_what_a_trunk_is_worth_on_its_baselines_curve(study: StudyRecord) -> None:
    spent, worth, bits = cost_by_hand(study, 0)
    (axes,) = draw_matches(study).axes
    points = [(line.get_marker(), *line.get_data()) for line in axes.lines]
    rings = [(x[0], y[0]) for marker, x, y in points if marker == "o" and len(x) == 1]
    unit = next(size for size in (1e3, 1e6, 1e9) if worth / size < 1e3)
    assert [ring for ring in rings if ring == pytest.approx((worth / unit, bits))]
    grown = [(x, y) for marker, xs, ys in points for x, y in zip(xs, ys, strict=True) if marker == "o"]
    assert [point for point in grown if point == pytest.approx((spent / unit, bits))]


def test_recipes_are_ordered_by_what_they_cost(study: StudyRecord) -> None:
    (axes,) = draw_recipes(study).axes
    costs = {recipe.name: recipe.rungs[0].last_model_cost.value for recipe in study.recipes}
    assert [label.get_text() for label in axes.get_yticklabels()] == sorted(costs, key=costs.__getitem__)
    assert axes.get_xlabel().startswith("last-model cost")
    shown = [float(line.get_xdata()[0]) for line in axes.lines if line.get_marker() == "o"]
    assert shown == pytest.approx(sorted(costs.values()))


def test_what_is_extrapolated_is_marked(study: StudyRecord, tmp_path: Path) -> None:
    record = study.to_dict()
    for recipe in record["recipes"]:
        for rung in recipe["rungs"]:
            rung["last_model_cost"]["extrapolated"] = 1
    beyond = StudyRecord.from_dict(record)
    assert [row[5][-1] for row in recipes_table(beyond).rows] == ["*", "*"]
    assert not any("*" in cell for row in recipes_table(study).rows for cell in row)
    member = {"stage": "thin", "until": 0.4, "seed": 0, "kind": "decay", "bits_per_byte": 2.0, "flops": 1.0}
    member |= {"constant_bits_per_byte": 2.1, "baseline_bits_per_byte": 2.2, "worth": 1.5, "extrapolated": True}
    record["recipes"][0]["members"] = [member, {**member, "kind": "average", "extrapolated": False}]
    assert {row[3]: row[7] for row in members_table(StudyRecord.from_dict(record)).rows} == {
        "decay": "150 %*",
        "average": "150 %",
    }


def test_a_trunk_s_smaller_ends_are_not_called_parents(study: StudyRecord) -> None:
    record = study.to_dict()
    record["headline"]["rungs"] *= 2
    said = find_in_study(StudyRecord.from_dict(record)).certainty
    assert not [sentence for sentence in said if "model between" in sentence or "to be parents" in sentence]


def test_how_rates_were_chosen_is_said_and_which_is_at_an_end(study: StudyRecord) -> None:
    record, point = study.to_dict(), study.cold[0].finished[-1].to_dict()
    record["config"]["learning_rates"] = {"rates": [0.001, 0.002, 0.004]}
    tried = [(None, 3.0, 2.0, 2.5), ("one step", 3.0, 2.0, 1.5), ("late", 1.0, 2.0, 3.0)]
    record["learning_rates"] = [
        {
            "kind": "child" if recipe else "cold",
            "recipe": recipe,
            "rung": "l2w16",
            "learning_rate": rate,
            "point": {**point, "bits_per_byte": bits},
        }
        for recipe, *found in tried
        for rate, bits in zip((0.001, 0.002, 0.004), found, strict=True)
    ]
    said = find_in_study(StudyRecord.from_dict(record)).certainty
    (at_end,) = [sentence for sentence in said if "at an end" in sentence]
    assert at_end.endswith("better: recipe “one step” (0.004, the highest); recipe “late” (0.001, the lowest).")
    assert [sentence for sentence in said if "chosen on the first seed" in sentence]
    assert not [sentence for sentence in find_in_study(study).certainty if "chosen on the first seed" in sentence]


def test_recipes_are_compared_on_the_seeds_that_they_share_and_a_tie_is_none(study: StudyRecord) -> None:
    def said(*costs: dict[int, float], headline: str = "a") -> list[str]:
        record = study.to_dict()
        step = record["recipes"][0]["rungs"][0]
        entry = step["last_model_cost"]["by_seed"][0]
        record["recipes"] = [
            {
                **record["recipes"][0],
                "name": name,
                "rungs": [
                    {
                        **step,
                        "last_model_cost": {
                            **step["last_model_cost"],
                            "value": fmean(values.values()),
                            "by_seed": [{**entry, "seed": seed, "value": value} for seed, value in values.items()],
                        },
                    }
                ],
            }
            for name, values in zip("abc", costs, strict=False)
        ]
        record["headline"] |= {
            "recipe": headline,
            "last_model_cost": record["recipes"][0]["rungs"][0]["last_model_cost"],
        }
        return [text for text in find_in_study(StudyRecord.from_dict(record)).certainty if "costs least" in text]

    assert said({0: 0.7, 1: 0.8}, {0: 0.8, 1: 0.9})
    assert not said({1: 0.7}, {0: 0.9, 1: 0.6})  # dearer on the seed of both
    assert not said({0: 0.7}, {0: 0.7})
