"""Where a trunk would grow: costs worked out by hand, and silence outside of what was measured."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from hf_progressive import cli
from hf_progressive.config import RungConfig, load_ladder_config
from hf_progressive.planning.ladder_plan import plan_ladder
from hf_progressive.planning.search import Shape, search
from hf_progressive.records.study import StudyRecord
from hf_progressive.report import price_summary, price_table

LLAMA = Path(__file__).parents[2] / "examples" / "studies" / "books_llama" / "study.json"
WORTH = {"early": 0.95, "late": 0.75, "later": 0.6, "twice": 0.8}
"""The budget from scratch that each measured trunk is worth, as a share of the full one."""
UNTIL = {"early": [(4, 0.4)], "late": [(4, 0.6)], "later": [(4, 0.7)], "twice": [(2, 0.3), (4, 0.6)]}
"""Layers of eight until these shares."""


def size(layers: int) -> dict[str, Any]:
    return {"name": f"l{layers}", "num_hidden_layers": layers, "hidden_size": 64, "num_attention_heads": 8} | {
        "intermediate_size": 176
    }


def recipe(name: str, like: dict[str, Any]) -> dict[str, Any]:
    """A measured recipe whose trunk takes .7 of the full budget, with two seeds about its worth."""
    step = json.loads(json.dumps(like["rungs"][-1])) | {"child": "l8", "c_cold": 1e12}
    scratch = [1e12 * WORTH[name] * factor for factor in (0.9, 1.1)]
    seeds = [
        {"seed": seed, "value": 7e11 / flops, "c_lineage": 3e11, "c_child": 4e11, "c_scratch": flops}
        | {"bits_per_byte": 1.9}
        for seed, flops in enumerate(scratch)
    ]
    value = sum(seed["value"] for seed in seeds) / 2
    cost = {"value": value, "low": 0.8 * value, "high": 1.2 * value, "seeds": 2, "by_seed": seeds}
    stages = [
        {"name": f"l{layers}", "until": until, "parameters": 100 * layers, "flops_per_token": 6e2 * layers}
        for layers, until in UNTIL[name]
    ]
    return like | {"name": name, "rungs": [step | {"last_model_cost": cost}], "trunk": stages}


AS_CHAIN = ["schedule=chain", f"rungs={json.dumps([size(layers) for layers in (2, 4, 8)])}"]
"""What makes a chain of the trunk's rungs."""


@pytest.fixture
def study(tmp_path: Path) -> str:
    """A study of three trunks by depth into eight layers."""
    record = json.loads(LLAMA.read_text())
    like, end = record["recipes"][0], record["rungs"][-1] | {"name": "l8"}
    record |= {"name": "trunks", "rungs": [end], "recipes": [recipe(name, like) for name in WORTH]}
    head = record["headline"]
    head |= {"recipe": "early", "rungs": [head["rungs"][-1] | {"child": "l8"}]}
    record["cold"] = [runs | {"rung": "l8"} for runs in record["cold"] if runs["rung"] == "l6w72"]
    growing = {"moments": "fresh", "rewarm": "all", "rewarm_fraction": 0.01}
    record["config"]["ladder"] |= {"rungs": [size(8)], "growth": {"method": "exact", "options": {}}, "trunk": growing}
    record["config"]["recipes"] = [
        {"name": name, "trunk": [size(layers) | {"until": until} for layers, until in stages]}
        for name, stages in UNTIL.items()
    ]
    path = tmp_path / "study.json"
    path.write_text(json.dumps(record))
    return str(path)


@pytest.fixture
def ladder(tmp_path: Path) -> str:
    config = {
        "name": "a trunk",
        "schedule": "trunk",
        "model": {"family": "llama", "context": 64, "fields": {"tie_word_embeddings": True}},
        "rungs": [size(2) | {"until": 0.2}, size(4) | {"until": 0.5}, size(8)],
        "data": {"source": "stdlib", "tokenizer": {"vocab_size": 512}},
        "training": {"batch_tokens": 512, "micro_batch_size": 8, "decay_fraction": 0.4, "tokens_per_parameter": 4},
    }
    path = tmp_path / "ladder.yaml"
    path.write_text(yaml.safe_dump(config))
    return str(path)


def searched(capsys: pytest.CaptureFixture[str], ladder: str, *words: str) -> dict[str, Any]:
    assert cli.main(["plan", ladder, "--search", *words, "--json"]) == 0
    record: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return record


