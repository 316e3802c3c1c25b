"""The report of a study: what it says of records whose answer is known."""

import copy
import json
import re
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from documents.told import README, ROOT, cells, short, with_interval
from study_fixtures import study_config, study_mapping
from study_pretence import pretend

from hf_progressive import cli
from hf_progressive.config import StudyConfig, load_study_config, strict_yaml
from hf_progressive.records.study import StudyRecord, read_study
from hf_progressive.report import study_section, write_report
from hf_progressive.report.figures.study import draw_penalties, draw_recipes
from hf_progressive.report.study_findings import find_in_study
from hf_progressive.report.study_tables import phi_table, recipes_table, steps_table
from hf_progressive.study.run import run_study

RECIPES = [{"name": "exact"}, {"name": "with Φ <1>", "set": {"phi.ewc_lambda": 0.1}, "parent_recipe": "exact"}]


typed = StudyRecord.from_dict


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A finished study of pretended tasks, in which every child matches at .55 of its baseline's FLOPs."""
    from ladder_fixtures import RUNGS, write_corpus

    folder = tmp_path_factory.mktemp("study")
    corpus = write_corpus(folder)
    config = study_config(
        corpus,
        ladder={**study_mapping(corpus)["ladder"], "rungs": RUNGS},
        recipes=RECIPES,
        seeds=[0, 1],
        reference="exact",
    )
    with pytest.MonkeyPatch.context() as patch:
        pretend(patch, folder / "log")
        return folder / "run", run_study(config, folder / "run")


def test_the_page_answers_first_and_holds_nothing_from_elsewhere(study: tuple[Path, dict[str, Any]]) -> None:
    folder, record = study
    paths = write_report(folder)
    html, markdown = paths.html.read_text(), paths.markdown.read_text()
    family = record["headline"]["family"]
    answer = (
        f"The last of three models for {family['over_last_alone']:.2f} times its price from scratch, all three for"
        f" {100 * family['inherited'] / family['cold']:.0f} % of theirs"
    )
    assert f"<h1>{answer}</h1>".replace(" %", "\N{NO-BREAK SPACE}%") in html
    assert answer in markdown
    assert html.index("How sure is this?") < html.index("<svg")
    assert "with Φ &lt;1&gt;" in html
    assert "with Φ <1>" not in html
    assert not re.search(r'(src|href)="(?!#)', html)
    for path in paths.plots:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert f"](plots/{path.name})" in markdown


def test_the_result_replaces_what_stands_between_the_marks(
    study: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, record = study
    document = tmp_path / "README.md"
    document.write_text("before\n<!-- study: begin -->\nold\n<!-- study: end -->\nafter\n")
    for _ in range(2):  # the second time changes nothing
        assert cli.main(["report", str(folder), "--into", str(document)]) == 0
        before, section, after = re.split("<!-- study: (?:begin|end) -->\n", document.read_text())
        assert (before, after) == ("before\n", "after\n")
        assert section == study_section(typed(record)) + "\n"
    assert f"{record['headline']['rungs'][0]['eta']:.2f}" in section
    document.write_text("<!-- study: begin -->\nno end\n")
    assert cli.main(["report", str(folder), "--into", str(document)]) == 2
    assert f"{document}: has no line <!-- study: end -->" in capsys.readouterr().err
    assert document.read_text() == "<!-- study: begin -->\nno end\n"
    document.write_bytes(b"\xff\xfe")
    assert cli.main(["report", str(folder), "--into", str(document)]) == 2
    assert f"{document}: is not UTF-8; give a text file with the marks" in capsys.readouterr().err
    assert document.read_bytes() == b"\xff\xfe"
    assert cli.main(["report", str(folder), "--into", ""]) == 2  # an unset variable, say


NEITHER = (
    "{folder}: holds neither a ladder's record (ladder.json) nor a study's (study.json); give a folder that"
    " `hf-progressive ladder` or `hf-progressive study` wrote"
)
BEGUN = "{folder}: its study has no record yet; `hf-progressive study` writes study.json once the corpus is ready"


@pytest.mark.parametrize("options", [[], ["--serve", "--port", "0"], ["--into", "document.md"]])
@pytest.mark.parametrize(("file", "said"), [("notes.txt", NEITHER), ("study.yaml", BEGUN)])
def test_a_folder_without_a_record_is_told_both_kinds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, said: str, options: list[str]
) -> None:
    (tmp_path / file).touch()
    assert cli.main(["report", str(tmp_path), *options]) == 2
    assert capsys.readouterr().err == f"hf-progressive: error: {said.format(folder=tmp_path)}\n"


