"""A report served to this machine alone, made of the records at each request. Nothing else is served."""

import errno
import hashlib
import os
import re
import sys
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from hf_progressive.records.ladder import read_run
from hf_progressive.records.run_progress import PROGRESS_NAME, read_progress
from hf_progressive.records.study import read_study
from hf_progressive.report.ladder_page import ladder_report
from hf_progressive.report.page import Page, draw_figures, page_text
from hf_progressive.report.report import holds_study
from hf_progressive.report.speed_tables import PLAN_NAME
from hf_progressive.report.study_page import study_report

DEFAULT_PORT = 8787
"""Where a browser finds the page unless told otherwise."""

_LOOPBACK = "127.0.0.1"
_NAMES = ("127.0.0.1", "localhost", "[::1]")  # of this machine, in a browser's address
_SECONDS = 2  # after which the page of what is not finished looks for a newer one
_IDLE_SECONDS = 60


class ServedReport:
    """The page of a run's or a study's folder as its records are now."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder, self._is_study = Path(folder), holds_study(folder)
        self._lock = threading.Lock()
        self._seen: object = None
        self._drawn: object = None
        self._svg: dict[str, str] = {}
        self._text = b""

    def page(self) -> bytes:
        """Return the page; it is made anew where a record has changed, and its figures where something was finished.

        Raises:
            FileNotFoundError: The folder has no record.
            ValueError: A record is damaged.
        """
        with self._lock:  # one page for all who ask at once
            progress = None if self._is_study else read_progress(self._folder)
            finished = [_stamp(path) for path in self._finished_records()]
            seen = (finished, _stamp(self._folder / PROGRESS_NAME), progress and progress.state(time.time()))
            if seen != self._seen:
                page, ends = self._made()
                if finished != self._drawn:
                    self._svg, self._drawn = draw_figures(page), finished
                self._text = page_text(page, self._svg, refresh=None if ends else _SECONDS).encode()
                self._seen = seen
            return self._text

    def _finished_records(self) -> list[Path]:
        if self._is_study:
            return [self._folder / "study.json"]
        rungs = sorted(self._folder.glob("*/final/rung.json"))
        return [self._folder / "ladder.json", self._folder / PLAN_NAME, *rungs]

    def _made(self) -> tuple[Page, bool]:
        # The page, and whether it will stay as it is.
        if self._is_study:
            study = read_study(self._folder)
            return study_report(study), study.complete
        run = read_run(self._folder)
        progress = read_progress(self._folder)
        ends = progress is None and run.ladder.complete and not run.pending_baselines
        return ladder_report(run, progress, self._folder, served=True), ends


def _stamp(path: Path) -> tuple[str, int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return str(path), found.st_mtime_ns, found.st_size


class _Handler(BaseHTTPRequestHandler):
    server: "ReportServer"
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "hf-progressive", ""
    timeout = _IDLE_SECONDS

    def do_GET(self) -> None:
        """Answer with the page, or with nothing where the browser has it already."""
        # A name that leads here from elsewhere would let another site's script read the page (DNS rebinding).
        if re.sub(r":\d+$", "", self.headers.get("Host", "")) not in _NAMES:
            return self._say(HTTPStatus.FORBIDDEN, "this page is for this machine alone")
        if self.path.partition("?")[0] != "/":
            return self._say(HTTPStatus.NOT_FOUND, "nothing but the report is here, at /")
        try:
            page = self.server.report.page()
        except (OSError, ValueError) as error:
            return self._say(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
        tag = f'"{hashlib.sha256(page).hexdigest()}"'
        known = [one.strip().removeprefix("W/") for one in self.headers.get("If-None-Match", "").split(",")]
        if tag in known:
            return self._answer(HTTPStatus.NOT_MODIFIED, b"", tag=tag)
        return self._answer(HTTPStatus.OK, page, kind="text/html", tag=tag)

    do_HEAD = do_GET

    def _say(self, status: HTTPStatus, text: str) -> None:
        self._answer(status, f"{text}\n".encode(), kind="text/plain")

    def _answer(self, status: HTTPStatus, content: bytes, *, kind: str = "", tag: str = "") -> None:
        self.send_response(status)
        headers = {
            "Content-Type": f"{kind}; charset=utf-8" if kind else "",
            "Content-Length": str(len(content)) if kind else "",
            "ETag": tag,
            "Cache-Control": "no-cache",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",
        }
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: a page that refreshes would fill the terminal."""


class ReportServer(ThreadingHTTPServer):
    """Serves a report to this machine alone, at a port; 0 takes any that is free."""

    daemon_threads = True
    allow_reuse_address = os.name == "posix"  # elsewhere it would let two servers share a port

    def __init__(self, report: ServedReport, port: int) -> None:
        self.report, self._ended = report, False
        if not 0 <= port <= 65535:
            raise ValueError(f"--port: {port} is none; ports are 1024 to 65535, or 0 for any that is free")
        try:
            super().__init__((_LOOPBACK, port), _Handler)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ValueError(f"--port: {port} is taken; give another one, or 0 for any that is free") from None
            if error.errno == errno.EACCES:
                raise ValueError(f"--port: {port} is not for you to open; give one from 1024 on") from None
            raise

    @property
    def url(self) -> str:
        """The page's address."""
        return f"http://{_LOOPBACK}:{self.server_address[1]}/"

    def server_close(self) -> None:
        """Take no more browsers; what fails in a thread from now on is not shown."""
        self._ended = True
        super().server_close()

    def shutdown_request(self, request: Any) -> None:
        """Close a browser's socket, unless Ctrl-C or SIGTERM ends the server: a thread may have begun to read it."""
        if isinstance(sys.exception(), Exception | None):
            super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a browser that went away, nor after the end; anything else is shown as ever."""
        if not (self._ended or isinstance(sys.exception(), ConnectionError)):
            super().handle_error(request, client_address)
