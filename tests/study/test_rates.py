"""Rates that are tried on both sides, and the best of each that the study goes on with."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import study_pretence
from ladder_fixtures import RUNGS
from study_fixtures import study_config, study_mapping
from study_pretence import pretend, run_in_two_processes
from trunk_studies import THIN, trunk_study

from hf_progressive import storage
from hf_progressive.data import prepare_corpus
from hf_progressive.records.study import read_study
from hf_progressive.report.study_findings import find_in_study
from hf_progressive.study.models import FinishedModel
from hf_progressive.study.plan import plan_study
from hf_progressive.study.run import run_study

RATES = [1e-3, 2e-3, 4e-3]
BEST = {"cold": 2e-3, "child": 4e-3}
RECIPES: list[dict[str, Any]] = [
    {"name": "tried", "trunk": [{**THIN, "until": 0.4}]},
    {"name": "untried", "trunk": [{**THIN, "until": 0.3}]},
]


@pytest.fixture
def rates_matter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Tasks that pretend, of which baselines do best at one rate and trunks at another; returns their log."""
    plain = study_pretence.bits_per_byte

    def by_rate(model: FinishedModel) -> float:
        best = BEST["cold" if model.setup.trunk is None else "child"]
        return plain(model) + abs(math.log(model.setup.learning_rate / best))

    monkeypatch.setattr(study_pretence, "bits_per_byte", by_rate)
    pretend(monkeypatch, tmp_path / "log")
    return tmp_path / "log"


def test_muon_s_rate_moves_in_proportion_on_both_sides(rates_matter: Path, corpus_file: Path, tmp_path: Path) -> None:
    config = trunk_study(
        corpus_file, recipes=RECIPES, seeds=[0], learning_rates={"rates": RATES, "recipes": ["tried"]}
    )
    rates = {"learning_rate": 2e-3, "muon_learning_rate": 6e-3}
    training = dataclasses.replace(config.ladder.training, optimizer="muon", **rates)
    config = dataclasses.replace(config, ladder=dataclasses.replace(config.ladder, training=training))
    record = run_study(config, tmp_path / "study")
    assert record["config"]["ladder"]["training"]["muon_learning_rate"] == pytest.approx(3 * BEST["cold"])
    for recipe in record["recipes"]:
        assert recipe["overrides"]["training.muon_learning_rate"] == pytest.approx(3 * BEST["child"])
    done = [line.split()[0] for line in rates_matter.read_text().splitlines()]
    trained = [name for name in done if "-fresh-" not in name and "-grown-" not in name]
    assert len(trained) == len(set(trained)) == record["runs"]


def test_each_side_takes_its_best_rate_on_all_seeds(rates_matter: Path, corpus_file: Path, tmp_path: Path) -> None:
    sweep = {"rates": RATES, "recipes": ["tried"]}
    config = trunk_study(corpus_file, recipes=RECIPES, seeds=[0, 1], learning_rates=sweep)
    record = run_study(config, tmp_path / "study")
    assert record["complete"]
    assert record["config"]["ladder"]["training"]["learning_rate"] == BEST["cold"]
    for recipe in record["recipes"]:
        assert recipe["overrides"] == {"training.learning_rate": BEST["child"]}
        assert {point["learning_rate"] for runs in recipe["points"] for point in runs["points"]} == {BEST["child"]}
        assert {stage["learning_rate"] for stage in recipe["trunk"]} == {BEST["child"]}
    assert {point["learning_rate"] for runs in record["cold"] for point in runs["points"]} == {BEST["cold"]}
    rows = [
        (row["kind"], row["recipe"], row["learning_rate"], row["point"]["fraction"])
        for row in record["learning_rates"]
    ]
    assert rows == [("cold", None, rate, 1.0) for rate in RATES] + [("child", "tried", rate, 1.0) for rate in RATES]
    # What was tried is what the study goes on with: nothing is trained twice.
    done = [line.split()[0] for line in rates_matter.read_text().splitlines()]
    trained = [name for name in done if "-fresh-" not in name and "-grown-" not in name]
    assert len(trained) == len(set(trained)) == record["runs"]


