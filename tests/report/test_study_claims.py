"""Every sentence with a figure in a study's report, against the models that it measured."""

import json
from pathlib import Path
from typing import Any

import pytest
from claims import faults, take_apart
from ladder_fixtures import RUNGS, write_corpus
from study_claims import CLAIMS, all_facts, table_faults
from study_facts import StudyFacts
from study_fixtures import study_config, study_mapping
from study_pretence import pretend

from hf_progressive.records.study import StudyRecord, read_study
from hf_progressive.report import write_report
from hf_progressive.report.study_findings import find_in_study
from hf_progressive.study.run import run_study

STUDIES = Path(__file__).parents[2] / "examples" / "studies"
MORE = [{"name": f"l{3 + n}w24", "n_layer": 3 + n, "n_embd": 24, "n_head": 3} for n in range(2)]
PRETENDED = {
    "two rungs, one seed": {"rungs": RUNGS[:2], "seeds": [0]},
    "three rungs, two seeds, Φ": {"rungs": RUNGS, "seeds": [0, 1], "phi": True},
    "five rungs, two seeds": {"rungs": [*RUNGS, *MORE], "seeds": [0, 1]},
    "matched at once": {"rungs": RUNGS, "seeds": [0, 1], "fractions": [0.6, 0.8]},
    "unfinished": {"rungs": RUNGS, "seeds": [0, 1], "unfinished": True},
    "not matched": {"rungs": RUNGS, "seeds": [0, 1], "fractions": [0.2, 0.4]},
}


@pytest.fixture(scope="module", params=["books", "books_llama", "books_screen", *PRETENDED])
def study(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A finished study's record: one that is published, or one of pretended models."""
    if request.param not in PRETENDED:
        return read_study(STUDIES / request.param).to_dict()
    case, folder = PRETENDED[request.param], tmp_path_factory.mktemp("study")
    corpus = write_corpus(folder)
    fractions = case.get("fractions", [0.25, 0.5, 0.8])
    recipes = [{"name": "exact", "parent_fraction": fractions[1]}]
    if "phi" in case:
        recipes += [
            {"name": "with Φ", "set": {"phi.ewc_lambda": 0.1}, "parent_recipe": "exact", "parent_fraction": 0.5}
        ]
    config = study_config(
        corpus,
        ladder={**study_mapping(corpus)["ladder"], "rungs": case["rungs"]},
        recipes=recipes,
        seeds=case["seeds"],
        child_fractions=fractions,
        reference="exact" if "phi" in case else None,
    )
    with pytest.MonkeyPatch.context() as patch:
        pretend(patch, folder / "log")
        record = run_study(config, folder / "run")
    return stop_early(record) if "unfinished" in case else record


def stop_early(record: dict[str, Any]) -> dict[str, Any]:
    """Take the last step away, as while it is being measured, and let one of its tasks fail."""
    headline = record["headline"]
    family = headline["family"]
    unknown = dict.fromkeys(key for key in family if key.startswith(("inherited", "over_")))
    family = {**family, **unknown, "at_most": False, "seeds": 0}
    record["headline"] = {**headline, "rungs": headline["rungs"][:-1], "family": family, "last_model_cost": None}
    for recipe in record["recipes"]:
        recipe["rungs"], recipe["points"] = (
            recipe["rungs"][:-1],
            [g for g in recipe["points"] if g["rung"] != RUNGS[-1]["name"]],
        )
    failed = [{"task": "one of them", "reason": "the disk is full"}]
    return {**record, "complete": False, "finished": record["runs"] - 3, "failed": failed}


def test_every_figure_in_a_studys_report_is_what_its_models_say(
    study: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "study.json").write_text(json.dumps(study))
    monkeypatch.setattr("hf_progressive.report.figures.style.write_png", lambda figure, path: None)
    monkeypatch.setattr("hf_progressive.report.figures.style.svg", lambda figure, name: "")
    text = write_report(tmp_path).markdown.read_text()
    facts, document = StudyFacts(study), take_apart(text)
    tiles = [f"{tile.title}: {tile.value}; {tile.note}" for tile in find_in_study(StudyRecord.from_dict(study)).tiles]
    found = list(faults([*document.sentences, *tiles], (CLAIMS, list(all_facts(study, facts, text)))))
    for header, *rows in document.tables:
        found += table_faults(header, rows, study, facts)
    assert found == []
