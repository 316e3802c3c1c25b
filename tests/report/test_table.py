"""Every number in a table is the record's, to the digits shown."""

import dataclasses
import re
from xml.etree import ElementTree

import pytest

from hf_progressive.records.ladder import read_run
from hf_progressive.records.stages import TrunkRecord
from hf_progressive.report import results_table, write_report
from hf_progressive.report.ladder_tables import core_table, data_repetition, rung_table, table_notes
from hf_progressive.report.table import Table

SUFFIXES = {"": 1.0, "k": 1e3, "M": 1e6, "B": 1e9}


def number(cell):
    """Read a cell back: a number and half a unit of its last digit."""
    match = re.fullmatch(r"([+-]?\d+)(?:\.(\d+))?(?:e([+-]\d+))?(?: (k|M|B|%))?", cell.replace("−", "-"))
    assert match, cell
    whole, decimals, exponent, suffix = match.groups()
    scale = 0.01 if suffix == "%" else SUFFIXES[suffix or ""]
    value = float(f"{whole}.{decimals or 0}e{exponent or 0}")
    return value * scale, 0.5 * 10.0 ** (int(exponent or 0) - len(decimals or "")) * scale


def said(rungs):
    """What the terminal says, as one line."""
    return " ".join(results_table(rungs).split())


@pytest.fixture
def rungs(run, records):
    return read_run(run(records())).rungs


def test_every_number_is_the_records(rungs, records):
    tera = 1e12
    for row, record in zip(rung_table(rungs).rows, records(), strict=True):
        spent = sum(record["flops"][part] for part in ("train", "fisher", "subspace"))
        baseline = record["cold"] or {"bits_per_byte": None, "flops": spent}
        expected = (
            record["parameters"]["total"],
            record["tokens_per_parameter"],
            record["max_abs_logit_diff"],
            record["bits_per_byte"],
            baseline["bits_per_byte"],
            record["gap_bits_per_byte"],
            spent / tera,
            None if record["flops_to_match"] is None else record["flops_to_match"] / tera,
            baseline["flops"] / tera,
            record["saving"],
            record["eta"],
            record["c_parent_over_c_cold"],
        )
        assert row[:3] == (
            record["name"],
            record["parent"] or "–",
            f"{record['config']['n_layer']}×{record['config']['n_embd']}",
        )
        for cell, value in zip(row[3:], expected, strict=True):
            if value is None:
                assert cell == "–"
            else:
                shown, tolerance = number(cell)
                assert abs(shown - value) <= tolerance * (1 + 1e-9)


def test_a_plain_table_is_aligned_and_holds_every_cell(rungs):
    cells = rung_table(rungs)
    lines = cells.plain().splitlines()[1:]
    for line, row in zip(lines, (cells.header, *cells.rows), strict=True):
        assert re.split(r"\s{2,}", line) == list(row)
    assert len({len(line) for line in lines}) == 1


def test_markdown_has_the_same_cells(rungs):
    lines = rung_table(rungs).markdown().splitlines()
    for line, row in zip(lines[2:], rung_table(rungs).rows, strict=True):
        assert line == "| " + " | ".join(row) + " |"
    assert "bits per byte: own" in lines[0]
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1


def test_html_has_the_same_cells_and_obeys_none():
    table = Table(
        groups=(("", 1), ("<b>", 2)), header=("a", "&", "c"), rows=(("x", '"1"', "<i>2</i>"), ("y", "3", "4"))
    )
    root = ElementTree.fromstring(table.html())
    rows = [[cell.text or "" for cell in row] for row in root.iter("tr")]
    assert rows == [["", "<b>"], ["a", "&", "c"], ["x", '"1"', "<i>2</i>"], ["y", "3", "4"]]
    assert [cell.get("colspan") for cell in root[0][0]] == ["1", "2"]
    assert [cell.tag for cell in root[1][0]] == ["th", "td", "td"]


def test_what_was_planned_is_marked_and_what_did_not_match_is_said(run, records):
    made = records(floors=(1.995, 1.9))
    made[2] = records(cold=False)[2]
    rungs = read_run(run(made)).rungs
    rows = rung_table(rungs).rows
    assert rows[1][10] == "not matched"
    assert rows[1][8].startswith("+")
    assert not rows[1][11].endswith("*")
    assert rows[2][11].endswith("*")
    text = results_table(rungs)
    assert "* planned: no baseline of l6w112 has been trained here." in text
    assert re.search(r"every rung inherited, the last to its match\s+–\s+–\s+–", text)