def test_rates_are_chosen_by_their_mean_over_the_seeds_told(
    monkeypatch: pytest.MonkeyPatch, corpus_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Bits per byte by seed and rate: the first seed alone would choose 1e-3, and a mean that leaves failures out 4e-3.
    made_up = {0: {1e-3: 1.0, 2e-3: 1.1, 4e-3: 0.5}, 2: {1e-3: 2.0, 2e-3: 1.6, 4e-3: 0.0}}
    monkeypatch.setattr(
        study_pretence,
        "bits_per_byte",
        lambda model: made_up.get(model.initial.seed, {}).get(model.setup.learning_rate, 1.0),
    )

    def diverge(name: str) -> None:
        if name in at_highest:
            raise FloatingPointError("step 3: the loss is nan")

    sweep = {"rates": RATES, "recipes": ["tried"], "seeds": [0, 2]}
    config = trunk_study(corpus_file, recipes=RECIPES, seeds=[0, 1, 2], learning_rates=sweep)
    data = prepare_corpus(config.ladder.data, config.ladder.model.context, tmp_path / "d")
    tried = plan_study(config, data.fingerprint).tried
    at_highest = {rate.deciding.name for rate in tried if rate.seed == 2 and rate.learning_rate == 4e-3}
    assert len(at_highest) == 2
    pretend(monkeypatch, tmp_path / "log", diverge)
    with caplog.at_level("INFO", "hf_progressive.study.rates"):
        record = run_study(config, tmp_path / "study")
    assert [message for message in caplog.messages if message.startswith("the baseline")] == [
        "the baseline: of the rates 0.001, 0.002 the best is 0.002 in the mean over 2 seeds; training failed at 0.004"
    ]
    assert record["config"]["ladder"]["training"]["learning_rate"] == 2e-3
    assert {recipe["overrides"]["training.learning_rate"] for recipe in record["recipes"]} == {2e-3}
    rows = [(row["seed"], row["kind"], row["learning_rate"]) for row in record["learning_rates"]]
    assert rows == [(seed, kind, rate) for seed in (0, 2) for kind in ("cold", "child") for rate in RATES]
    # What was tried on either seed is what the study goes on with: nothing is trained twice.
    done = [line.split()[0] for line in (tmp_path / "log").read_text().splitlines()]
    trained = [name for name in done if "-fresh-" not in name and "-grown-" not in name]
    assert len(trained) == len(set(trained)) == record["runs"] - len(at_highest)


@pytest.mark.parametrize(
    ("sweep", "said"),
    [
        ({"rates": RATES, "seeds": [0, 7]}, "seeds: 7 is none of the study's seeds"),
        ({"rates": RATES, "seeds": [0, 0]}, "seeds: 0 is given twice; list each once"),
        ({"rates": RATES, "seeds": []}, "seeds: the list is empty; leave it out to try the first"),
        ({"cold": RATES, "seeds": [0]}, "seeds: no rates are tried on them"),
    ],
)
def test_seeds_of_rates_that_mean_nothing_are_refused(corpus_file: Path, sweep: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"learning_rates.{said}"):
        trunk_study(corpus_file, learning_rates=sweep)


def test_a_study_set_to_its_best_rates_has_the_models_that_were_tried(corpus_file: Path) -> None:
    tried = plan_study(trunk_study(corpus_file, learning_rates={"rates": RATES}), "corpus").tried
    for rate in RATES:
        recipe = {"name": "one step", "trunk": [{**THIN, "until": 0.4}], "set": {"training.learning_rate": rate}}
        plain = plan_study(trunk_study(corpus_file, recipes=[recipe]), "corpus")
        models = next(entry.models for entry in tried if entry.recipe and entry.learning_rate == rate)
        assert [m.name for m in models] == [m.name for m in plain.children["one step", "l2w16", 0]]


def test_two_processes_share_the_rates_and_what_follows(corpus_file: Path, tmp_path: Path) -> None:
    sweep = {"rates": RATES[:2], "recipes": ["tried"]}
    config = trunk_study(corpus_file, recipes=RECIPES, seeds=[0, 1], learning_rates=sweep)
    root, log = tmp_path / "study", tmp_path / "log"
    run_in_two_processes(config, root, log)
    lines = [line.split() for line in log.read_text().splitlines()]
    trained = [name for name, _ in lines if "-fresh-" not in name and "-grown-" not in name]
    record = storage.read_json(root / "study.json")
    assert record["complete"]
    assert len(trained) == len(set(trained)) == record["runs"]
    assert len({process for _, process in lines}) == 2
    assert not any((root / "weights").iterdir())


def test_a_side_that_fails_at_every_rate_ends_the_study_in_one_line(
    corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(name: str) -> None:
        if "-child-" in name:
            raise FloatingPointError("step 3: the loss is nan")

    pretend(monkeypatch, tmp_path / "log", diverge)
    config = trunk_study(corpus_file, learning_rates={"rates": RATES})
    with pytest.raises(ValueError, match="training failed at every rate of recipe 'one step'; try lower ones"):
        run_study(config, tmp_path / "study")


def test_rates_of_both_sides_are_for_trunks(corpus_file: Path) -> None:
    with pytest.raises(ValueError, match=r"learning_rates.rates: for studies whose recipes are all trunks"):
        study_config(corpus_file, learning_rates={"rates": RATES})
    with pytest.raises(ValueError, match=r"learning_rates.recipes: there is no recipe 'x'; known: one step"):
        trunk_study(corpus_file, learning_rates={"rates": RATES, "recipes": ["x"]})


def test_smaller_stages_have_a_rate_by_their_width(corpus_file: Path) -> None:
    ladder = {**study_mapping(corpus_file)["ladder"], "rungs": RUNGS[2:]}  # of width 24
    ladder["training"] = {**ladder["training"], "learning_rate_by_width": -0.5, "decay_fraction": 0.4}
    stage = {
        "name": "third",
        "n_layer": 2,
        "n_embd": 8,
        "n_head": 1,
        "until": 0.4,
        "training": {"learning_rate": 1e-3},
    }
    plan = plan_study(trunk_study(corpus_file, ladder=ladder, recipes=[{"name": "a", "trunk": [stage]}]), "corpus")
    end = plan.children["a", "l2w24", 0][0]
    parent = end.initial.parent
    assert parent is not None
    assert parent.setup.learning_rate == pytest.approx(1e-3 * 3**0.5)
    assert end.setup.learning_rate == plan.cold["l2w24", 0][0].setup.learning_rate == 3e-3


def test_rates_that_would_change_nothing_are_refused(corpus_file: Path) -> None:
    own = {"name": "own", "trunk": [{**THIN, "until": 0.4}], "set": {"training.inherited_learning_rate": 1e-3}}
    with pytest.raises(ValueError, match="recipe 'own' has a rate of its own, which none of these would change"):
        trunk_study(corpus_file, recipes=[own], learning_rates={"rates": RATES})
    trunk_study(corpus_file, recipes=[own])


def test_no_stage_is_trained_again_for_its_members(rates_matter: Path, corpus_file: Path, tmp_path: Path) -> None:
    shared = {"trunk": RECIPES[0]["trunk"], "members": True, "set": {"trunk.average_over": 0.5}}
    recipes = [{"name": "tried", **shared}, {"name": "sharing", **shared}]
    sweep = {"rates": RATES, "recipes": ["tried"]}
    config = trunk_study(corpus_file, recipes=recipes, seeds=[0, 1], learning_rates=sweep)
    record = run_study(config, tmp_path / "study")
    plan = plan_study(config, "corpus")
    # Of a setup, one run begins at its initial model; all others branch off that.
    results = [storage.read_json(path) for path in (tmp_path / "study" / "results").glob("thin-*.json")]
    anew = [result["name"] for result in results if result.get("branched_at") == 0]
    assert len(anew) == len(RATES) + 1  # the first seed's at every rate, the second's at the best
    assert record["complete"]
    assert {m.name for rate in plan.tried for m in rate.models} < {task.name for task in plan.rate_tasks}


def test_an_average_of_too_few_steps_is_refused(corpus_file: Path) -> None:
    config = trunk_study(corpus_file, recipes=[{**RECIPES[0], "members": True}])
    with pytest.raises(ValueError, match=r"recipe 'tried': trunk\.average_of: 5 weights, but the last 0\.1 of the"):
        plan_study(config, "corpus")


def test_shorter_lengths_are_trained_at_the_best_rate_alone(
    rates_matter: Path, corpus_file: Path, tmp_path: Path
) -> None:
    config = trunk_study(corpus_file, recipes=RECIPES[:1], seeds=[0], learning_rates={"rates": RATES})
    costs = run_study(config, tmp_path / "study")["costs"]
    results = [storage.read_json(path) for path in (tmp_path / "study" / "results").glob("*-f*.json")]
    baselines = [result for result in results if "-cold-" in result["name"]]
    budget = max(result["tokens"] for result in baselines)
    assert sorted(result["learning_rate"] for result in baselines if result["tokens"] == budget) == RATES
    # They branch off the run that was tried, whose checkpoints were kept until the best was known.
    shorter = [result for result in baselines if result["tokens"] < budget]
    assert len(shorter) == len(config.cold_fractions) - 1
    assert all(result["learning_rate"] == BEST["cold"] and result["branched_at"] > 0 for result in shorter)
    # Of a single seed all but what came last, these and the recipe's shorter one, is trained to choose the rates.
    last = [line.split()[0] for line in rates_matter.read_text().splitlines()][-len(shorter) - 1 :]
    spent = sum(result["flops"]["spent"] for result in results if result["name"] in last)
    assert costs["learning_rates_flops"] == costs["training_flops"] - spent > 0
    assert not any((tmp_path / "study" / "weights").iterdir())


def test_a_failed_rate_is_an_end_of_those_tried(
    rates_matter: Path, corpus_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def diverge(name: str) -> None:
        if "-child-" in name and name in at_highest:
            raise FloatingPointError("step 3: the loss is nan")

    config = trunk_study(corpus_file, learning_rates={"rates": [*RATES, 8e-3]})
    plan = plan_study(
        config, prepare_corpus(config.ladder.data, config.ladder.model.context, tmp_path / "d").fingerprint
    )
    at_highest = {m.name for rate in plan.tried if rate.recipe and rate.learning_rate == 8e-3 for m in rate.models}
    with pytest.MonkeyPatch.context() as patch, caplog.at_level("INFO", "hf_progressive.study.rates"):
        pretend(patch, tmp_path / "log", diverge)
        run_study(config, tmp_path / "study")
    (line,) = [message for message in caplog.messages if message.startswith("recipe 'one step'")]
    assert line == "recipe 'one step': of the rates 0.001, 0.002, 0.004 the best is 0.004; training failed at 0.008"
    said = find_in_study(read_study(tmp_path / "study")).certainty
    assert not [sentence for sentence in said if "at an end" in sentence]


def test_nothing_is_claimed_while_rates_are_being_tried(rates_matter: Path, corpus_file: Path, tmp_path: Path) -> None:
    config = trunk_study(corpus_file, seeds=[0, 1], learning_rates={"rates": RATES})
    written: list[dict[str, Any]] = []
    run_study(config, tmp_path / "study", on_record=written.append)
    rates = [record["config"]["ladder"]["training"]["learning_rate"] for record in written]
    chosen = rates.index(BEST["cold"])
    assert rates == [3e-3] * chosen + [BEST["cold"]] * (len(rates) - chosen)
    assert not any(record["headline"]["rungs"] for record in written[:chosen])
    assert written[-1]["headline"]["rungs"]
    # A study that goes on does not take back what its record said.
    again: list[dict[str, Any]] = []
    run_study(config, tmp_path / "study", on_record=again.append)
    assert all(record["headline"]["rungs"] for record in again)
