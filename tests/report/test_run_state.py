"""What the page says of a run under way, of one that was stopped, and of one of which nothing is heard."""

import base64
import hashlib
import html
import re
import shlex
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from live_runs import STEPS, write_live

from hf_progressive.cli.parser import build_parser
from hf_progressive.records.ladder import read_run
from hf_progressive.records.run_progress import PROGRESS_NAME, read_progress
from hf_progressive.report import write_report
from hf_progressive.report.ladder_page import LivePage
from hf_progressive.report.run_state import RunState, continuing, live_charts, run_state


def state(folder: Path, **changes: Any) -> RunState:
    write_live(folder, **changes)
    progress = read_progress(folder)
    assert progress is not None
    return run_state(read_run(folder), progress, folder)


def written(folder: Path) -> str:
    LivePage(folder).write()
    return (folder / "report.html").read_text(encoding="utf-8")


def test_it_says_which_of_how_many_and_how_far_each_is(tmp_path: Path) -> None:
    said = state(tmp_path, finished=1, step=100)
    assert said.headline == "Training l6w96, 2 of 4"
    assert said.sentence == "Grown from l5w96. Step 100 of 160."
    assert [(s.name, s.words) for s in said.stretches] == [
        ("l5w96", "done"), ("l6w96", "62 %"), ("l6w112", "to come"), ("l6w112, baseline", "to come")
    ]  # fmt: skip
    assert sum(s.weight for s in said.stretches) == pytest.approx(1.0)
    spent = said.stretches[0].weight + 100 / STEPS * said.stretches[1].weight
    assert [tile.value for tile in said.tiles] == [f"{100 * spent:.0f} %", "12 min 34 s", "2.0384", "12.3 k"]
    assert said.tiles[2].note == "validation at step 100; l5w96 ended at 2.0200"
    assert said.tiles[3].note == "MFU 38 %"


@pytest.mark.parametrize(
    ("changes", "headline", "kind"),
    [
        ({"stopped": True}, "Stopped in l6w96, 2 of 4", "stopped"),
        ({"age": 301.0}, "No word from l6w96, 2 of 4", "silent"),
        ({"finished": 3}, "Training the baseline of l6w112, 4 of 4", "running"),
        ({"finished": 4}, "All models are trained; the rest is being written.", "running"),
    ],
)
def test_it_says_whether_the_run_lives(tmp_path: Path, changes: Any, headline: str, kind: str) -> None:
    said = state(tmp_path, **changes)
    assert (said.headline, said.kind) == (headline, kind)
    page = written(tmp_path)
    command = html.escape(said.remedy)
    if kind == "running":
        assert re.search(r'id="overdue" role="status" hidden>.*' + re.escape(command), page, re.DOTALL)
    else:
        assert f">{command}</pre>" in page
        assert "overdue" not in page.partition("<script>")[0]


@pytest.mark.parametrize("processes", [1, 8])
def test_the_command_that_goes_on_is_one(tmp_path: Path, processes: int) -> None:
    words = shlex.split(continuing(tmp_path / "my run", processes))
    assert words[: -4] == (
        ["hf-progressive"] if processes == 1
        else ["accelerate", "launch", "--num_processes", "8", "-m", "hf_progressive"]
    )  # fmt: skip
    options = build_parser().parse_args(words[-4:])
    assert options.config == str(tmp_path / "my run" / "ladder.yaml")
    assert options.output_dir == str(tmp_path / "my run")


def test_a_baseline_grows_beside_the_model_that_it_is_compared_with(tmp_path: Path) -> None:
    write_live(tmp_path, finished=3, step=50)
    progress = read_progress(tmp_path)
    assert progress is not None
    validation, loss = live_charts(read_run(tmp_path), progress)
    assert [(line.title, line.kind, len(line.points)) for line in validation.lines] == [
        ("l6w112, grown", "grown", 17), ("the baseline of l6w112", "cold", 6)
    ]  # fmt: skip
    assert [point[0] for point in loss.lines[0].points] == list(range(4, 51, 4))


def test_charts_are_sound_and_say_in_words_what_they_show(tmp_path: Path) -> None:
    write_live(tmp_path, step=80)
    progress = read_progress(tmp_path)
    assert progress is not None
    for chart in live_charts(read_run(tmp_path), progress):
        root = ElementTree.fromstring(chart.svg())
        title, described, *_ = root
        assert root.get("role") == "img"
        assert root.get("aria-labelledby") == f"{title.get('id')} {described.get('id')}"
        assert "l6w96: " in (described.text or "")
        assert "at step 80" in (described.text or "")
        (line,) = (part for part in root.iter("path") if part.get("class") == "line grown")
        *_, end = re.findall(r"([\d.]+) [\d.]+", line.get("d") or "")
        assert float(end) == pytest.approx(46 + (420 - 46 - 16) * 80 / STEPS, abs=0.1)


def test_the_page_runs_its_own_script_and_no_other_until_the_run_is_finished(tmp_path: Path) -> None:
    write_live(tmp_path, finished=0)
    page = written(tmp_path)
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'; connect-src 'self'" in page
    assert '<noscript><meta http-equiv="refresh" content="10"></noscript>' in page
    (tmp_path / PROGRESS_NAME).unlink()
    page = write_report(tmp_path).html.read_text(encoding="utf-8")
    assert not re.search('<script|http-equiv="refresh|data-refresh|script-src', page)


def test_a_hostile_name_is_shown_and_not_obeyed(tmp_path: Path) -> None:
    name = '"><script>alert(1)</script>'
    write_live(tmp_path)
    progress = read_progress(tmp_path)
    assert progress is not None
    planned = [t.to_dict() | {"name": name, "parent": name} for t in progress.trainings]
    write_live(tmp_path, trainings=planned)
    page = written(tmp_path)
    assert page.count("<script>") == 1
    assert html.escape(name, quote=False) in page or html.escape(name) in page
