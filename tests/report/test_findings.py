"""The sentences say what the records say, and claim no more than one seed shows."""

import json
import re

import pytest

from hf_progressive.records.family import FamilyCost
from hf_progressive.records.ladder import read_run
from hf_progressive.report import write_report
from hf_progressive.report.ladder_findings import find_in_run


def findings_of(run, made, **changes):
    return find_in_run(read_run(run(made, **changes)))


def test_a_matched_family_states_its_saving_and_the_price_of_its_last_member(run, records):
    read = read_run(run(records()))
    totals, found = FamilyCost(rungs=read.rungs), find_in_run(read)
    last, family = totals.last_grown / totals.last_alone, round(100 * totals.inherited_to_match / totals.all_cold)
    assert found.headline == (
        f"The last model for {last:.2f} times its price from scratch, all 3 models for {family} % of theirs."
    )
    assert [tile.value for tile in found.tiles][:2] == [f"{last:.2f} ×", f"{family} %"]
    assert found.explanation.endswith("For whoever wants only l6w112, growing does not pay.")
    assert [tile.value for tile in found.tiles][2:] == ["0.67, 0.62", "1"]
    assert found.unfinished is None
    assert not [sentence for sentence in found.certainty if "above" in sentence]


def test_a_family_cheaper_than_its_last_member_says_so(run, records):
    made = records()
    for record, flops in zip(made[1:], (1e12, 2e12), strict=True):
        record |= {"flops_to_match": flops, "saving": 1 - flops / record["cold"]["flops"]}
    assert findings_of(run, made).explanation.endswith("For whoever wants only l6w112, growing pays too.")


def test_inheritance_that_did_harm_is_called_dearer(run, records):
    made = records()
    for record in made[1:]:
        flops = 1.5 * record["cold"]["flops"]
        record |= {"flops_to_match": flops, "saving": -0.5, "eta": -0.7}
    found = findings_of(run, made)
    last, family = re.match(r"The last model for (.+) times .*, all 3 models for (\d+) % of", found.headline).groups()
    assert float(last) > 1
    assert int(family) > 100


def test_an_unmatched_rung_is_named_with_what_it_lacks(run, records):
    found = findings_of(run, records(floors=(1.93, 1.914)))
    assert found.headline == "1 of the 2 grown models that have a baseline matched it."
    assert "l6w112 ended 0.0140 bits per byte short, after 66 % of the baseline's FLOPs." in found.explanation
    assert "So no saving can be stated for the family." in found.explanation
    assert [tile.value for tile in found.tiles] == ["–", "–", "0.67", "1"]


@pytest.mark.parametrize(
    ("behind", "said"),
    [
        ([1], "l6w96 matched its baseline and ended 0.0250 bits per byte above: "),
        ([1, 2], "l6w96 and l6w112 matched their baselines and ended 0.0250 to 0.0500 bits per byte above: "),
    ],
)
def test_a_rung_that_matched_and_got_worse_is_told_of(run, records, behind, said):
    told = "what is said of a match does not hold of the finished model."
    made = records()
    for place in behind:
        worse = made[place]["cold"]["bits_per_byte"] + 0.025 * place
        made[place] |= {"bits_per_byte": worse, "gap_bits_per_byte": 0.025 * place}
    assert f"{said}{told}" in findings_of(run, made).certainty


@pytest.mark.parametrize(
    ("finished", "cold", "headline", "unfinished"),
    [
        (0, True, "Nothing to compare yet.", "0 of 3 rungs are finished, l5w96, l6w96 and l6w112 not yet"),
        (1, True, "Nothing to compare yet.", "1 of 3 rungs are finished, l6w96 and l6w112 not yet"),
        (
            2,
            True,
            "The last model for 1.24 times its price from scratch, both models for 72 %",
            "2 of 3 rungs are finished, l6w112 not yet",
        ),
        (3, False, "What inheritance saves was not measured.", "still to be trained from scratch: l6w96 and l6w112"),
    ],
)
def test_an_unfinished_run_says_what_is_missing(run, records, finished, cold, headline, unfinished):
    found = findings_of(run, records(cold=cold)[:finished])
    assert found.headline.startswith(headline)
    assert unfinished in found.unfinished


def test_one_seed_is_said_to_be_one_and_no_interval_is_made_up(run, records):
    found = findings_of(run, records(), seed=7)
    assert found.certainty[0].startswith("One seed (7): each figure is a single measurement, ")
    assert "no interval is given" in found.certainty[0]
    said = " ".join([found.headline, found.explanation, *found.certainty])
    assert not re.search(r"±|confidence|standard (error|deviation)|significan|p =", said)


def test_the_grid_of_the_crossings_is_the_distance_of_the_evaluations_around_them(run, records):
    made = records()
    record = made[2]
    before, after = (
        max(p["flops"] for p in record["curve"] if p["flops"] < record["flops_to_match"]),
        min(p["flops"] for p in record["curve"] if p["flops"] > record["flops_to_match"]),
    )
    share = (after - before) / record["cold"]["flops"]
    assert any(f"at most {100 * share:.0f} % of the baseline's" in line for line in findings_of(run, made).certainty)


def test_what_bears_on_a_fair_comparison_is_named(run, records):
    said = " ".join(findings_of(run, records()).certainty)
    assert "Baselines train at a peak learning rate of 0.002, as grown models do" in said
    assert "no model here trained without it" in said


def test_peak_rates_that_differ_from_model_to_model_are_listed(run, records):
    made = records()
    for record, rate in zip(made[1:], (4e-3, 3e-3), strict=False):
        record["learning_rate"] = rate
        if record["cold"]:
            record["cold"]["learning_rate"] = 2e-3
    said = " ".join(findings_of(run, made).certainty)
    names = [record["name"] for record in made]
    assert (
        f"Peak learning rates go by the model: grown, {names[1]} at 0.004, {names[2]} at 0.003; from scratch, " in said
    )
    assert f"{names[2]} at 0.002; this run tried no others." in said


def test_phi_and_baselines_that_were_not_there_are_not_mentioned(run, records):
    said = " ".join(findings_of(run, records(cold=False, phi=False)).certainty)
    assert "Φ" not in said
    assert "baseline" not in said


def test_rates_are_those_of_the_records_and_what_a_rung_sets_is_named(run, records):
    made = records()
    for record in made[1:]:
        record["learning_rate"] = 0.003
        if record["cold"]:
            record["cold"]["learning_rate"] = 0.003
    folder = run(made)
    ladder = json.loads((folder / "ladder.json").read_text())
    ladder["config"]["rungs"] = [{"name": rung, "training": {"learning_rate": 0.003}} for rung in ladder["rungs"][1:]]
    (folder / "ladder.json").write_text(json.dumps(ladder))
    text = write_report(folder).markdown.read_text()
    assert "Baselines train at a peak learning rate of 0.003, as grown models do" in text
    assert f"| {ladder['rungs'][1]} otherwise | training.learning\\_rate 0.003 |" in text