def test_a_ladder_goes_into_no_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ladder.json").touch()
    assert cli.main(["report", str(tmp_path), "--into", str(tmp_path / "page.md")]) == 2
    assert f"{tmp_path}: holds a ladder, and a document takes the result of a study" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("books", "configs/study_books.yaml"),
        ("books_llama", "examples/studies/books_llama/study.yaml"),
        ("books_screen", "examples/studies/books_screen/study.yaml"),
    ],
)
def test_the_committed_studies_are_complete_and_name_no_place(name: str, config: str) -> None:
    path = ROOT / "examples" / "studies" / name / "study.json"
    text = path.read_text()
    assert len(text) < 2e6
    record = read_study(path.parent)
    assert record.complete
    assert load_study_config(ROOT / config) == strict_yaml.build(StudyConfig, record.config.to_dict())
    assert not re.search(r'"[^"]*/(home|work|tmp|root|shared)/', text)


TRUNKS = (
    "trunk",
    "trunk_gpt2",
    "trunk_gpt2_l16w32",
    "trunk_gpt2_l16w32_20",
    "trunk_gpt2_l32w24",
    "trunk_gpt2_w32_20",
    "trunk_l16w32",
    "trunk_l16w32_20",
    "trunk_l16w64",
    "trunk_w24",
    "trunk_w32",
    "trunk_w32_20",
    "trunk_w32_muon",
)


@pytest.mark.parametrize("name", TRUNKS)
def test_the_committed_studies_of_trunks_are_of_their_configs_at_the_rates_they_chose(name: str) -> None:
    folder = ROOT / "examples" / "studies" / name
    record, config = read_study(folder), load_study_config(folder / "study.yaml")
    assert record.complete
    assert not re.search(r'"[^"]*/(home|work|tmp|root|shared)/', (folder / "study.json").read_text())
    ran = strict_yaml.build(StudyConfig, record.config.to_dict())
    assert config.learning_rates is not None
    for rate in (ran.ladder.training.learning_rate, *(recipe.set["training.learning_rate"] for recipe in ran.recipes)):
        assert rate in config.learning_rates.rates
    training = replace(config.ladder.training, learning_rate=ran.ladder.training.learning_rate)
    recipes = [
        replace(told, set={**told.set, "training.learning_rate": recipe.set["training.learning_rate"]})
        for told, recipe in zip(config.recipes, ran.recipes, strict=True)
    ]
    assert replace(config, ladder=replace(config.ladder, training=training), recipes=tuple(recipes)) == ran


@pytest.mark.parametrize("name", TRUNKS)
def test_the_evidence_says_what_trunks_cost(name: str) -> None:
    record = json.loads((ROOT / "examples" / "studies" / name / "study.json").read_text())
    evidence = (ROOT / "docs/evidence.md").read_text()
    for recipe in record["recipes"]:
        (step,) = recipe["rungs"]
        cost = step["last_model_cost"]
        seeds = ", ".join(short(seed["value"]) for seed in cost["by_seed"])
        bits = sum(seed["bits_per_byte"] for seed in cost["by_seed"]) / len(cost["by_seed"])
        row = f"| {short(cost['value'])} | {short(cost['low'])} to {short(cost['high'])} | {seeds} | {bits:.4f} |"
        assert row in evidence, recipe["name"]


@pytest.mark.parametrize("name", TRUNKS)
def test_the_readme_has_what_stacking_costs_in_its_row_and_column(name: str) -> None:
    record = json.loads((ROOT / "examples" / "studies" / name / "study.json").read_text())
    ladder = record["config"]["ladder"]
    llama = ladder["model"].get("family") == "llama"
    layers = ladder["rungs"][0]["num_hidden_layers" if llama else "n_layer"]
    size = short(record["rungs"][-1]["scaling_parameters"] / 1e6)
    start = f"{'Llama' if llama else 'GPT-2'}, {layers} layers, {size} M"
    if ladder["training"].get("optimizer") == "muon":
        start = f"stacked, under Muon instead of AdamW, Llama, {size} M"
    column = {12: 1, 20: 2}[ladder["training"]["tokens_per_parameter"]]
    cost = [record["headline"]["last_model_cost"][key] for key in ("value", "low", "high", "seeds")]
    assert cells(README, start)[column].startswith(with_interval(*cost))