def test_shares_within_what_was_measured_are_priced_by_hand(
    capsys: pytest.CaptureFixture[str], ladder: str, study: str
) -> None:
    record = searched(capsys, ladder, "--recipe-eta", study)
    found = record["search"]
    per_token = {
        rung["name"]: rung["flops_per_token"] / record["rungs"][-1]["flops_per_token"] for rung in record["rungs"]
    }
    proposals = {tuple(proposal["until"].items()): proposal for proposal in found["best"]}

    def takes(*until: tuple[str, float]) -> float:
        total, before = 0.0, 0.0
        for name, share in until:
            total, before = total + (share - before) * per_token[name], share
        return total + 1 - before

    # Grown once from four layers: at .4 and .6 as measured, at .5 between them, twice as far from .7, which the decay
    # forbids and which weighs a quarter; and twice, as measured.
    worth = {
        (("l4", 0.4),): 0.95,
        (("l4", 0.5),): (0.95 + 0.75 + 0.6 / 4) / (1 + 1 + 1 / 4),
        (("l4", 0.6),): 0.75,
        (("l2", 0.3), ("l4", 0.6)): 0.8,
    }
    assert {key for key in proposals if key in worth} == set(proposals)
    for until, proposal in proposals.items():
        assert proposal["takes"] == pytest.approx(takes(*until))
        assert proposal["last_model_cost"] == pytest.approx(takes(*until) / worth[until])
        assert proposal["low"] == pytest.approx(0.8 * proposal["last_model_cost"])
        assert proposal["high"] == pytest.approx(1.2 * proposal["last_model_cost"])
    costs = [proposal["last_model_cost"] for proposal in found["best"]]
    assert costs == sorted(costs)
    assert len(proposals) == 4
    # As configured it grows twice, at .2 and .5; the one trunk measured that does so grew at .3 and .6.
    assert found["as_configured"]["last_model_cost"] is None
    assert found["as_configured"]["takes"] == pytest.approx(takes(("l2", 0.2), ("l4", 0.5)))
    table = price_table(record)
    assert "as configured: l2 until 0.2, l4 until 0.5" in table
    assert "no evidence: outside of what was measured" in table
    assert table.count("proposed: ") == 4


def test_a_trunk_as_it_was_measured_costs_what_was_measured(
    capsys: pytest.CaptureFixture[str], ladder: str, study: str
) -> None:
    own = searched(capsys, ladder, "--recipe-eta", study, "--set", "rungs.0.until=0.3", "rungs.1.until=0.6")
    configured = own["search"]["as_configured"]
    assert configured["last_model_cost"] == pytest.approx(configured["takes"] / WORTH["twice"])
    assert configured["nearest"] == "trunks, 'twice'"


def test_trunks_that_grow_by_other_settings_are_not_mixed(
    capsys: pytest.CaptureFixture[str], ladder: str, study: str
) -> None:
    record = json.loads(Path(study).read_text())
    early, late = record["recipes"][:2]
    early["overrides"] = {"growth.method": "stack"}
    late["overrides"] = {"growth.options.new_scale": 0.5, "training.optimizer": "muon"}
    Path(study).write_text(json.dumps(record))
    found = searched(capsys, ladder, "--recipe-eta", study)["search"]
    by_until = {tuple(proposal["until"].items()): proposal for proposal in found["best"]}
    # At .5 nothing is said any more: .4 was grown by stacking, .6 with smaller entries.
    assert set(by_until) == {(("l4", 0.4),), (("l4", 0.6),), (("l2", 0.3), ("l4", 0.6))}
    assert by_until[("l4", 0.4),]["changes"] == {"growth.method": "stack"}
    assert by_until[("l4", 0.6),]["changes"] == {
        "growth.options": {"new_scale": 0.5},
        "training.optimizer": "muon",
    }
    assert by_until[("l2", 0.3), ("l4", 0.6)]["changes"] == {}
    stacked = searched(capsys, ladder, "--recipe-eta", study, "--set", "growth.method=stack")["search"]
    assert {tuple(proposal["changes"]) for proposal in stacked["best"]} == {
        (),
        ("growth.method",),
        ("growth.method", "growth.options", "training.optimizer"),
    }


def test_a_narrower_beginning_is_no_shallower_one(capsys: pytest.CaptureFixture[str], ladder: str, study: str) -> None:
    narrow = [f"rungs.{place}.hidden_size=32" for place in (0, 1)]
    record = searched(capsys, ladder, "--recipe-eta", study, "--set", *narrow)
    assert record["search"]["best"] == []
    assert "no evidence for any shares of these rungs: a trunk would begin at" in price_table(record)


def test_the_last_rung_keeps_its_decay(capsys: pytest.CaptureFixture[str], ladder: str, study: str) -> None:
    record = searched(capsys, ladder, "--recipe-eta", study, "--set", "training.decay_fraction=0.5")
    assert {max(proposal["until"].values()) for proposal in record["search"]["best"]} == {0.4, 0.5}


def test_unlike_trunks_are_farther_away() -> None:
    shape = Shape(growths=1, first=0.4, last=0.4, depth=0.5, width=1.0)
    assert shape.distance(shape) == 0
    assert shape.distance(Shape(growths=1, first=0.5, last=0.5, depth=0.25, width=0.5)) == pytest.approx(math.sqrt(4))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "search: it goes by trunks that were measured, and no study with one is named; give --recipe-eta STUDY"),
        (("--recipe-eta", str(LLAMA)), "search: it goes by trunks that were measured, and no study with one is named"),
        (("--set", f"rungs=[{json.dumps(size(8))}]"), "search: a trunk grows from a smaller rung"),
    ],
)
def test_a_search_without_evidence_is_refused(
    capsys: pytest.CaptureFixture[str], ladder: str, words: tuple[str, ...], message: str
) -> None:
    assert cli.main(["plan", ladder, "--search", *words]) == 2
    assert message in capsys.readouterr().err