def test_validation_is_stated_beside_what_is_compared(run, records):
    made = records()
    first, *grown = made
    first["flops"]["evaluation"] = 0.01 * first["flops"]["train"]
    for record in grown:
        record["flops"]["evaluation"] = 0.03 * record["flops"]["train"]
        record["cold"]["evaluation_flops"] = 0.02 * record["cold"]["flops"]
    spent, training = 0.01 * first["flops"]["train"], first["flops"]["train"]
    for record in grown:
        spent += 0.03 * record["flops"]["train"] + 0.02 * record["cold"]["flops"]
        training += record["flops"]["train"] + record["cold"]["flops"]
    folder = run(made)
    rungs = read_run(folder).rungs
    text = said(rungs)
    assert "validation on top, counted in none of these" in write_report(folder).html.read_text()
    row = re.search(r"validation on top, counted in none of these +(\S+)", text)
    shown, tolerance = number(row[1])
    assert abs(shown - spent / 1e12) <= tolerance
    assert f"Validation, {100 * spent / training:.1f} % on top of all training" in text
    assert "3.0 % on models grown" in text
    assert "is not counted on either side" in text
    flops = dataclasses.replace(rungs[-1].flops, evaluation=None)
    older = [*rungs[:-1], dataclasses.replace(rungs[-1], flops=flops)]
    assert "counted on either side" not in said(older)
    assert "validation on top" not in said(older)


@pytest.mark.parametrize(
    ("first_epoch", "token", "sentence"),
    [
        (0, None, "No rung trained on a block of the corpus that it or an earlier rung had read."),
        (0, 1_250_000, "Data repeat from token 1.25 M of l6w96 on, in epoch 2 of the corpus."),
        (1, 0, "Data repeat from the first token of l6w96 on, in epoch 2 of the corpus."),
    ],
)
def test_the_epoch_from_which_data_repeat_is_stated(rungs, first_epoch, token, sentence):
    data = dataclasses.replace(rungs[1].data, first_epoch=first_epoch, repeats_from_token=token)
    changed = [rungs[0], dataclasses.replace(rungs[1], data=data), rungs[2]]
    assert data_repetition(changed) == sentence
    assert sentence in said(changed)


def test_core_has_its_honest_name_and_errors(run, records):
    core = {"name": "CORE (2 of 22 tasks)", "score": -0.0123, "standard_error": 0.0456, "tasks": []}
    for label, centred, error in (("piqa", 0.1, 0.02), ("winograd", -0.1246, 0.09)):
        core["tasks"].append({"label": label, "centred": centred, "centred_standard_error": error})
    three = records()
    folder = run([three[0] | {"core": core}, three[1] | {"core": None}, three[2]])
    table = core_table(read_run(folder).rungs)
    assert table.header == ("centred accuracy", "l5w96", "l6w96", "l6w112")
    assert table.rows == (
        ("CORE (2 of 22 tasks)", "−0.012 ± 0.046", "–", "–"),
        ("piqa", "0.100 ± 0.020", "–", "–"),
        ("winograd", "−0.125 ± 0.090", "–", "–"),
    )
    assert core_table(read_run(folder).rungs[1:]) is None
    paths = write_report(folder)
    assert "In-context learning: CORE (2 of 22 tasks)" in paths.html.read_text()
    assert "## In-context learning: CORE (2 of 22 tasks)" in paths.markdown.read_text()
    assert "−0.125 ± 0.090" in results_table(read_run(folder).rungs)


def test_the_first_rung_of_a_trunk_is_said_to_have_no_baseline(run, records):
    first, *others = read_run(run(records())).rungs
    part = {"until": 0.3, "steps": 9, "tokens": 9, "flops": 1.0, "member": "end", "warmup_steps": 0, "decay_steps": 1}
    on_trunk = dataclasses.replace(first, trunk=TrunkRecord(**part), tokens=round(0.645 * first.cold_tokens))
    said = (
        f"{first.name}, with which the trunk begins, has no baseline: from scratch it counts as it was trained, on 6"
    )
    assert [note for note in table_notes([on_trunk, *others]) if note.startswith(said)]
    assert not [note for note in table_notes([first, *others]) if "with which the trunk begins" in note]
    flops = dataclasses.replace(first.flops, train=1.24 * first.flops.train)
    beyond = dataclasses.replace(on_trunk, tokens=round(1.24 * first.cold_tokens), flops=flops)
    assert (
        f"{first.name}, with which the trunk begins, trained on 124 % of its whole budget and has no baseline: from "
        "scratch it counts as its whole budget."
    ) in table_notes([beyond, *others])
    exactly = dataclasses.replace(on_trunk, tokens=first.cold_tokens)
    assert not [note for note in table_notes([exactly, *others]) if "with which the trunk begins" in note]


def test_a_branch_reads_what_the_trunk_goes_on_with(run, records):
    first, *others = read_run(run(records())).rungs
    branching = dataclasses.replace(first, flops=dataclasses.replace(first.flops, branch=1.0))
    assert data_repetition([branching, *others]) == (
        "The trunk trained on no block of the corpus twice; a member's decay reads the blocks with which the trunk "
        "itself goes on."
    )
