"""The last model's price in a plan: from a study, from an efficiency, and how far either is from what was measured."""

import json
import math
from pathlib import Path
from statistics import fmean, variance
from typing import Any

import pytest

from hf_progressive import cli
from hf_progressive.planning.evidence import read_evidence
from hf_progressive.report import price_summary, price_table

STUDIES = Path(__file__).parents[2] / "examples" / "studies"
BOOKS, LLAMA = (str(STUDIES / name / "study.json") for name in ("books", "books_llama"))


def plan(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert cli.main(["plan", *words, "--json"]) == 0
    record: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return record


@pytest.fixture
def trunk(tmp_path: Path) -> str:
    """A study of a trunk: two seeds of one Llama size, whose costs are known."""
    study = json.loads(Path(LLAMA).read_text())
    recipe = study["recipes"][0]
    recipe["trunk"] = [
        {"name": "l2w72", "until": 0.4, "parameters": 223_956, "flops_per_token": 1e6, "learning_rate": 4e-3}
    ]
    recipe["rungs"] = recipe["rungs"][1:]
    seeds = [
        {"seed": seed, "value": value, "c_lineage": 2e12, "c_child": 5e12, "c_scratch": 7e12 / value}
        | {"bits_per_byte": 1.9, "at_most": False, "extrapolated": False}
        for seed, value in ((0, 0.7), (1, 0.8))
    ]
    cost = {"value": 0.75, "low": 0.1, "high": 1.4, "seeds": 2, "at_most": False, "extrapolated": 0, "by_seed": seeds}
    recipe["rungs"][0]["last_model_cost"] = cost
    study["headline"]["last_model_cost"] = cost
    study["headline"]["rungs"] = study["headline"]["rungs"][1:]
    path = tmp_path / "study.json"
    path.write_text(json.dumps(study))
    return str(path)


def test_a_trunk_prices_the_last_model_of_a_ladder(capsys: pytest.CaptureFixture[str], trunk: str) -> None:
    record = plan(capsys, "ladder_d10_d18", "--gpus", "8", "--price", "3", "--recipe-eta", trunk)
    last, alone, prices = record["rungs"][-1], record["family"]["last_alone"], record["family"]["last_model"]
    cost = record["last_model"]
    expected = math.sqrt(0.7 * 0.8)  # the mean of the logarithms
    assert cost["value"] == pytest.approx(expected)
    for unit in ("flops", "hours", "dollars"):
        assert prices["expected"][unit] == pytest.approx(expected * alone[unit])
        assert prices["at_best"][unit] == pytest.approx(cost["low"] * alone[unit])
        assert prices["at_worst"][unit] == pytest.approx(cost["high"] * alone[unit])
    # s = log(.8/.7)/√2 over one degree of freedom. No exponent: each quantity's distance over log 2, squared.
    first, n = record["rungs"][0]["parameters"]["total"], last["parameters"]["total"]
    tokens = last["cold_tokens"] / last["parameters"]["scaling"]
    distances = [math.log(n / 447_912), math.log(tokens / (2_686_976 / 447_912)), math.log(n / first / 2)]
    spread = 1 + 1 / 2 + sum((distance / math.log(2)) ** 2 for distance in distances)
    half = 12.7062 * math.log(0.8 / 0.7) / math.sqrt(2) * math.sqrt(spread)
    assert math.log(cost["high"] / expected) == pytest.approx(half)
    assert math.log(expected / cost["low"]) == pytest.approx(half)
    extrapolation = cost["extrapolation"]
    assert extrapolation["factor"] == pytest.approx(n / 447_912)
    assert extrapolation["growth"] == pytest.approx(n / first)
    assert cost["law"]["left_out"].keys() == {"parameters", "tokens_per_parameter", "growth"}
    assert (record["evidence"], record["family"]["to_match"]) == (None, None)  # a trunk's η is no chain's
    etas = [(7e12 / value - 5e12) / 2e12 for value in (0.7, 0.8)]
    assert cost["eta"]["value"] == pytest.approx(sum(etas) / 2)
    assert cost["notes"][0] == (
        f"an interval from {cost['low']:.2g} to {cost['high']:.2g} says nothing: {expected:.2f} is what was measured"
        " elsewhere, not a prediction for this ladder"
    )
    assert cost["notes"][1:3] == [
        "nothing was measured in a chain, as here; the figures are of trunk",
        "nothing was measured with gpt2 models, as here; the figures are of llama",
    ]
    assert f"{n / 447_912:,.3g} times the largest that was measured, 0.448 M" in cost["notes"][3]
    table = price_table(record)
    assert f"the last rung by way of the others, {expected:.2f} × that, by books_llama" in table
    assert all(note in table for note in cost["notes"])


def test_studies_of_the_ladders_own_family_count(capsys: pytest.CaptureFixture[str], trunk: str) -> None:
    both = plan(capsys, "ladder_tiny", "--recipe-eta", BOOKS, LLAMA)
    gpt2 = plan(capsys, "ladder_tiny", "--recipe-eta", BOOKS)
    assert both["last_model"] == gpt2["last_model"]
    assert both["last_model"]["law"]["families"] == ["gpt2"]
    assert both["evidence"]["source"].startswith("the study study_books, recipe 'exact'; the study books_llama, ")
    # Of η, all steps of all that are named: .979, 1.088, 1.099 and .885, .753.
    assert both["evidence"]["eta"] == pytest.approx((0.97886 + 1.08767 + 1.09948 + 0.88496 + 0.75266) / 5, abs=1e-5)
    # Each study's seeds, by their means over its steps, are independent of the other's: variances add by the squares
    # of their shares of the steps, and by Satterthwaite the sum has between 2 and 3 degrees of freedom, taken for 2.
    parts = []
    for path, share in ((BOOKS, 3 / 5), (LLAMA, 2 / 5)):
        study = json.loads(Path(path).read_text())
        steps = next(r["rungs"] for r in study["recipes"] if r["name"] == study["headline"]["recipe"])
        seeds = [fmean(step["by_seed"][place]["eta"] for step in steps) for place in range(3)]
        parts.append(share**2 * variance(seeds) / 3)
    assert 2 < sum(parts) ** 2 / sum(part**2 / 2 for part in parts) < 3
    half = 4.3027 * math.sqrt(sum(parts))
    evidence = both["evidence"]
    assert (evidence["eta"] - evidence["low"], evidence["high"] - evidence["eta"]) == pytest.approx((half, half))
    mixed = plan(capsys, "ladder_tiny", "--recipe-eta", BOOKS, trunk)
    assert mixed["last_model"]["law"]["schedules"] == ["chain"]
    assert mixed["evidence"]["eta"] == gpt2["evidence"]["eta"]
    assert not any("says nothing" in note for note in gpt2["last_model"]["notes"])
    held_out = gpt2["last_model"]["law"]["held_out"]
    assert held_out["inside"]
    assert held_out["measured"] == pytest.approx(0.924, abs=1e-3)


def test_an_efficiency_that_is_given_prices_a_chains_last_model(capsys: pytest.CaptureFixture[str]) -> None:
    record = plan(capsys, "ladder_tiny", "--recipe-eta", "0.9", "0.8", "1.0")
    family, cost = record["family"], record["last_model"]
    alone = family["last_alone"]["flops"]
    assert cost["basis"] == "eta"
    assert cost["value"] == pytest.approx(family["to_match"]["expected"]["flops"] / alone)
    assert (cost["low"], cost["high"]) == pytest.approx(
        tuple(family["to_match"][key]["flops"] / alone for key in ("at_best", "at_worst"))
    )
    assert cost["low"] == pytest.approx(1)  # at η = 1 the family telescopes to its last model
    assert family["last_model"]["expected"]["flops"] == pytest.approx(family["to_match"]["expected"]["flops"])
    assert "by way of the others" in price_table(record)
    without = plan(capsys, "ladder_tiny")
    assert (without["last_model"], without["family"]["last_model"]) == (None, None)
    assert "by way of the others" not in price_table(without)


def test_a_study_that_did_not_match_is_named_among_several(tmp_path: Path) -> None:
    study = json.loads(Path(LLAMA).read_text())
    study["headline"]["rungs"][0]["eta"] = None
    (tmp_path / "study.json").write_text(json.dumps(study))
    with pytest.raises(ValueError, match=r"recipe-eta: .*study\.json: l6w64 did not match, so it has no mean"):
        read_evidence([BOOKS, str(tmp_path / "study.json")])


def test_of_a_trunk_a_seed_of_which_did_not_match_no_cost_is_taken(
    capsys: pytest.CaptureFixture[str], trunk: str
) -> None:
    study = json.loads(Path(trunk).read_text())
    step = study["recipes"][0]["rungs"][0] | {"matched": 1, "seeds": 2, "eta": None, "last_model_cost": None}
    step["by_seed"] = [step["by_seed"][0], step["by_seed"][1] | {"c_child": None, "eta": None, "saving": None}]
    study["recipes"][0]["rungs"] = [step]
    study["headline"]["rungs"][0] |= {"eta": None}
    study["headline"]["last_model_cost"] = None
    Path(trunk).write_text(json.dumps(study))
    said = (
        f"No cost is taken of {study['name']}'s trunks to l6w72: the finished baselines of 1 of 2 seeds do not say"
        " what budget from scratch it is worth."
    )
    record = plan(capsys, "ladder_tiny", "--recipe-eta", trunk)
    assert (record["last_model"], record["unmatched"]) == (None, [said])
    assert said in price_table(record).splitlines()
    assert said in " ".join(price_summary(record).split())
    with_books = plan(capsys, "ladder_tiny", "--recipe-eta", BOOKS, trunk)
    assert with_books["unmatched"] == [said]
    assert with_books["last_model"] == plan(capsys, "ladder_tiny", "--recipe-eta", BOOKS)["last_model"]


def test_costs_that_are_extrapolated_are_noted(capsys: pytest.CaptureFixture[str], trunk: str) -> None:
    note = "1 of the 2 costs are extrapolated beyond the finished baselines' budgets"
    assert note not in plan(capsys, "ladder_d10_d18", "--recipe-eta", trunk)["last_model"]["notes"]
    study = json.loads(Path(trunk).read_text())
    study["recipes"][0]["rungs"][0]["last_model_cost"]["by_seed"][0]["extrapolated"] = True
    Path(trunk).write_text(json.dumps(study))
    assert note in plan(capsys, "ladder_d10_d18", "--recipe-eta", trunk)["last_model"]["notes"]
