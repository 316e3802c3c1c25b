"""Fixtures: records of a made-up run, and a browser to look at its page with."""

from collections.abc import Iterator

import pytest
from browser import Browser, find_chromium
from run_records import records, run, write

__all__ = ["records", "run", "write"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A running browser, for all pages of a module."""
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium is installed, and CHROMIUM names none")
    running = Browser(program, tmp_path_factory.mktemp("profile"))
    yield running
    running.close()