def test_rungs_of_a_chain_are_searched_as_those_of_a_trunk(
    capsys: pytest.CaptureFixture[str], ladder: str, study: str
) -> None:
    as_trunk = searched(capsys, ladder, "--recipe-eta", study)["search"]
    record = searched(capsys, ladder, "--recipe-eta", study, "--set", *AS_CHAIN)
    found = record["search"]
    assert found["as_configured"] is None
    assert found["best"] == as_trunk["best"]
    best = found["best"][0]
    said = " ".join(price_summary(record).split())
    assert "As a trunk (schedule: trunk) these rungs could be: l2 until 0.3, l4 until 0.6, then l8;" in said
    once = found | {"best": [proposal for proposal in found["best"] if proposal["until"] == {"l4": 0.6}]}
    said_of_once = " ".join(price_summary(record | {"search": once}).split())
    assert "these rungs could be: l4 until 0.6, then l8, the other rungs left out; last-model" in said_of_once
    assert f"last-model cost {best['last_model_cost']:.2f}; --full shows 3 more and where each was measured." in said
    table = price_table(record)
    assert "where a trunk of these rungs would grow" in table
    assert "as configured: " not in table
    assert table.count("proposed: ") == 4


def test_a_first_rung_from_elsewhere_begins_no_trunk(ladder: str, study: str) -> None:
    config = load_ladder_config(ladder, AS_CHAIN)
    plan = plan_ladder(config)
    own = dataclasses.replace(config, rungs=(RungConfig(name="l2", source="x"), *config.rungs[1:]))
    found = search(dataclasses.replace(plan, config=own), [StudyRecord.read(study)]).best()
    assert found
    assert {name for proposal in found for name in proposal.until} == {"l4"}


def test_each_cost_of_the_last_model_says_what_it_rests_on(
    capsys: pytest.CaptureFixture[str], ladder: str, study: str
) -> None:
    record = searched(capsys, ladder, "--recipe-eta", study)
    best, law = record["search"]["best"][0], record["last_model"]
    assert best["worth"] == pytest.approx(WORTH["twice"])
    assert best["last_model_cost"] != pytest.approx(law["value"])
    summary, table = (" ".join(text.split()) for text in (price_summary(record), price_table(record)))
    for said in (
        f"{best['last_model_cost']:.2f}, of the search, is that trunk's own FLOPs, {best['takes']:.2f} of the last"
        " alone, over what llama trunks that grew alike were worth, 0.80 of a budget from scratch",
        f"{law['value']:.2f}, of the law, is what the runs of the study trunks cost in all, carried to this size",
    ):
        assert said in summary
        assert said in table
    at = summary.index("Where to grow: l2 until 0.3, l4 until 0.6; last-model cost")
    assert at < summary.index("The last by way of the others costs")  # no caveat of the law pushes it off the screen


def test_where_nothing_is_alike_the_plan_says_how_the_rungs_differ(
    capsys: pytest.CaptureFixture[str], ladder: str, study: str
) -> None:
    narrow = [f"rungs.{place}.hidden_size=32" for place in (0, 1)]
    record = searched(capsys, ladder, "--recipe-eta", study, "--set", *narrow)
    said = " ".join(price_summary(record).split())
    assert (
        "Where to grow: no cost is known: a trunk would begin at 0.25 to 0.5 of the last rung's layers and 0.5 of its"
        " width, and grow by 0.6 at the latest; measured ones began at 0.5 and 1, grown at 0.4; 0.5 and 1, grown at"
        " 0.6; 0.5 and 1, grown at 0.7; 0.25 and 1, grown at 0.3 and 0.6."
    ) in said
    assert "of the search" not in said


def test_of_a_recipe_with_several_ends_the_last_that_has_a_cost_counts(
    capsys: pytest.CaptureFixture[str], ladder: str, study: str
) -> None:
    expected = searched(capsys, ladder, "--recipe-eta", study)["search"]
    record = json.loads(Path(study).read_text())
    for entry in record["recipes"]:
        entry["rungs"] = [*entry["rungs"], entry["rungs"][-1] | {"child": "l9", "last_model_cost": None, "eta": None}]
    Path(study).write_text(json.dumps(record))
    assert searched(capsys, ladder, "--recipe-eta", study)["search"] == expected


def test_a_proposal_that_leaves_rungs_out_says_so(capsys: pytest.CaptureFixture[str], ladder: str, study: str) -> None:
    record = searched(capsys, ladder, "--recipe-eta", study)
    best = record["search"]["best"][0]
    record["search"]["best"][0] = best | {"until": {"l4": 0.4}}
    assert "Where to grow: l4 until 0.4, the other rungs left out" in " ".join(price_summary(record).split())