def test_the_evidence_says_what_a_trunk_s_family_costs() -> None:
    record = read_study(ROOT / "examples" / "studies" / "trunk_members")
    evidence = (ROOT / "docs/evidence.md").read_text()
    assert record.complete
    for recipe in record.recipes:
        family, by_decay = recipe.family, [member for member in recipe.members if member.kind == "decay"]
        worths = [fmean(member.worth for member in by_decay if member.stage == stage.name) for stage in recipe.trunk]
        decay = recipe.overrides.get("trunk.member_decay_fraction", 0.1)
        ends = f"{short(family.over_last_alone_low)} to {short(family.over_last_alone_high)}"
        costs = f"{short(family.over_last_alone)} | {ends} | {short(family.inherited / family.cold)}"
        assert f"| {f'{decay:g}'.removeprefix('0')} | {' | '.join(map(short, worths))} | {costs} |" in evidence


def test_the_readme_says_what_the_committed_study_says() -> None:
    record = read_study(ROOT / "examples" / "studies" / "books")
    assert (
        f"<!-- study: begin -->\n{study_section(record)}\n<!-- study: end -->"
        in (ROOT / "docs/evidence.md").read_text()
    )


def test_tables_hold_what_the_record_says(study: tuple[Path, dict[str, Any]]) -> None:
    _, record = study
    steps = steps_table(typed(record)).rows
    assert [row[0] for row in steps] == ["l2w16", "l2w24"]
    assert [row[6] for row in steps] == [f"{100 * rung['saving']:.0f} %" for rung in record["headline"]["rungs"]]
    assert len(recipes_table(typed(record)).rows) == 4
    phi = phi_table(typed(record))
    assert phi is not None
    # Pretended children are the same with Φ and without, but for what the estimates cost: it can only harm.
    assert all(cell.startswith("+0.") for row in phi.rows for cell in row[2::2])
    assert all(cell == "+0.0000 (+0.0000 to +0.0000)" for row in phi.rows for cell in row[3::2])


def labels(axes: Any) -> list[str]:
    return [label.get_text() for label in axes.get_yticklabels()]


def test_the_plot_of_phi_holds_every_comparison(study: tuple[Path, dict[str, Any]]) -> None:
    _, record = study
    (recipe,) = record["headline"]["phi_effect"]["recipes"]
    panels = draw_penalties(typed(record)).axes
    assert [axes.get_title(loc="left") for axes in panels] == [rung["rung"] for rung in recipe["rungs"]]
    for axes, rung in zip(panels, recipe["rungs"], strict=True):
        assert len(labels(axes)) == len(rung["points"])
        at = {mark: [line.get_xdata()[0] for line in axes.lines if line.get_marker() == mark] for mark in "os"}
        assert at["o"] == [point["difference"] for point in rung["points"]]
        assert at["s"] == [point["at_equal_tokens"]["difference"] for point in rung["points"]]


def test_recipes_that_trained_too_briefly_to_match_are_left_out_of_the_plot(
    study: tuple[Path, dict[str, Any]],
) -> None:
    _, finished = study
    record = copy.deepcopy(finished)
    assert all(set(labels(axes)) == {"exact", "with Φ <1>"} for axes in draw_recipes(typed(record)).axes)
    for rung in record["recipes"][1]["rungs"]:
        rung["eta"] = None
    assert all(
        labels(axes) == ["exact", "with Φ <1>"] for axes in draw_recipes(typed(record)).axes
    )  # as long as the other
    for entry in record["recipes"][1]["points"]:
        entry["points"] = entry["points"][:1]
    assert all(labels(axes) == ["exact"] for axes in draw_recipes(typed(record)).axes)
    # Not even the longest that is compared, if a longer one has no step yet.
    record["recipes"][0]["rungs"] = record["headline"]["rungs"] = []
    assert all(labels(axes) == ["with Φ <1>"] for axes in draw_recipes(typed(record)).axes)


