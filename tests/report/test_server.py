"""A served report: the page as the records are now, to this machine alone, and nothing but the page."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live_runs import write_live

from hf_progressive import cli
from hf_progressive.report import server as served
from hf_progressive.report.server import ReportServer, ServedReport

SECRET = "not for a browser"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, ReportServer]]:
    """A run folder that is served, in which no rung is finished, and so no figure is drawn."""
    folder = write_live(tmp_path_factory.mktemp("served") / "run", finished=0, step=40)
    (folder / "secret.txt").write_text(SECRET)
    with ReportServer(ServedReport(folder), 0) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder, running
        running.shutdown()
        thread.join()


def ask(server: ReportServer, path: str = "/", method: str = "GET", **headers: str) -> tuple[Any, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=30)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer, text


def test_it_serves_the_page_as_the_records_are_now(server: Any) -> None:
    folder, running = server
    for step in (40, 60):
        write_live(folder, finished=0, step=step)
        answer, text = ask(running)
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        assert int(answer.headers["Content-Length"]) == len(text.encode())
        assert f"Step {step} of 160." in text
        assert 'data-refresh="2"' in text
    assert not (folder / "report.html").exists()


def test_what_a_browser_has_is_not_sent_again(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, running = server
    tag = ask(running)[0].headers["ETag"]
    with monkeypatch.context() as patch:
        patch.setattr(served, "page_text", None)  # nor made again
        answer, text = ask(running, If_None_Match=f'"other", W/{tag}')
    assert (answer.status, text, answer.headers["ETag"]) == (304, "", tag)
    write_live(folder, finished=0, step=70)
    answer, text = ask(running, If_None_Match=tag)
    assert answer.status == 200
    assert answer.headers["ETag"] != tag


def test_head_tells_the_length_alone(server: Any) -> None:
    _, running = server
    answer, text = ask(running, method="HEAD")
    assert (answer.status, text) == (200, "")
    assert int(answer.headers["Content-Length"]) > 1000


ELSEWHERE = [
    "/secret.txt",
    "/../secret.txt",
    "/%2e%2e/secret.txt",
    "//etc/passwd",
    "/report.html",
    "/ladder.json",
    "/.",
]


@pytest.mark.parametrize("path", [*ELSEWHERE, "*"])
def test_nothing_but_the_page_is_served(server: Any, path: str) -> None:
    answer, text = ask(server[1], path)
    assert answer.status == 404
    assert text == "nothing but the report is here, at /\n"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_is_taken(server: Any, method: str) -> None:
    assert ask(server[1], method=method)[0].status == 501


HOSTS = {
    "localhost:9000": 200,
    "127.0.0.1": 200,
    "[::1]:80": 200,
    "evil.example:8787": 403,
    "localhost.evil.example": 403,
}


@pytest.mark.parametrize(("host", "status"), HOSTS.items())
def test_a_site_s_name_that_leads_here_shows_nothing(server: Any, host: str, status: int) -> None:
    assert ask(server[1], Host=host)[0].status == status


def test_it_listens_on_loopback_alone(server: Any) -> None:
    assert server[1].server_address[0] == "127.0.0.1"


def test_a_study_is_served_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "draw_figures", lambda page: {})
    record = json.loads((Path(__file__).parents[2] / "examples/studies/books_llama/study.json").read_text())
    for complete in (False, True):
        (tmp_path / "study.json").write_text(json.dumps(record | {"complete": complete}))
        page = ServedReport(tmp_path).page().decode()
        assert record["name"] in page
        assert ('data-refresh="2"' in page) != complete


def test_a_damaged_record_is_said_and_passes(server: Any) -> None:
    folder, running = server
    write_live(folder, finished=0, seconds_left="soon")
    answer, text = ask(running)
    assert answer.status == 503
    assert "progress.json: seconds_left: " in text
    write_live(folder, finished=0)
    assert ask(running)[0].status == 200


def test_a_port_that_is_taken_is_one_line(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    folder, running = server
    port = running.server_address[1]
    assert cli.main(["report", str(folder), "--serve", "--port", str(port)]) == 2
    assert capsys.readouterr().err == (
        f"hf-progressive: error: --port: {port} is taken; give another one, or 0 for any that is free\n"
    )
    for arguments, line in (
        (["--serve", "--port", "70000"], "--port: 70000 is none"),
        (["--port", "1"], "--port: is"),
    ):
        assert cli.main(["report", str(folder), *arguments]) == 2
        assert capsys.readouterr().err.startswith(f"hf-progressive: error: {line}")
    assert cli.main(["report", str(folder / "none"), "--serve"]) == 2
    assert "none: is no folder; " in capsys.readouterr().err


# Tests that a shell runs in the background are born deaf to it, and so would their children be.
def _heed_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_ends_it_with_one_line(server: Any) -> None:
    folder, _ = server
    command = [sys.executable, "-m", "hf_progressive", "report", str(folder), "--serve", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=_heed_ctrl_c) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        port = int(first.partition("127.0.0.1:")[2].partition("/")[0])
        with socket.create_connection(("127.0.0.1", port)):
            process.send_signal(signal.SIGINT)
            rest = process.communicate(timeout=60)[1]
    assert first == f"{folder} is shown at http://127.0.0.1:{port}/ to this machine; Ctrl-C ends it\n"
    assert rest == f"{folder} is no longer shown\n"
    assert process.returncode == 0


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
@pytest.mark.parametrize("fails", [False, True])
def test_ctrl_c_leaves_a_request_in_hand_alone(
    server: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], fails: bool
) -> None:
    folder, _ = server
    interrupted, finished = threading.Event(), threading.Event()

    class Handler(served._Handler):
        def setup(self) -> None:
            assert interrupted.wait(60)  # it reads from the socket once Ctrl-C has come
            if fails:
                raise RuntimeError("cannot schedule new futures after shutdown")
            super().setup()

    class Server(ReportServer):
        def process_request(self, request: Any, client_address: Any) -> None:
            super().process_request(request, client_address)
            os.kill(os.getpid(), signal.SIGINT)  # its thread has just been started

        def process_request_thread(self, request: Any, client_address: Any) -> None:
            super().process_request_thread(request, client_address)
            finished.set()

    monkeypatch.setattr(served, "_Handler", Handler)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with (
            Server(ServedReport(folder), 0) as running,
            socket.create_connection(running.server_address[:2]) as browser,
        ):
            browser.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            with pytest.raises(KeyboardInterrupt):
                running.serve_forever()
            running.server_close()
            interrupted.set()
            assert finished.wait(60)
            answer = browser.recv(12)
    finally:
        signal.signal(signal.SIGINT, before)
    assert answer == (b"" if fails else b"HTTP/1.1 200")
    assert capfd.readouterr().err == ""
