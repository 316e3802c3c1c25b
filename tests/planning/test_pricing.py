"""Prices of a plan: published FLOPs, sums by hand, and what is refused."""

import json
import math
import re
from pathlib import Path

import pytest

from hf_progressive import cli
from hf_progressive.config import load_ladder_config
from hf_progressive.distributed.processes import current_processes
from hf_progressive.ladder.run_folder import claim
from hf_progressive.planning.evidence import inherited_flops, read_evidence
from hf_progressive.planning.ladder_plan import plan_ladder
from hf_progressive.planning.overhead import validation
from hf_progressive.report import price_summary, price_table

STUDIES = Path(__file__).parents[2] / "examples" / "studies"

# Cold runs of nanochat's miniseries of January 2026, 1e18 FLOPs.
MINISERIES = {"d10": 0.42, "d11": 0.64, "d12": 0.96, "d13": 1.40, "d14": 2.00, "d15": 2.81, "d16": 3.89, "d17": 5.30,
              "d18": 7.12}  # fmt: skip
MINISERIES_SIZES = ["model.family=nanochat", "model.fields={}", "data.tokenizer.vocab_size=32768",
                    "training.budget_parameters=total"]  # fmt: skip


def plan(capsys, *words):
    assert cli.main(["plan", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_sizes_of_the_miniseries_give_its_flops():
    rungs = plan_ladder(load_ladder_config("ladder_d10_d18", MINISERIES_SIZES)).rungs
    assert {rung.name: rung.size.flops / 1e18 for rung in rungs} == pytest.approx(MINISERIES, rel=0.02)


def test_hours_and_dollars_are_flops_over_what_the_cluster_does(capsys):
    record = plan(capsys, "ladder_tiny", "--gpus", "2", "--gpu", "a100", "--mfu", "0.5", "--price", "1.5")
    flops = record["flops"]["last_alone"]
    seconds = flops / (2 * 312e12 * 0.5)
    cost = record["family"]["last_alone"]
    assert cost == pytest.approx({"flops": flops, "hours": seconds / 3600, "dollars": seconds / 3600 * 2 * 1.5})
    spent = sum(rung["flops"] + rung["cold_flops"] * rung["trains_baseline"] for rung in record["rungs"])
    assert record["family"]["this_run"]["flops"] == pytest.approx(spent)
    assert record["family"]["to_match"] is None


def test_validation_is_a_third_of_training_per_token(capsys):
    record = plan(capsys, "validation_d15_d16", "--gpus", "8", "--price", "3")
    total = 0.0
    for rung in record["rungs"]:
        runs = [(rung["validation"], rung["flops"])]
        if rung["trains_baseline"]:
            runs.append((rung["cold_validation"], rung["cold_flops"]))
        for cost, training in runs:
            flops = 41 * 2_097_152 * rung["flops_per_token"] / 3
            assert (cost["points"], cost["tokens"]) == (41, 41 * 2_097_152)
            assert cost["flops"] == pytest.approx(flops)
            assert cost["dollars"] == pytest.approx(flops / (989.4e12 * 0.4) / 3600 * 3)
            assert cost["share"] == pytest.approx(flops / training)
            total += flops
    family = record["family"]
    assert family["validation"]["flops"] == pytest.approx(total)
    assert family["validation_share"] == pytest.approx(total / family["this_run"]["flops"])
    assert family["core"] is None
    assert family["in_all"]["hours"] == pytest.approx(family["this_run"]["hours"] + family["validation"]["hours"])


@pytest.mark.parametrize("name", ["ladder_d10_d18", "validation_d15_d16"])
def test_validation_is_less_than_three_per_cent_of_every_real_rung(name):
    config = load_ladder_config(name)
    for rung in plan_ladder(config).rungs:
        for steps in (rung.steps, rung.size.steps):
            _, _, spent = validation(config, rung, steps=steps)
            assert spent < 0.03 * steps * rung.size.batch_tokens * rung.size.flops_per_token


def test_a_run_reads_the_validation_part_before_its_first_step_and_once_a_point_that_it_has_steps_for(capsys):
    record = plan(capsys, "ladder_tiny", "--set", "training.batch_tokens=16384", "training.micro_batch_size=256")
    assert [rung["steps"] for rung in record["rungs"]] == [1, 1, 2]
    assert [rung["validation"]["points"] for rung in record["rungs"]] == [2, 2, 3]
    assert [rung["validation"]["tokens"] for rung in record["rungs"]] == [2 * 4096, 2 * 4096, 3 * 4096]


def test_estimates_and_what_is_saved_are_priced(capsys):
    record = plan(capsys, "ladder_tiny")
    for rung in record["rungs"]:
        by_term = rung["estimates"]["by_term"]
        tokens = 16 * 64  # sequences × context, of which every rung has read more
        assert by_term["fisher"] == tokens * rung["flops_per_token"] + 2 * rung["parameters"]["total"] * 16
        assert rung["estimates"]["flops"] == by_term["fisher"] + by_term["subspace"]
        runs = 2 if rung["trains_baseline"] else 1
        # Per parameter: four checkpoints of weights and two moments, the initial and final weights, one Fisher value.
        assert rung["saving"]["bytes"] == rung["parameters"]["total"] * (runs * (4 * 12 + 2 * 4) + 4)
        assert rung["saving"]["hours"] is None


def test_at_eta_one_the_family_costs_what_its_largest_costs():
    cold = [0.42, 0.64, 0.96, 1.4, 2.0]
    assert sum(inherited_flops(cold, 1.0)) == pytest.approx(cold[-1])
    assert sum(inherited_flops(cold, 0.0)) == pytest.approx(sum(cold))
    by_hand = [0.42, 0.64 - 0.5 * 0.42]
    assert inherited_flops(cold[:2], 0.5) == pytest.approx(by_hand)
    assert min(inherited_flops(cold, 5.0)) == 0.0


def write_study(folder, *steps, **changes):
    """Write the record of a committed study with other outcomes on its steps: the seeds' efficiencies of each."""
    record = json.loads((STUDIES / "books" / "study.json").read_text())
    recipe = next(recipe for recipe in record["recipes"] if recipe["name"] == record["headline"]["recipe"])
    count = len(steps)
    record["headline"]["rungs"], recipe["rungs"] = record["headline"]["rungs"][:count], recipe["rungs"][:count]
    for step, outline, etas in zip(recipe["rungs"], record["headline"]["rungs"], steps, strict=True):
        for entry in (step, outline):
            entry |= {"eta": None if None in etas else sum(etas) / len(etas), **changes}
        step["by_seed"] = [{**seed, "eta": eta} for seed, eta in zip(step["by_seed"][: len(etas)], etas, strict=True)]
    (folder / "study.json").write_text(json.dumps(record))
    return folder / "study.json"


def test_the_interval_of_the_evidence_is_carried_through(capsys, tmp_path):
    # Of the seeds' means over both steps, .9, 1.1 and 1.0: t of two degrees of freedom, over √3 of them.
    study = write_study(tmp_path, [0.7, 1.0, 1.0], [1.1, 1.2, 1.0])
    evidence, half = read_evidence([str(study)]), 4.3027 * 0.1 / math.sqrt(3)
    assert (evidence.eta, evidence.low, evidence.high) == pytest.approx((1.0, 1.0 - half, 1.0 + half))
    assert evidence.source == "the study study_books, recipe 'exact'"
    assert read_evidence([str(study.parent)]) == evidence
    costs = plan(capsys, "ladder_tiny", "--recipe-eta", str(study))["family"]["to_match"]
    given = plan(capsys, "ladder_tiny", "--recipe-eta", "1.0", str(evidence.low), str(evidence.high))["family"][
        "to_match"
    ]
    for key, cost in given.items():
        assert costs[key] == pytest.approx(cost)
    assert costs["at_best"]["flops"] < costs["expected"]["flops"] < costs["at_worst"]["flops"]


def test_evidence_without_an_upper_end_is_an_open_interval(capsys, tmp_path):
    # It matched at its smallest budget already.
    study = write_study(tmp_path, [0.85, 0.95, 0.9], at_least=True, eta_high=None)
    assert cli.main(["plan", "ladder_tiny", "--recipe-eta", str(study), "--full"]) == 0
    table = capsys.readouterr().out
    assert f"η = 0.9, {0.9 - 4.3027 * 0.05 / math.sqrt(3):.3g} or more" in table
    assert "at the lower end" in table
    assert "at the upper end" not in table


def test_a_study_in_which_a_rung_did_not_match_is_no_evidence(capsys, tmp_path):
    study = write_study(tmp_path, [0.9, 0.8, 1.0], [0.9, None, 1.0])
    assert cli.main(["plan", "ladder_tiny", "--recipe-eta", str(study)]) == 2
    assert "study.json: l6w72 did not match, so it has no mean efficiency" in capsys.readouterr().err


def test_the_table_keeps_the_prices_apart_and_says_what_does_not_fit(capsys):
    budget = ["--budget-dollars", "20", "--budget-hours", "2"]
    words = ["plan", "validation_d15_d16", "--gpus", "4", "--price", "3", *budget, "--full"]
    assert cli.main([*words, "--set", "training.micro_batch_size=64"]) == 0
    table = capsys.readouterr().out
    for text in ("every rung cold", "as configured", "the last rung alone, cold", "this run, its baselines included"):
        assert text in table
    assert "of the 20 dollars it may: over the budget" in table
    assert "of the 2 hours it may: within the budget" in table
    assert "set training.micro_batch_size to" in table
    assert cli.main(words) == 0
    assert "set training.micro_batch_size to" not in capsys.readouterr().out


def test_a_step_that_divides_badly_is_pointed_out(capsys):
    assert cli.main(["plan", "ladder_tiny", "--set", "training.batch_tokens=704", "--full"]) == 0  # 11 blocks of 64
    text = "micro-batches hold 1 of the 8 blocks that they may, because no larger number divides the 11 of a step"
    assert text in capsys.readouterr().out
    assert cli.main(["plan", "ladder_tiny"]) == 0
    assert "micro-batches hold" not in capsys.readouterr().out


def test_the_picture_is_written(capsys, tmp_path):
    picture = tmp_path / "prices.png"
    plan(capsys, "ladder_tiny", "--price", "3", "--recipe-eta", "0.9", "0.8", "1.0", "--plot", str(picture))
    assert picture.read_bytes().startswith(b"\x89PNG")
    plan(capsys, "ladder_tiny", "--plot", str(picture))
    assert cli.main(["plan", "ladder_tiny", "--plot", str(tmp_path / "prices.jpg")]) == cli.EXIT_BAD_INPUT
    assert "prices.jpg: the picture is a PNG; give a name that ends in .png" in capsys.readouterr().err


def test_a_corpus_that_is_prepared_elsewhere_is_told_and_the_ladder_is_priced(capsys, tmp_path):
    assert cli.main(["plan", "ladder_tiny", "--set", f"data.prepared={tmp_path}"]) == 0
    assert f"data.prepared: {tmp_path} holds no prepared corpus here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpu", "h10"], "gpu: 'h10' is not in the table; did you mean 'h100'?"),
        (["--gpus", "0"], "gpus: 0 is below 1"),
        (["--mfu", "40"], "mfu: 40.0 is not in (0, 1]"),
        (["--price", "-1"], "price: -1.0 is not a number of dollars of 0 or more"),
        (["--recipe-eta", "0.9", "0.8"], "recipe-eta: '0.9 0.8' is neither ETA, nor ETA LOW HIGH, nor the path"),
        (["--recipe-eta", "2", "0.8", "1"], "recipe-eta: 2.0 is not between 0.8 and 1.0; give ETA [LOW HIGH]"),
        (["--recipe-eta", "nowhere/study.json"], "nowhere/study.json: no such file"),
        (["--gpus", "7"], "not divisible among 7 processes"),
    ],
)
def test_refusals_are_one_clear_line(capsys, words, message):
    assert cli.main(["plan", "ladder_tiny", *words]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error


def test_a_ladders_record_is_told_from_a_studys(capsys, tmp_path):
    claim(tmp_path, load_ladder_config("ladder_tiny"), current_processes())
    assert cli.main(["plan", "ladder_tiny", "--recipe-eta", str(tmp_path / "ladder.json")]) == 2
    assert f"{tmp_path / 'ladder.json'}: is a ladder's record; a study's is its study.json" in capsys.readouterr().err


def test_a_stream_that_cannot_keep_up_is_told(capsys):
    words = ["validation_d15_d16", "--gpus", "8", "--mfu", "0.35", "--cores", "5"]
    record = plan(capsys, *words)
    for rung in record["rungs"]:
        eaten = 8 * 989.4e12 * 0.35 / rung["flops_per_token"]
        assert rung["tokens_per_second"] == pytest.approx(eaten)
        assert rung["data_supply"] == pytest.approx(min(1, 5 * 0.3e6 / eaten))
    assert [rung["data_supply"] < 1 for rung in record["rungs"]] == [True, False]
    (line,) = [line for line in price_table(record).splitlines() if line.startswith("data: ")]
    assert "5 cores gives 1.5 M tokens/s, d15 eats 1.6 M" in line
    assert "would wait in d15; run `hf-progressive prepare` first" in line
    prepared = plan(capsys, *words, "--set", "data.prepared=elsewhere")
    assert {rung["data_supply"] for rung in prepared["rungs"]} == {None}
    assert "data: " not in price_table(prepared)


TWO_ON_A_TRUNK = [
    *("schedule=trunk", "cold=none", "phi={}"),
    "rungs=[{name: a, n_layer: 1, n_embd: 32, n_head: 4, until: 0.4}, {name: b, n_layer: 2, n_embd: 32, n_head: 4}]",
]


@pytest.mark.parametrize(
    ("settings", "beside"),
    [
        (["trunk.member=decay"], 4),
        (["trunk.member=average", "trunk.average_over=0.5", "trunk.average_of=4"], 4 * 4),
        (["trunk.moments=grown"], 4 + 8),
    ],
)
def test_what_a_trunk_writes_besides_is_in_what_saving_takes(capsys, settings, beside):
    changes = [*TWO_ON_A_TRUNK, *settings]
    first, last = plan(capsys, "ladder_tiny", "--set", *changes)["rungs"]
    # Initial and final weights, four checkpoints of weights and two moments; of the first, the weights that the last
    # grows from, and whichever more are averaged or go with them.
    assert first["saving"]["bytes"] == first["parameters"]["total"] * (2 * 4 + 4 * 12 + beside)
    initial_moments = 8 * ("trunk.moments=grown" in settings)
    assert last["saving"]["bytes"] == last["parameters"]["total"] * (2 * 4 + 4 * 12 + initial_moments)


def test_an_average_of_more_weights_than_there_are_steps_is_refused(capsys):
    changes = [*TWO_ON_A_TRUNK, "trunk.member=average", "training.tokens_per_parameter=1"]
    assert cli.main(["plan", "ladder_tiny", "--set", *changes]) == 2
    said = capsys.readouterr().err
    steps, window = (int(n) for n in re.search(r"the trunk's (\d+) steps in a are (\d+);", said).groups())
    assert window == math.ceil(0.1 * steps) < 5
    assert "trunk.average_of: 5 weights, but the last 0.1 of" in said
    share = re.search(r"raise trunk.average_over to ([\d.]+)", said)[1]
    capsys.readouterr()
    assert cli.main(["plan", "ladder_tiny", "--set", *changes, f"trunk.average_over={share}"]) == 0


@pytest.fixture
def trunk(tmp_path):
    """A trunk of two rungs, the smaller one a member by a decay."""
    rungs = [{"name": "a", "n_layer": 1, "until": 0.3}, {"name": "b", "n_layer": 2}]
    config = {
        "schedule": "trunk",
        "model": {"context": 64},
        "rungs": [{**rung, "n_embd": 32, "n_head": 2} for rung in rungs],
        "data": {"max_documents": 60, "tokenizer": {"vocab_size": 320}},
        "training": {"tokens_per_parameter": 1, "batch_tokens": 512, "micro_batch_size": 8, "decay_fraction": 0.4},
    }
    (tmp_path / "trunk.yaml").write_text(json.dumps(config))
    return str(tmp_path / "trunk.yaml")


def test_a_trunk_s_last_model_and_its_part_alone_are_priced(capsys, trunk):
    record = plan(capsys, trunk)
    first, last = record["rungs"]
    part = first["trunk"]["steps"] / first["steps"]
    assert part < 1
    assert first["handed_on"]["flops"] == pytest.approx(part * first["as_configured"]["flops"])
    whole = first["handed_on"]["flops"] + last["as_configured"]["flops"]
    assert record["family"]["last_grown"]["flops"] == pytest.approx(whole)
    assert record["flops"]["last_grown"] == pytest.approx(whole)
    share = f"{whole / record['family']['last_alone']['flops']:.2f} ×"
    [row] = [line for line in price_summary(record).splitlines() if line.startswith("the last by way of its stages")]
    assert row.endswith(share)
    assert "the last rung by way of its stages, as configured" in price_table(record)


def test_an_efficiency_says_what_it_does_not_price(capsys, trunk):
    said = "η = 1.2, as given, of a chain: it prices nothing of a trunk, which costs what is planned."
    assert said in price_summary(plan(capsys, trunk, "--recipe-eta", "1.2")).splitlines()
    words = " ".join(price_summary(plan(capsys, "ladder_tiny", "--recipe-eta", "9")).split())
    assert "η = 9, as given. At this η l3w32 and l3w48 would cost nothing on top" in words


def test_rungs_of_other_shares_are_not_said_to_have_the_ladder_s(capsys):
    record = plan(capsys, "ladder_tiny")
    assert "every rung grown, 0.65 of its budget, as configured" in price_summary(record)
    own = plan(capsys, "ladder_tiny", "--set", "rungs.2.training={inherited_fraction: 1.5}")
    assert own["inherited_fraction"] is None
    assert "every rung grown, each its own share, as configured" in price_summary(own)
    assert "every rung inherited, each its own share, as configured" in price_table(own)
