"""What axe-core (Deque, https://github.com/dequelabs/axe-core) finds on the pages: nothing serious.

The npm registry's package is fetched for the test and kept nowhere.
"""

import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from browser import Browser
from family_records import family
from live_runs import write_live
from run_records import ladder_record, three_records

from hf_progressive.records.ladder import LadderRecord, Run
from hf_progressive.records.rung import RungRecord
from hf_progressive.records.study import read_study
from hf_progressive.report.ladder_page import LivePage, ladder_report
from hf_progressive.report.page import Page, draw_figures, page_text
from hf_progressive.report.study_page import study_report

pytestmark = pytest.mark.slow

STUDIES = Path(__file__).parents[2] / "examples" / "studies"
VERSION = "4.14.1"


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The script."""
    npm, folder = shutil.which("npm"), tmp_path_factory.mktemp("axe")
    if npm is None:
        pytest.skip("npm, which fetches axe-core, is not installed")
    done = subprocess.run([npm, "pack", f"axe-core@{VERSION}", "--silent"], cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"npm cannot fetch axe-core: {done.stderr.strip()[-200:]}")
    with tarfile.open(next(folder.glob("*.tgz"))) as archive:
        member = archive.extractfile("package/axe.min.js")
        assert member is not None
        return member.read().decode()


def of_records(records: list[dict[str, Any]]) -> Page:
    names = [record["name"] for record in records]
    ladder = LadderRecord.from_dict(ladder_record(names, names))
    return ladder_report(Run(ladder=ladder, rungs=tuple(map(RungRecord.from_dict, records))), None, Path("run"))


def live(folder: Path, **changes: Any) -> str:
    write_live(folder, **changes)
    LivePage(folder).write()
    return (folder / "report.html").read_text(encoding="utf-8")


def whole(page: Page) -> str:
    return page_text(page, draw_figures(page))


PAGES: dict[str, Any] = {
    "ladder": lambda folder: whole(of_records(three_records())),
    "trunk": lambda folder: whole(of_records(family(3, branches=True))),
    "study": lambda folder: whole(study_report(read_study(STUDIES / "books"))),
    "study of trunks": lambda folder: whole(study_report(read_study(STUDIES / "trunk"))),
    "live": lambda folder: live(folder, finished=3),
    "stopped": lambda folder: live(folder, finished=2, stopped=True),
}


@pytest.mark.parametrize("name", PAGES)
def test_nothing_serious_is_found(axe: str, browser: Browser, tmp_path: Path, name: str) -> None:
    path = tmp_path / "page.html"
    path.write_text(PAGES[name](tmp_path), encoding="utf-8")
    for width, dark in ((1200, False), (390, True)):
        with browser.page(path.as_uri(), width=width, dark=dark) as tab:
            tab.run(axe + "; 0")
            found = tab.run("axe.run().then(r => ({violations: r.violations, passes: r.passes.length}))")
            grave = [
                (one["id"], one["impact"], [node["html"][:200] for node in one["nodes"][:3]])
                for one in found["violations"]
                if one["impact"] in ("serious", "critical")
            ]
            assert grave == []
            assert found["passes"] > 20  # it has looked
            assert tab.run("document.scrollingElement.scrollWidth") == width
            assert tab.errors == []
