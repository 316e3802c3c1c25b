"""What a terminal shows fits its 100 columns, and a plan its 40 lines."""

import dataclasses
import re

import pytest

from hf_progressive.config import load_ladder_config
from hf_progressive.planning.cluster import Cluster
from hf_progressive.planning.evidence import read_evidence, read_studies
from hf_progressive.planning.ladder_plan import plan_ladder
from hf_progressive.planning.pricing import LadderPrice
from hf_progressive.records.ladder import read_run
from hf_progressive.report import price_summary, results_table
from hf_progressive.report.ladder_tables import rung_table
from hf_progressive.report.table import Table


def widest(text):
    return max(map(len, text.splitlines()))


@pytest.fixture
def rungs(run, records):
    return read_run(run(records())).rungs


def test_a_column_goes_with_its_cells_and_its_group():
    table = Table(groups=(("", 1), ("costs", 2)), header=("a", "b", "b"), rows=(("1", "2", "3"),))
    assert table.without("b") == Table(groups=(("", 1), ("costs", 1)), header=("a", "b"), rows=(("1", "2"),))
    assert table.without("a") == Table(groups=(("costs", 2),), header=("b", "b"), rows=(("2", "3"),))


def test_the_results_fit_a_hundred_columns_and_keep_what_was_measured(rungs):
    text = results_table(rungs)
    assert widest(text) <= 100
    whole = rung_table(rungs)
    kept = [title for title in whole.header if title not in ("parent", ": params", "/ cold")]
    lines = text.split("\n\n")[0].splitlines()[1:]
    places = [place for place, title in enumerate(whole.header) if title in kept]
    for line, row in zip(lines, (whole.header, *whole.rows), strict=True):
        assert re.split(r"\s{2,}", line) == [row[place] for place in places]
    assert "l6w112 alone, cold" in text


def test_long_names_push_columns_out_and_no_figure_of_quality(rungs):
    named = [dataclasses.replace(rung, name=f"{rung.name}_of_the_long_name") for rung in rungs]
    table = results_table(named).split("\n\n")[0]
    assert widest(table) <= 100
    assert "×width" not in table
    assert all(title in table for title in ("own", "gap", "to match", "saving", "η"))


@pytest.fixture(scope="module")
def plans(request, tmp_path_factory):
    study = request.config.rootpath / "examples/studies/books/study.json"
    config = load_ladder_config("ladder_d10_d18")
    budget = {"budget_dollars": 20.0, "budget_hours": 0.5}
    evidence = {"evidence": read_evidence([str(study)]), "studies": read_studies([str(study)])}
    real = LadderPrice(
        plan=plan_ladder(config, processes=8), cluster=Cluster(price=3.0), cores=2, **budget, **evidence
    )
    changes = ["training.micro_batch_size=64"]
    badly = plan_ladder(load_ladder_config("validation_d15_d16", changes))
    trunk = plan_ladder(load_ladder_config("trunk_small"))
    others = (LadderPrice(plan=plan, cluster=Cluster(count=1)) for plan in (badly, trunk))
    return [price.to_dict() for price in (real, *others)]


def test_a_plan_fits_a_screen(plans):
    for record in plans:
        text = price_summary(record)
        assert widest(text) <= 100
        assert text.count("\n") < 40
        assert all(f"\n{rung['name']} " in text for rung in record["rungs"])
        rungs = [rung | {"name": f"{rung['name']}_{place}"} for place in range(9) for rung in record["rungs"]]
        text = price_summary(record | {"rungs": rungs})
        assert widest(text) <= 100
        assert text.count("\n") < 40
        assert f"\n{rungs[-1]['name']} " in text


def test_a_plans_figures_are_the_records(plans):
    record = plans[0]
    lines = [re.split(r"\s{2,}", line) for line in price_summary(record).splitlines()]
    cells = next(line for line in lines if line[0] == "d18")
    last = record["rungs"][-1]
    for place, cost in ((3, last["cold"]), (7, last["to_match"]["expected"])):
        assert float(cells[place]) == pytest.approx(cost["flops"] / 1e18, rel=0.005)
        assert float(cells[place + 1]) == pytest.approx(cost["hours"], rel=0.005)
        assert float(cells[place + 2]) == pytest.approx(cost["dollars"], abs=0.005)
    family = next(line for line in lines if line[0] == "every rung from scratch")
    assert float(family[1]) == pytest.approx(record["family"]["cold"]["flops"] / 1e18, rel=0.005)
    assert family[-1] == f"{record['family']['cold']['flops'] / last['cold']['flops']:.2f} ×"
    assert "over the budget" in price_summary(record)
    assert "695 times the largest that was measured" in " ".join(price_summary(record).split())
