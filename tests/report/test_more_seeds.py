"""A study whose headline got more seeds than its other recipes: what was there stays, and all comparisons are fair."""

from functools import cache
from pathlib import Path
from statistics import fmean

import pytest
from more_seeds import FEW, MORE, MoreSeeds
from test_trunk_claims import page_faults

from hf_progressive.planning.observations import observed
from hf_progressive.planning.search import measured_trunks
from hf_progressive.records.study import StudyRecord
from hf_progressive.report.figures.study import draw_matches, draw_recipes
from hf_progressive.report.study_findings import find_in_study
from hf_progressive.report.study_page import study_report
from hf_progressive.report.trunk_tables import against_table

STUDY = cache(MoreSeeds)


@cache
def extended() -> StudyRecord:
    return STUDY().record()


def test_more_seeds_leave_what_was_trained_where_it_is() -> None:
    names = {task.name for task in STUDY().plan.tasks}
    assert STUDY().known.keys() <= names


def test_every_figure_of_recipes_of_different_seeds_is_what_their_models_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_progressive.report.figures.style.write_png", lambda figure, path: None)
    monkeypatch.setattr("hf_progressive.report.figures.style.svg", lambda figure, name: "")
    record = extended()
    assert [step.seeds for recipe in record.recipes for step in recipe.rungs] == [6, 3, 3]
    assert page_faults(record.to_dict(), tmp_path) == []
    text = (tmp_path / "study.md").read_text()
    assert "| exact | l8w64 | 3 |" in text
    assert "| seeds of exact | 0, 1, 2 |" in text
    assert "compare two recipes on the seeds that both have" in text


def test_recipes_are_compared_on_the_seeds_that_both_have() -> None:
    record = extended()
    costs = {r.name: {s.seed: s for s in r.rungs[0].last_model_cost.by_seed} for r in record.recipes}
    headline = costs.pop(record.headline.recipe)
    table = against_table(record)
    for row, (name, own) in zip(table.rows, costs.items(), strict=True):
        assert row[:3] == (name, "l8w64", "0, 1, 2")
        found = [cell.removesuffix("*") for cell in row[3:5]]
        assert found == [f"{fmean(c[seed].value for seed in FEW):.2f}" for c in (own, headline)]
        apart = fmean(own[seed].bits_per_byte - headline[seed].bits_per_byte for seed in FEW)
        assert row[6] == f"{apart:+.4f}".replace("-", "−")


def test_the_headline_s_cost_on_shared_seeds_stands_beside_that_on_its_own() -> None:
    by_seed = {seed.seed: seed.value for seed in extended().last_model_cost.by_seed}
    assert list(by_seed) == MORE
    said = find_in_study(extended()).certainty
    shared, others = fmean(by_seed[seed] for seed in FEW), fmean(by_seed[seed] for seed in MORE[3:])
    assert (
        f"Not all recipes have the same seeds. The last model costs {shared:.2f} on seeds 0, 1 and 2, which all "
        f"recipes have, and {others:.2f} on seeds 3, 4 and 5, which others lack."
    ) in said
    assert "Of three recipes “stacked” costs least; if it is the headline for that, chance flatters it." in said
    assert "No rate was tried for “exact”, which takes that of recipe “stacked” and may have a better one." in said
    assert any(sentence.startswith("Intervals are 95 % by Student's t over six seeds;") for sentence in said)


def test_a_plan_takes_a_step_of_more_seeds_for_one_step() -> None:
    found = observed([extended()])
    assert sorted(item.seed for item in found) == MORE
    assert len({(item.parameters, item.growth, item.tokens_per_parameter) for item in found}) == 1


def test_a_search_compares_trunks_on_the_seeds_that_all_have() -> None:
    for trunk, recipe in zip(measured_trunks([extended()]), extended().recipes, strict=True):
        (step,) = recipe.rungs
        worth = fmean(seed.c_scratch for seed in step.last_model_cost.by_seed if seed.seed in FEW)
        assert trunk.worth == worth / step.c_cold


def test_figures_of_different_seeds_say_so_and_pair_them() -> None:
    (axes,) = draw_recipes(extended()).axes
    assert sorted(label.get_text() for label in axes.get_yticklabels()) == [
        *("exact, 3 seeds", "stacked and widened, 3 seeds", "stacked, 6 seeds")
    ]


def test_a_seed_counts_only_if_all_that_its_model_came_from_is_known() -> None:
    plan = STUDY().plan
    stage = plan.children[STUDY().headline, "l8w64", 5][-1].initial.lineage[0].name
    cost = MoreSeeds(missing=(stage,)).record().last_model_cost
    assert [seed.seed for seed in cost.by_seed] == MORE[:5]
    assert [seed.value for seed in cost.by_seed] == [seed.value for seed in extended().last_model_cost.by_seed[:5]]


def test_the_figure_of_an_unfinished_study_pairs_its_seeds() -> None:
    plan = STUDY().plan
    last = plan.children[STUDY().headline, "l8w64", 5][-1].name
    record = MoreSeeds(missing=(last,)).record()
    (axes,) = draw_matches(record).axes
    baselines = [runs for runs in record.cold if runs.seed != 5]
    level = fmean(run.bits_per_byte for runs in baselines for run in runs.finished if run.fraction == 1)
    assert [line for line in axes.lines if list(line.get_ydata()) == [level, level]]
    assert not record.complete
    assert study_report(record).findings.unfinished.startswith(f"{record.runs - 1} of {record.runs} runs")
