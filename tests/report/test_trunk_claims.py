"""Every sentence and cell with a figure on the page of a study of trunks, against the models that it measured."""

import copy
import json
import math
import random
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import study_pretence
from claims import SCALES, cell_fault, faults, take_apart
from ladder_fixtures import write_corpus
from study_claims import CLAIMS, WORDS, duration, ends
from study_facts import interval
from study_pretence import pretend
from trunk_claims import TRUNK_CLAIMS
from trunk_facts import TrunkFacts
from trunk_studies import END, THIN, trunk_study

from hf_progressive.config import StudyConfig, load_study_config, strict_yaml
from hf_progressive.records.study import StudyRecord, read_study
from hf_progressive.report import write_report
from hf_progressive.report.study_findings import find_in_study
from hf_progressive.study.models import FinishedModel
from hf_progressive.study.run import run_study

ROOT = Path(__file__).parents[2]
STUDIES = ROOT / "examples" / "studies"
COMMITTED = sorted(path.parent.name for path in STUDIES.glob("trunk*/study.json"))
RATES = [1e-3, 2e-3, 4e-3]
STACKED = {"name": "stacked", "trunk": [{**THIN, "until": 0.4}], "set": {"growth.method": "stack"}}
TWO = [{**THIN, "until": 0.2}, {**END, "name": "same", "until": 0.4}]
PRETENDED: dict[str, dict[str, Any]] = {
    "one seed": {"recipes": [STACKED], "seeds": [0]},
    "two stages, three seeds, rates": {
        "recipes": [{"name": "two", "trunk": TWO}, {**STACKED, "child_fractions": [1.0]}],
        "seeds": [0, 1, 2],
        "learning_rates": {"rates": RATES[:2], "recipes": ["two"]},
    },
    "cheap, and a rate fails": {
        "recipes": [{**STACKED, "child_fractions": [1.0]}],
        "seeds": [0, 1],
        "learning_rates": {"rates": RATES},
        "fails": 4e-3,
        "worth": 0.5,
    },
    "rates on two seeds": {
        "recipes": [STACKED],
        "seeds": [0, 1, 2],
        "learning_rates": {"rates": RATES, "seeds": [0, 2]},
    },
    "rates beside those to choose from": {
        "recipes": [STACKED],
        "seeds": [0, 1],
        "learning_rates": {"rates": RATES[1:], "seeds": [0, 1], "cold": [1e-3, 1.8e-3, 3.3e-3, 8e-3]},
        "fails": 8e-3,
    },
    "rates on all seeds": {"recipes": [STACKED], "seeds": [0, 1], "learning_rates": {"rates": RATES, "seeds": [0, 1]}},
}
PENDING = "rates being tried"


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Records of studies: those that are committed, and some of pretended models, with chance and a best rate."""
    found = {name: read_study(STUDIES / name).to_dict() for name in COMMITTED}
    for name, case in PRETENDED.items():
        written = carried_out(case, tmp_path_factory.mktemp("trunks"))
        found[name] = written[-1]
        if name.startswith("two"):
            found[PENDING] = next(record for record in written if record["finished"] == 4)
    return found


def carried_out(case: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    changes = {key: case[key] for key in ("recipes", "seeds", "learning_rates") if key in case}
    config, plain = trunk_study(write_corpus(folder), **changes), study_pretence.bits_per_byte

    def scattered(model: FinishedModel) -> float:
        if case.get("fails") == model.setup.learning_rate:
            raise FloatingPointError("step 3: the loss is nan")
        best = 2e-3 if model.setup.trunk is None else 4e-3
        chance = random.Random(f"{model.initial.seed} {model.setup.trunk is None}").gauss(0, 0.01)
        better = 0.2 * math.log(case.get("worth", 1.0)) * (model.setup.trunk is not None)
        return plain(model) + 0.01 * abs(math.log(model.setup.learning_rate / best)) + chance + better

    records: list[dict[str, Any]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_pretence, "bits_per_byte", scattered)
        pretend(patch, folder / "log")
        run_study(config, folder / "run", on_record=records.append)
    return records


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without figures, which take most of the time."""
    monkeypatch.setattr("hf_progressive.report.figures.style.write_png", lambda figure, path: None)
    monkeypatch.setattr("hf_progressive.report.figures.style.svg", lambda figure, name: "")


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("name", [*COMMITTED, *PRETENDED, PENDING])
def test_every_figure_on_the_page_of_a_trunk_study_is_what_its_models_say(
    name: str, records: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    assert page_faults(records[name], tmp_path) == []


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("key", ["value", "low"])
def test_a_cost_that_the_models_do_not_bear_out_is_found(
    key: str, records: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    study = records["two stages, three seeds, rates"]
    wrong = copy.deepcopy(study)
    steps = [rung for recipe in wrong["recipes"] for rung in recipe["rungs"]]
    for cost in [wrong["headline"]["last_model_cost"], *(rung["last_model_cost"] for rung in steps)]:
        cost[key] *= 1.05
    said = page_faults(wrong, tmp_path)
    assert [fault for fault in said if "The last model for" in fault]
    assert len(said) > 3


def page_faults(study: dict[str, Any], folder: Path) -> list[str]:
    """Return what is wrong on a study's page, by the facts of its models."""
    (folder / "study.json").write_text(json.dumps(study))
    text, facts = write_report(folder).markdown.read_text(), TrunkFacts(study)
    document = take_apart(text)
    tiles = [f"{tile.title}: {tile.value}; {tile.note}" for tile in find_in_study(StudyRecord.from_dict(study)).tiles]
    subject = ([*TRUNK_CLAIMS, *CLAIMS], list(all_facts(facts, text)))
    found = list(faults([*document.sentences, *tiles], subject))
    for header, *rows in document.tables:
        found += [fault for fault in table_faults(header, rows, facts) if fault]
    return found


def all_facts(facts: TrunkFacts, text: str) -> Iterator[dict[str, Any]]:
    study, last = facts.study, facts.last
    recipe, size = study["headline"]["recipe"], facts.sizes[last]
    to_try = len(study["learning_rates"])
    tried = sum(row["point"] is not None for row in study["learning_rates"])
    step = facts.step(recipe, last) if tried == to_try else None
    stages, sizes = facts.recipes[recipe]["trunk"], list(facts.sizes.values())
    ends_in = {found["child"] for found in facts.recipes[recipe]["rungs"]}
    measured = [model for model in sizes if model["name"] in ends_in] or sizes
    runs = [point for group in (*facts.cold.values(), *facts.ends.values()) for point in group]
    unit = re.search(r"\*\*([kMGTP]?)FLOP\*\*: 1 \w+ is (\S+) ", text)
    assert unit is not None
    common: dict[str, Any] = {
        "one": 1.0,
        "level": 0.95,
        "recipe": recipe,
        "last": last,
        "sized": " and ".join(filter(None, (", ".join(map(sized, measured[:-1])), sized(measured[-1])))),
        "stages": WORDS[len(stages)],
        "path": ", ".join(f"{stage['name']} until {100 * stage['until']:.0f} %" for stage in stages),
        "tried": tried,
        "to_try": to_try,
        "pending": to_try - tried,
        "finished": study["finished"],
        "runs": study["runs"],
        "failed": len(study["failed"]),
        "repeated": sum(point["repeats_from_token"] is not None for point in runs),
        "models": len(runs),
        "spent": study["costs"]["flops"] / size["cold_flops"],
        "duration": duration(study["costs"]["seconds"]),
        "unit_name": f"{unit[1]}FLOP",
        "unit_size": unit[2],
        "zero": 0.0,
        "bound": False,
        "first_seed": f"{study['config']['seeds'][0]}",
        "seeds": 0,
    }
    if step is not None:
        count, budget = WORDS[step["seeds"]], size["cold_tokens"] * size["flops_per_token"]
        found = [facts.seed(recipe, last, seed) for seed in step["seed_names"]]
        beyond = sorted(f"{one['worth'] / budget:.2f}" for one in found if one["extrapolated"])
        over = ends(step["low"], step["high"])
        common |= step | {
            "seed_count": count,
            "cost_ends": over,
            "eta_ends": ends(step["eta_low"], step["eta_high"]),
            "spread": "one seed" if step["seeds"] == 1 else f"{over}, {count} seeds",
            "how_far": " to ".join(dict.fromkeys((beyond[0], beyond[-1]))) if beyond else None,
        }
        common |= facts.choice(step) | facts.costs_by_sharing(recipe, last)
        all_costs = [other["cost"] for name in facts.recipes if (other := facts.step(name, last)) is not None]
        if family := facts.family(recipe):
            family_ends = {"over_ends": ends(*family.pop("over_interval"))}
            common |= family | family_ends | {"unit": SCALES[unit[1]], "family_count": WORDS[len(stages) + 1]}
        common |= {"recipe_count": WORDS[len(all_costs)], "cheapest": step["cost"] == min(all_costs)}
    sides = [facts.side(side) for side, some in facts.rates().items() if tried == to_try and some]
    at_end = "; ".join(side["end"] for side in sides if side["end"])
    for side in sides or [{}]:
        yield common | side | {"rung": last, "at_end": at_end or None}


def sized(model: dict[str, Any]) -> str:
    parameters, tokens = model["parameters"], model["cold_tokens"] / model["scaling_parameters"]
    scale, unit = next((scale, unit) for scale, unit in ((1e6, " M"), (1e3, " k"), (1, "")) if parameters >= scale)
    said = f"{parameters / scale:#.3g}".rstrip(".") if unit else f"{parameters}"
    each = "1 token" if f"{tokens:.3g}" == "1" else f"{tokens:.3g} tokens"
    counted = model["scaling_parameters"]
    if f"{tokens:.3g}" == f"{model['cold_tokens'] / parameters:.3g}":
        return f"{model['name']} ({said}{unit} parameters, {each} for each)"
    scale, unit_of = next((scale, unit) for scale, unit in ((1e6, " M"), (1e3, " k"), (1, "")) if counted >= scale)
    which = f"{counted / scale:#.3g}".rstrip(".") if unit_of else f"{counted}"
    return f"{model['name']} ({said}{unit} parameters, {each} for each of the {which}{unit_of} that scaling counts)"


def table_faults(header: list[str], rows: list[list[str]], facts: TrunkFacts) -> Iterator[str]:
    """Compare a table cell by cell; one that is not known fails."""
    headline = facts.study["headline"]["recipe"]
    if header[0] == "child":
        for child, *cells, seeds in rows:
            step = facts.step(headline, child)
            assert step is not None
            yield from step_faults(cells[:4], step, ("cost", "eta"))
            yield from (cell_fault(cells[4], step["ceiling"]), cell_fault(cells[5], step["saving"]))
            yield "" if seeds == f"{step['seeds']}/{len(facts.seeds(headline, child))}" else f"{child}: {seeds}"
    elif header[:4] == ["recipe", "child", "seeds", "η"]:
        for recipe, child, seeds, *cells, gap in rows:
            step = facts.step(recipe, child)
            assert step is not None
            yield from step_faults(cells, step, ("eta", "cost"))
            yield from (cell_fault(seeds, step["seeds"]), cell_fault(gap, step["gap"]))
    elif header[:3] == ["recipe", "child", "seed"]:
        scale = SCALES[header[4].split()[0].removesuffix("FLOP")]
        for recipe, child, seed, bits, stages, own, worth, cost in rows:
            true = facts.seed(recipe, child, int(seed))
            beyond = true["extrapolated"]
            yield from (cell_fault(bits, true["bits"]), cell_fault(stages, true["stages"], scale))
            yield from (cell_fault(own, true["own"], scale), cell_fault(cost, true["cost"]))
            yield cell_fault(worth + "*" * (beyond and not worth.endswith("*")), true["worth"], scale, mark=beyond)
    elif header[5:6] == ["FLOPs over the headline's"]:
        for recipe, child, seeds, cost, others_cost, spent, less, both in rows:
            common = [seed for seed in facts.seeds(recipe, child) if seed in facts.seeds(headline, child)]
            pairs = [(facts.seed(recipe, child, seed), facts.seed(headline, child, seed)) for seed in common]
            apart = [own["bits"] - other["bits"] for own, other in pairs]
            ratio = statistics.fmean((a["own"] + a["stages"]) / (b["own"] + b["stages"]) for a, b in pairs)
            yield "" if seeds == ", ".join(map(str, common)) else f"{recipe}: {seeds}"
            yield from (cell_fault(spent, ratio), cell_fault(less, statistics.fmean(apart)))
            for cell, one in ((cost, 0), (others_cost, 1)):
                beyond = any(pair[one]["extrapolated"] for pair in pairs)
                yield cell_fault(cell, statistics.fmean(pair[one]["cost"] for pair in pairs), mark=beyond)
            if len(pairs) == 1:
                yield "" if both == "one seed, no interval" else f"{recipe}: {both}"
                continue
            for cell, end in zip(both.split(" to "), interval(apart), strict=True):
                yield cell_fault(cell, end)
    elif header[:3] == ["recipe", "child", "finished at"]:
        for recipe, child, share, cost, both, extrapolated in rows:
            step = facts.step(recipe, child, round(int(share.removesuffix(" %")) / 100, 2))
            assert step is not None
            yield cell_fault(cost, step["cost"])
            yield "" if both == ends(step["low"], step["high"]) else f"{recipe}, {share}: {both}"
            yield "" if extrapolated == f"{step['extrapolated']}/{step['seeds']}" else f"{recipe}: {extrapolated}"
    elif header[0] == "baseline":
        for rung, seed, rates, *cells in rows:
            points = {round(100 * point["fraction"]): point for point in facts.cold[rung, int(seed)]}
            used = {point["learning_rate"] for point in points.values()}
            yield "" if {float(rate) for rate in rates.split(", ")} == used else f"{rung}: {rates}"
            for title, cell in zip(header[3:], cells, strict=True):
                point = points.get(int(title.removesuffix(" %")))
                yield cell_fault(cell, point and point["bits_per_byte"])
    elif header[0] == "model":
        best = {side: facts.side(side)["best"] for side, some in facts.rates().items() if some}
        done_rows = [row for row in facts.study["learning_rates"] if row["point"] is not None]
        pending = {row["recipe"] for row in facts.study["learning_rates"] if row["point"] is None}
        for row, swept in zip(rows, done_rows, strict=True):
            side = f"recipe “{swept['recipe']}”" if swept["recipe"] else "the baseline"
            assert row[0] == f"{swept['recipe'] or swept['kind']} {swept['rung']}"
            yield cell_fault(row[1], swept["learning_rate"])
            bits = swept["point"].get("bits_per_byte")
            if header[2] == "seed":
                yield "" if row.pop(2) == str(swept["seed"]) else f"{row}"
            yield cell_fault("–" if row[2] == "training failed" else row[2], bits)
            marked = swept["recipe"] not in pending and bits is not None and best[side] == swept["learning_rate"]
            yield "" if (row[3:] == ["best"]) == marked else f"{row}"
    elif header == ["recipe", "grows from", "what it sets", "peak rate"]:
        for recipe, path, _, rate in rows:
            entry = facts.recipes[recipe]
            said = ", ".join(f"{stage['name']} until {100 * stage['until']:.0f} %" for stage in entry["trunk"])
            yield "" if path == said else f"{recipe}: {path}"
            used = {p["learning_rate"] for key, points in facts.ends.items() if key[0] == recipe for p in points}
            known = {float(word) for word in rate.split(", ")} if rate not in ("–", "being tried") else used
            yield "" if used <= known else f"{recipe}: {rate}"
    elif header[:2] == ["rung", "parameters"]:
        scale = SCALES[header[3].split()[0].removesuffix("FLOP")]
        for name, parameters, tokens, flops, _ in rows:
            size = facts.sizes[name]
            yield from (cell_fault(parameters, size["parameters"]), cell_fault(tokens, size["cold_tokens"]))
            yield cell_fault(flops, size["cold_tokens"] * size["flops_per_token"], scale)
    else:
        assert header == ["setting", "value"] or header[0] == "recipe"
        assert header == ["setting", "value"] or header[3] == "member by", header


def step_faults(cells: list[str], step: dict[str, Any], order: tuple[str, str]) -> Iterator[str]:
    """Compare two figures, each with its interval."""
    for key, value, both in zip(order, cells[::2], cells[1::2], strict=True):
        yield cell_fault(value, step[key], mark=key == "cost" and step["extrapolated"] > 0)
        low, high = (step["low"], step["high"]) if key == "cost" else (step["eta_low"], step["eta_high"])
        yield "" if both == ends(low, high) else f"{both} here, and {low} to {high} in truth"


@pytest.mark.parametrize("name", COMMITTED)
def test_a_committed_trunk_study_is_complete_and_its_own(name: str) -> None:
    text = (STUDIES / name / "study.json").read_text()
    record = read_study(STUDIES / name)
    assert record.complete
    assert len(text) < 2e6
    assert not re.search(r'"[^"]*/(home|work|tmp|root|shared)/', text)
    # But for the rates, which the study chose itself, it was made by the configuration beside it.
    made, given = record.config.to_dict(), load_study_config(STUDIES / name / "study.yaml").to_dict()
    if record.rates_tried:
        assert made["ladder"]["training"]["learning_rate"] in record.rates_tried
        made["ladder"]["training"]["learning_rate"] = given["ladder"]["training"]["learning_rate"]
        for recipe in made["recipes"]:
            assert recipe["set"].pop("training.learning_rate") in record.rates_tried
    assert strict_yaml.build(StudyConfig, made) == strict_yaml.build(StudyConfig, given)


def test_worth_is_read_on_the_line_through_baselines() -> None:
    from trunk_facts import worth_of

    points = [{"flops": flops, "bits_per_byte": bits} for flops, bits in ((1.0, 3.0), (4.0, 2.0))]
    assert worth_of(points, 2.5) == (pytest.approx(2.0), False)
    assert worth_of(points, 1.5) == (pytest.approx(8.0), True)
    assert interval([1.0]) == (None, None)
