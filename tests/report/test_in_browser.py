"""The page in a browser: it grows, keeps its place, needs no network, fits a phone, a keyboard reaches all."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from browser import Browser
from live_runs import write_live
from run_records import three_records, write_run

from hf_progressive.records.run_progress import PROGRESS_NAME
from hf_progressive.report import ladder_page
from hf_progressive.report import server as served
from hf_progressive.report.ladder_page import LivePage
from hf_progressive.report.server import ReportServer, ServedReport

END = "document.querySelector('#live-curves circle.end').cx.baseVal.value"
STEP = "document.querySelector('.lead').textContent.includes('Step {} of')"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages that look for newer ones every second."""
    monkeypatch.setattr(ladder_page, "_SECONDS_OF_A_FILE", 1)
    monkeypatch.setattr(served, "_SECONDS", 1)


@contextmanager
def serving(folder: Path) -> Iterator[ReportServer]:
    """A server of a folder's page; it ends with the block, or before when it is told to."""
    server = ReportServer(ServedReport(folder), 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def on_disk(folder: Path, **changes: Any) -> str:
    LivePage(write_live(folder, **changes)).write()
    return (folder / "report.html").as_uri()


@pytest.mark.usefixtures("quick")
def test_a_page_on_the_disk_grows_and_keeps_its_place(browser: Browser, tmp_path: Path) -> None:
    url = on_disk(tmp_path, finished=1, step=60)
    with browser.page(url, height=500) as tab:
        tab.go_offline()
        before = tab.run(END)
        tab.run("document.querySelector('summary').click(); scrollTo(0, 240)")
        on_disk(tmp_path, finished=1, step=100)
        tab.wait(f"{STEP.format(100)} && document.readyState === 'complete'")
        assert tab.run(END) - before == pytest.approx((420 - 46 - 16) * 40 / 160, abs=0.2)
        assert tab.run("scrollY") == 240
        assert tab.run("document.querySelector('details').open")
        assert tab.run("document.title") == "27 % of ladder_small"
        assert tab.errors == []
        assert set(tab.requests) == {url}


@pytest.mark.usefixtures("quick")
def test_a_served_page_exchanges_only_what_has_changed(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "draw_figures", lambda page: {})
    write_live(tmp_path, finished=0, step=40)
    with serving(tmp_path) as server, browser.page(server.url, height=500) as tab:
        tab.run(
            "document.querySelector('summary').click(); scrollTo(0, 200); window.begun = 1;"
            "document.querySelector('#section-settings').mark = 1; document.querySelector('#pause').focus()"
        )
        before = tab.run("document.querySelector('#live-curves rect.end').x.baseVal.value")
        write_live(tmp_path, finished=0, step=80)
        tab.wait(STEP.format(80))
        assert tab.run("document.querySelector('#live-curves rect.end').x.baseVal.value") > before
        assert tab.run("window.begun === 1 && document.querySelector('#section-settings').mark === 1")
        assert tab.run("document.querySelector('details').open")
        assert tab.run("document.activeElement.id") == "pause"
        assert tab.run("scrollY") == 200
        # A finished run's page looks for none any longer.
        (tmp_path / PROGRESS_NAME).unlink()
        first = three_records()[:1]
        write_run(tmp_path, first, [first[0]["name"]], config={"cold": "none"})
        tab.wait("!document.querySelector('#live-curves') && !document.querySelector('#pause')")
        assert "Nothing to compare yet." in tab.run("document.querySelector('h1').textContent")
        assert tab.errors == []
        assert set(tab.requests) == {server.url}


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_it_says_when_nothing_answers_and_can_be_paused(browser: Browser, tmp_path: Path) -> None:
    write_live(tmp_path, finished=0)
    with serving(tmp_path) as server, browser.page(server.url) as tab:
        tab.run("document.querySelector('#pause').click()")
        assert tab.run("document.querySelector('#pause').textContent") == "Go on refreshing"
        asked = len(tab.requests)
        time.sleep(1.5)
        assert len(tab.requests) == asked
        tab.go_offline()
        tab.run("document.querySelector('#pause').click()")
        tab.wait("document.querySelector('#trouble').textContent.endsWith('nothing answers here.')")


@pytest.mark.slow
def test_silence_is_told_by_the_page_itself(browser: Browser, tmp_path: Path) -> None:
    with browser.page(on_disk(tmp_path, finished=0, age=0.0, silence=2.0)) as tab:
        tab.wait("!document.querySelector('#overdue').hidden")
        assert tab.run("document.querySelector('#overdue pre').textContent").startswith("hf-progressive ladder ")
        assert tab.run("document.querySelector('#record-time').textContent").endswith(" s ago")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1200])
def test_it_fits_a_phone_and_follows_light_and_dark(browser: Browser, tmp_path: Path, width: int, dark: bool) -> None:
    url = on_disk(tmp_path, finished=3, stopped=True)
    with browser.page(url, width=width, dark=dark) as tab:
        assert tab.run("document.scrollingElement.scrollWidth") == width
        shown = tab.run("getComputedStyle(document.body).backgroundColor")
        assert shown == ("rgb(15, 18, 22)" if dark else "rgb(246, 247, 248)")
        assert tab.errors == []


def test_a_keyboard_reaches_every_table_and_opens_what_is_closed(browser: Browser, tmp_path: Path) -> None:
    with browser.page(on_disk(tmp_path, finished=2, stopped=True)) as tab:
        wanted = tab.run("[...document.querySelectorAll('.scroll, pre, #pause')].map(e => e.id || e.tagName)")
        reached = []
        for _ in range(len(wanted) + 1):
            tab.press("Tab")
            reached.append(tab.run("document.activeElement.id || document.activeElement.tagName"))
            if reached[-1] == "SUMMARY":
                tab.press("Enter")
                tab.wait("document.querySelector('details').open")
        reached.remove("SUMMARY")
        assert reached == wanted
        regions = tab.run("[...document.querySelectorAll('.scroll')].every(e => e.querySelector('table, figure'))")
        assert regions
