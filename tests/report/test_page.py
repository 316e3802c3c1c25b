"""The report's files: whole, self-contained, escaped, and the same for the same records."""

import html.parser
import re
import struct
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from hf_progressive.records.ladder import read_run
from hf_progressive.report import write_report
from hf_progressive.report.figures.colours import CSS_NAMES
from hf_progressive.report.glossary import OF_LADDERS, OF_STUDIES
from hf_progressive.report.ladder_tables import rung_table

HOSTILE = """<script>alert("1")</script> & 'x' | $y$ `z` --> {{ 7 * 7 }}"""


class Page(html.parser.HTMLParser):
    """Tags, their attributes and the text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def report(tmp_path_factory, write):
    """A report of three rungs whose names come from somebody hostile."""
    folder = tmp_path_factory.mktemp("reports") / "run"
    made = write.three_records()
    made[1]["name"] = made[2]["parent"] = 'l6<b>&"$w$'
    made[0]["data"]["source"] = HOSTILE
    names = [record["name"] for record in made]
    write.run(folder, made, names, name=HOSTILE, environment={"python": HOSTILE})
    return write_report(folder)


def test_the_page_fetches_nothing(report):
    text = report.html.read_text(encoding="utf-8")
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "img", "image", "base"} & set(page.tags)
    references = [
        value for name, value in page.attributes if name in ("src", "href", "xlink:href", "srcset", "action")
    ]
    assert references  # the figures' glyphs, within the page
    assert all(value.startswith("#") for value in references)
    assert set(re.findall(r"url\(([^)]?)", text)) <= {"#"}
    assert not re.search(r"https?:|//[a-z]|@import", text)
    assert "default-src 'none'" in text


def test_names_are_shown_and_not_obeyed(report):
    text = report.html.read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert HOSTILE in page.text
    assert 'l6<b>&"$w$' in page.text
    markdown = report.markdown.read_text(encoding="utf-8")
    assert "<script" not in markdown.replace("\\<", "")
    assert "{{ 7" in markdown.replace("\\", "")


def test_figures_on_the_page_are_sound_and_follow_its_colours(report):
    text = report.html.read_text(encoding="utf-8")
    figures = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(figures) == 3
    for figure in figures:
        ElementTree.fromstring(figure)
        assert not [colour for colour in CSS_NAMES if colour in figure]
    defined = set(re.findall(r"--([a-z]+):", text))
    assert set(re.findall(r"var\(--([a-z]+)\)", text)) <= defined
    identifiers = [value for name, value in Page(text).attributes if name == "id"]
    assert len(identifiers) == len(set(identifiers))
    used = {value[1:] for name, value in Page(text).attributes if name == "href"}
    assert used <= set(identifiers)


def test_the_page_holds_every_cell_of_the_table(report):
    page = re.sub(r"\s+", " ", Page(report.html.read_text(encoding="utf-8")).text)
    markdown = report.markdown.read_text(encoding="utf-8").replace("\\", "")
    for row in rung_table(read_run(report.html.parent).rungs).rows:
        assert f"{''.join(row)}" in page
        assert f"| {' | '.join(row)} |" in markdown


def test_tables_and_figures_are_named_for_those_who_hear_them(report):
    text = report.html.read_text(encoding="utf-8")
    tables = re.findall(r"<table.*?</table>", text, flags=re.DOTALL)
    assert len(tables) >= 4
    captions = [re.search(r'<caption class="heard">(.+?)</caption>', table)[1] for table in tables]
    assert len(set(captions)) == len(tables)
    assert not re.search('<th>|<th (?!(colspan="[0-9]+" )?scope=)', text)
    figures = re.findall(r'<figure class="plot" role="img" aria-label="(.+?)" aria-describedby="(.+?)">', text)
    assert len(figures) == text.count("<svg") == 3
    assert all(f'id="{described}"' in text for _, described in figures)
    headings = re.findall(r"<h([1-6])", text)
    assert headings[0] == "1"
    assert set(headings[1:]) == {"2"}


def test_pictures_are_made_for_a_fine_screen(report):
    assert [path.stem for path in report.plots] == ["overview", "costs", "curves", "penalty"]
    for path in report.plots:
        header = path.read_bytes()[:24]
        assert header.startswith(b"\x89PNG")
        width, _ = struct.unpack(">II", header[16:24])
        assert width >= 1300
        assert f"](plots/{path.name})" in report.markdown.read_text(encoding="utf-8")


def test_a_run_with_one_rung_has_a_report_which_is_the_same_when_written_again(run, records):
    folder = run(records()[:1])
    paths = write_report(folder)
    assert [path.stem for path in paths.plots] == ["curves"]
    for path in (paths.html, paths.markdown):
        assert "1 of 3 rungs are finished, l6w96 and l6w112 not yet" in path.read_text(encoding="utf-8")
    content = {path: path.read_bytes() for path in (paths.html, paths.markdown, *paths.plots)}
    write_report(folder)
    assert {path: path.read_bytes() for path in content} == content
    assert not [path for path in folder.rglob("*") if path.name.startswith(".")]


def test_a_run_without_a_finished_rung_has_a_report(run):
    paths = write_report(run([]))
    assert paths.plots == ()
    for path in (paths.html, paths.markdown):
        assert "0 of 3 rungs are finished" in path.read_text(encoding="utf-8")


def test_rungs_without_baselines_have_a_report(run, records):
    made = records(cold=False, phi=False)[:2]
    paths = write_report(run(made, names=["l5w96", "l6w96"], config={"cold": "none"}))
    page = Page(paths.html.read_text(encoding="utf-8")).text
    assert "What inheritance saves was not measured." in page
    assert "planned: no baseline of l6w96 has been trained here." in page
    assert "This run is not finished" not in page
    assert "penalty" not in [path.stem for path in paths.plots]


def test_a_damaged_record_leaves_the_last_report_alone(run, write, records):
    folder = run([])
    before = write_report(folder).html.read_bytes()
    write.run(folder, [records()[0] | {"tokens": "all"}])
    with pytest.raises(ValueError, match=r"rung\.json: tokens: expected a whole number, got 'all'"):
        write_report(folder)
    assert (folder / "report.html").read_bytes() == before


def test_its_words_mean_what_the_glossary_says():
    glossary = (Path(__file__).parents[2] / "docs" / "glossary.md").read_text(encoding="utf-8").lower()
    for terms in (OF_LADDERS, OF_STUDIES):
        assert terms["Baseline (cold)"].lower() in glossary
        assert terms["Saving"].lower() in glossary
    assert all(part in glossary for part in OF_LADDERS["FLOPs"].lower().split("; "))


def test_importing_the_report_loads_no_heavy_library():
    code = (
        "import hf_progressive.report, sys; print([m for m in ('torch', 'matplotlib', 'jinja2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
