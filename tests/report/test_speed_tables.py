"""How fast rungs trained, and what that was beside the price: figures worked out by hand."""

import dataclasses
import json

import pytest

from hf_progressive.records.ladder import read_run
from hf_progressive.report import LivePage, results_table, write_report
from hf_progressive.report.speed_tables import priced_table, read_prices, speed_table

SPEED = {
    "tokens_per_second": 2_000_000.0,
    "mfu": 0.4123,
    "tokens": 100,
    "seconds": {"training": 66.0, "evaluation": 4.0, "saving": 2.5},
    "device": "NVIDIA H100 80GB HBM3",
    "processes": 8,
    "log": [],
}


def with_speed(records):
    """The first rung has its speed, the second an unknown peak, the third is of an older version."""
    records[0]["throughput"] = SPEED
    records[1]["throughput"] = SPEED | {"mfu": None, "device": "cpu", "processes": 1}
    return records


def test_a_rung_says_how_fast_it_trained_and_an_older_record_says_nothing(run, records):
    rungs = read_run(run(with_speed(records()))).rungs
    times = ("1 min 6 s", "4.0 s", "2.5 s")
    assert speed_table(rungs).rows == (
        ("l5w96", "2.00 M", "41.2 %", *times, "8 × NVIDIA H100 80GB HBM3"),
        ("l6w96", "2.00 M", "–", *times, "cpu"),
    )
    assert speed_table(rungs[2:]) is None


def test_baselines_come_on_top_where_there_are_some(run, records):
    rungs = read_run(run(with_speed(records()))).rungs
    assert results_table(rungs).endswith("tokens/s, MFU 41 %; baselines came on top.")
    alone = [dataclasses.replace(rung, cold=None, flops_to_match=None) for rung in rungs]
    assert results_table(alone).endswith("tokens/s, MFU 41 %.")


def test_the_price_stands_beside_what_was_paid(run, records, tmp_path):
    made = with_speed(records())
    tokens = made[0]["tokens"]
    hours = tokens / 2_000_000 / 3600
    cost = {"flops": made[0]["flops"]["train"] / 2, "hours": hours / 1.5, "dollars": None}
    plan = {"cluster": {"mfu": 0.5}, "rungs": [{"name": "l5w96", "as_configured": cost}]}
    folder = run(made)
    (folder / "plan.json").write_text(json.dumps(plan))
    [row] = priced_table(read_run(folder).rungs, read_prices(folder / "plan.json")).rows
    assert row[5:] == ("50.0 %", "41.2 %", "1.50 ×")
    assert float(row[2]) == pytest.approx(2 * float(row[1]), rel=1e-2)
    assert float(row[4]) == pytest.approx(hours, rel=1e-2)
    markdown = write_report(folder).markdown.read_text()
    assert "1.50 ×" in markdown
    assert "| 41.2 % |" in markdown


@pytest.mark.parametrize(
    "text", ["", "{}", '{"rungs": [{}], "cluster": {"mfu": 1}}', '{"rungs": 3, "cluster": {"mfu": 1}}']
)
def test_a_file_that_is_no_plan_is_named_on_the_page_and_ends_no_training(run, records, text):
    folder = run(with_speed(records()))
    (folder / "plan.json").write_text(text)
    LivePage(folder).write()  # as a ladder does while it trains
    page = (folder / "report.html").read_text()
    assert f"<dt>plan.json</dt><dd>{folder / 'plan.json'}: " in page
    assert ("is not what `hf-progressive plan --json` prints" in page) == bool(text)


def test_a_plan_of_another_ladder_is_not_taken_for_this_one_s(run, records):
    folder = run(with_speed(records()))
    own = read_run(folder).ladder.name
    cost = {"flops": 1e12, "hours": 1.0, "dollars": None}
    plan = {"name": "other", "cluster": {"mfu": 0.5}, "rungs": [{"name": "l5w96", "as_configured": cost}]}
    (folder / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(ValueError, match=f"plan.json: is the plan of other, not of {own}; write it anew or remove it"):
        read_prices(folder / "plan.json", own)
    assert "is the plan of other, not of" in write_report(folder).markdown.read_text()
