"""Processes that share the folder of a study and one device.

    python workers.py CONFIG.json FOLDER

is one of them: it takes tasks of the study until none is left. With a number behind, it prepares the text alone, by so
many processes.
"""

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from part_file import write_json

TAIL_LINES = 60  # of every process's log
POLL_SECONDS = 0.1


class Workers:
    """A study's processes.

    Args:
        config: The study.
        root: Its folder.
        folder: Where its configuration and the logs go.
        name: What these are called.
        env: The processes' environment.
    """

    def __init__(self, config: Any, root: Path, folder: Path, name: str, env: dict[str, str]) -> None:
        self.root, self.folder, self.name, self.env = root, folder, name, env
        self.config_file = folder / f"{name}.json"
        self.processes: list[subprocess.Popen[bytes]] = []
        write_json(self.config_file, config.to_dict())

    def start(self, number: int) -> None:
        """Start some more processes."""
        for _ in range(number):
            with open(self._log(len(self.processes)), "wb") as output:
                command = [sys.executable, __file__, str(self.config_file), str(self.root)]
                self.processes.append(
                    subprocess.Popen(command, env=self.env, stdout=output, stderr=subprocess.STDOUT)
                )  # fmt: skip

    def _log(self, number: int) -> Path:
        return self.folder / f"{self.name}-{number}.log"

    def prepare(self, processes: int, seconds: float) -> None:
        """Make the text ready, by several processes; what is not done in time is left to those that train."""
        command = [sys.executable, __file__, str(self.config_file), str(self.root), str(processes)]
        with (
            open(self.folder / f"{self.name}-text.log", "wb") as output,
            contextlib.suppress(subprocess.TimeoutExpired),
        ):
            subprocess.run(
                command, env=self.env, stdout=output, stderr=subprocess.STDOUT, timeout=seconds, check=False
            )

    @property
    def codes(self) -> list[int | None]:
        """What the processes ended with; None of those that go on."""
        return [process.poll() for process in self.processes]

    @property
    def running(self) -> int:
        """How many go on."""
        return sum(code is None for code in self.codes)

    def busy(self) -> int:
        """Return how many have a task in hand; the others wait for one."""
        from hf_progressive.storage.locks import try_lock

        count = 0
        for path in (self.root / "locks").glob("*.lock"):
            if not path.name.startswith("."):
                with try_lock(path) as free:
                    count += not free
        return count

    def ask_to_stop(self) -> None:
        """Ask all to stop: one that is training writes a checkpoint first."""
        for process in self.processes:
            if process.poll() is None:
                process.terminate()

    def end(self, patience: float = 0.0) -> None:
        """End all, after some seconds of patience, and print the ends of their logs."""
        until = time.monotonic() + patience
        while self.running and time.monotonic() < until:
            time.sleep(POLL_SECONDS)
        for process in self.processes:
            process.kill()
            process.wait()
        for number in range(len(self.processes)):
            text = self._log(number).read_text(encoding="utf-8", errors="replace").replace("\r", "\n")
            print(f"---- {self._log(number).name}", *text.splitlines()[-TAIL_LINES:], sep="\n", flush=True)


def read_config(config_file: Path) -> Any:
    """Read a study's configuration."""
    from hf_progressive.config import StudyConfig, strict_yaml

    return strict_yaml.build(StudyConfig, json.loads(config_file.read_text(encoding="utf-8")))


def work(config_file: Path, root: Path) -> None:
    """Take tasks of a study until none is left."""
    from hf_progressive.study.run import run_study

    run_study(read_config(config_file), root)


def prepare(config_file: Path, root: Path, processes: int) -> None:
    """Tokenize a study's text."""
    from hf_progressive.data import prepare_corpus

    ladder = read_config(config_file).ladder
    prepare_corpus(ladder.data, ladder.model.context, root / "data", num_proc=processes if processes > 1 else None)


if __name__ == "__main__":
    if len(sys.argv) > 3:
        prepare(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    else:
        work(Path(sys.argv[1]), Path(sys.argv[2]))