def test_a_better_learning_rate_is_said(study: tuple[Path, dict[str, Any]]) -> None:
    _, finished = study
    record = copy.deepcopy(finished)
    entry = next(row for row in record["cold"] if row["rung"] == "l2w24" and row["seed"] == 0)
    own = entry["points"][-1]
    other = {**own, "learning_rate": 0.5, "bits_per_byte": own["bits_per_byte"] - 0.25}
    record["learning_rates"] = [{"kind": "cold", "rung": "l2w24", "learning_rate": 0.5, "point": other}]
    sentence = "Of the baseline's peak learning rates tried on l2w24 (0.003, 0.5) the study uses 0.003, "
    highest = "; it is the highest that was tried, and one beyond may be better."
    assert f"{sentence}and 0.5 is better by 0.25 bits per byte{highest}" in find_in_study(typed(record)).certainty
    other["bits_per_byte"] = own["bits_per_byte"] + 1
    lowest = highest.replace("highest", "lowest")
    assert f"{sentence}which is the best{lowest}" in find_in_study(typed(record)).certainty


def test_bounds_gaps_and_single_seeds_are_said(study: tuple[Path, dict[str, Any]]) -> None:
    _, finished = study
    record = copy.deepcopy(finished)
    first, second = record["headline"]["rungs"]
    first |= {"at_least": True, "eta_high": None}
    assert any("lower bounds" in sentence for sentence in find_in_study(typed(record)).certainty)
    second |= {"eta": None, "saving": None, "eta_low": None, "eta_high": None}
    record["headline"]["family"]["inherited"] = None
    record["headline"]["last_model_cost"] = record["recipes"][0]["rungs"][1]["last_model_cost"] = None
    record["recipes"][0]["rungs"][1]["by_seed"][0]["c_child"] = None
    assert "l2w24: not every seed matched" in find_in_study(typed(record)).headline
    for rung in (first, second):
        rung["seeds"] = 1
    assert any(sentence.startswith("One seed") for sentence in find_in_study(typed(record)).certainty)
    record |= {"complete": False, "finished": 1, "failed": [{"task": "l2w24-s1", "reason": "the loss is nan"}]}
    said = find_in_study(typed(record)).certainty
    assert "1 task failed, see study.json; where a seed lacks a model by that, means leave it out." in said
    assert find_in_study(typed(record)).unfinished.startswith("1 of ")
    record["headline"]["rungs"] = []
    assert find_in_study(typed(record)).headline.startswith("No step is finished")


def test_a_trunk_says_what_its_last_model_costs_and_what_is_extrapolated(study: tuple[Path, dict[str, Any]]) -> None:
    _, finished = study
    record = copy.deepcopy(finished)
    stages = [
        {"name": name, "until": until, "parameters": 100, "flops_per_token": 600.0, "learning_rate": 4e-3}
        for name, until in (("l1w16", 0.3), ("l2w16", 0.6))
    ]
    record["recipes"][0]["trunk"] = stages
    cost = {"value": 0.742, "low": 0.61, "high": 0.874, "seeds": 3, "at_most": False, "extrapolated": 1}
    record["headline"]["last_model_cost"] = cost
    of_family = ("inherited", "over_last_alone", "over_last_alone_low", "over_last_alone_high")
    record["headline"]["family"] |= dict.fromkeys(of_family)  # this trunk has no members
    found = find_in_study(typed(record))
    price = "The last model for 0.74 times its price from scratch (0.61 to 0.87, three seeds)"
    assert found.headline == f"{price}, by a trunk through two smaller"
    assert "(l1w16 until 30 %, l2w16 until 60 % of the tokens)" in found.explanation
    tile = found.tiles[0]
    assert (tile.title, tile.value) == ("last-model cost", "0.74 ×")
    assert tile.note == "0.61 to 0.87; 1 of 3 seeds extrapolated"
    assert any(sentence.startswith("In 1 of 3 seeds the last model is better, or") for sentence in found.certainty)


def test_the_report_command_tells_a_study_from_a_run(
    study: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, record = study
    assert cli.main(["report", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["html"].endswith("study.html")
    (tmp_path / "study.json").write_text(json.dumps({"headline": {}}))
    assert cli.main(["report", str(tmp_path)]) == cli.EXIT_BAD_INPUT
    assert "format is missing; this is another file, or it was cut" in capsys.readouterr().err
