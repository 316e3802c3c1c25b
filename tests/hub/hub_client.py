"""Runs the real client against the loopback Hub: Python programs and command lines in processes of their own."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hub_server import HubServer

CHECKOUT = Path(__file__).parents[2]

_PUBLISHER = """
import json, logging, os, sys
from hf_progressive.publishing import publish_rung
from hf_progressive.hub import transport
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
for line in sys.stdin:
    folder, repo_id, token, attempts, options = json.loads(line)
    os.environ.pop("HF_TOKEN", None)
    if token is not None:
        os.environ["HF_TOKEN"] = token
    transport.ATTEMPTS = attempts
    try:
        answer = publish_rung(folder, repo_id, **options)
    except (OSError, ValueError) as error:
        answer = f"{type(error).__name__}: {error}"
    print(answer, flush=True)
"""


class Publisher:
    """A process that publishes one rung after the other."""

    def __init__(self, process: subprocess.Popen[str], token: str) -> None:
        self._process, self._token = process, token

    def publish(self, folder: Path, repo_id: str, *, token: str | None = "", attempts: int = 6, **options: Any) -> str:
        """Call `publish_rung` with a token of the server, another, or None for none.

        Returns the address, or the kind of error and its message.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        token = self._token if token == "" else token
        self._process.stdin.write(json.dumps([str(folder), repo_id, token, attempts, options]) + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().rstrip("\n")


class HubClient:
    """A machine that knows one Hub: an environment with the token and a home folder of its own."""

    def __init__(self, server: HubServer, home: Path) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
        self._token = server.token
        self._environment = kept | {
            "HF_ENDPOINT": server.endpoint,
            "HF_TOKEN": server.token,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # `datasets` counts at an address of its own, away from HF_ENDPOINT
        }

    def start(self, *command: str, **environment: str) -> subprocess.Popen[str]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(
            command, env=self._environment | environment, text=True, cwd=CHECKOUT, start_new_session=True, **pipes
        )

    def run(self, *command: str, fails: bool = False, **environment: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*command, **environment)
        try:
            stdout, stderr = process.communicate(timeout=900)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # with the processes that it launched
        assert (process.returncode != 0) == fails, f"exit code {process.returncode}\n{stdout}\n{stderr}"
        return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)

    def python(
        self, program: str, *arguments: str, fails: bool = False, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-c", program, *arguments, fails=fails, **environment)

    def publish_family(self, run_dir: Path, pattern: str, *options: str) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "examples/publish_family.py", str(run_dir), pattern, *options)

    @contextlib.contextmanager
    def publisher(self, **environment: str) -> Iterator[Publisher]:
        command = (sys.executable, "-c", _PUBLISHER)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        merged = self._environment | environment
        with subprocess.Popen(command, env=merged, text=True, cwd=CHECKOUT, **pipes) as process:
            yield Publisher(process, self._token)
            assert process.stdin is not None
            process.stdin.close()


def wait_until(condition: Callable[[], object], seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
