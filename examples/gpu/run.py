"""Correctness, speed and evidence from one machine with a GPU, in a few minutes and one command.

    python examples/gpu/run.py --minutes 9 --out results

Four parts run one after the other, each in a process of its own and bounded in time: the tests in tests/gpu, the
training benchmark, some steps of the real configuration, and a study with what time is left. Each writes OUT/PART.json
from its first second on and keeps what it measured when its time is over. A part whose file is there and whose end it
tells is skipped, so that a second start goes on where the first one ended. See README.md beside this file.
"""

import argparse
import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from part_file import FAILED, FINISHED, RUNNING, STOPPED, read_json, write_json

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LOG_LINES = 400  # of each part, in OUT/run.log
GRACE_SECONDS = 4.0  # between asking a part to end and ending it
RESERVE_SECONDS = 8.0  # of the whole time, for the table and for parts that take their time to end
MARK = "HF_PROGRESSIVE_GPU_RUN"  # in the environment of every process that is started here


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part: a script beside this one."""

    name: str
    """The script's name and the JSON's."""

    share: float | None
    """Share of all minutes; None for all that is left."""


PARTS = (
    Part(name="correctness", share=2 / 9),
    Part(name="benchmark", share=2.5 / 9),
    Part(name="configuration", share=1.75 / 9),
    Part(name="study", share=None),
)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="time for everything (default: 9)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results: a JSON per part, and run.log")
    parser.add_argument("--data", nargs="+", type=Path, default=[], help="text, JSON lines or parquet for the study")
    parser.add_argument("--price", type=float, default=3.0, help="dollars per GPU and hour (default: 3)")
    parser.add_argument("--parts", nargs="+", default=[part.name for part in PARTS], help="these parts alone")
    parser.add_argument("--work", type=Path, help="folder of checkpoints and caches (default: a temporary one)")
    parser.add_argument("--rehearse", action="store_true", help="toy sizes on the CPU: does everything work?")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.parts) - {part.name for part in PARTS})
    if unknown:
        parser.error(f"--parts: {unknown[0]!r} is none of {', '.join(part.name for part in PARTS)}")
    if not 0 < options.minutes < float("inf"):
        parser.error(f"--minutes: {options.minutes} is not a number above 0")
    missing = [path for path in options.data if not path.exists()]
    if missing:
        parser.error(f"--data: {missing[0]} does not exist")
    return options


def environment(work: Path, *, rehearse: bool) -> dict[str, str]:
    """Return the environment of the parts: the checkout where nothing is installed, and caches in the work folder."""
    env = dict(os.environ)
    spec = importlib.util.find_spec("hf_progressive")
    if spec is None or spec.origin is None or ROOT in Path(spec.origin).resolve().parents:
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH")]))
    defaults = {
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "MPLBACKEND": "Agg",
        "TQDM_DISABLE": "1",  # bars would fill the logs
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    for name, value in defaults.items():
        env.setdefault(name, value)
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "HF_DATASETS_CACHE"):
        env[name] = str(work / "caches" / name.lower())
    if rehearse:
        env["CUDA_VISIBLE_DEVICES"] = ""
    return env | {"PYTHONUNBUFFERED": "1"}


@dataclass
class Running:
    """A process and its log."""

    process: "subprocess.Popen[bytes]"
    log: Path
    mark: str


class Runner:
    """Starts parts, waits for them, and ends them.

    Args:
        options: The command line.
        work: The work folder.
    """

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self.options = options
        self.work = work
        self.env = environment(work, rehearse=options.rehearse)
        self.end = time.monotonic() + 60 * options.minutes - RESERVE_SECONDS

    def file(self, part: Part) -> Path:
        """Return a part's JSON file."""
        return Path(self.options.out) / f"{part.name}.json"

    def is_done(self, part: Part) -> bool:
        """Tell whether an earlier start has brought a part to its end."""
        return read_json(self.file(part)).get("status") in (FINISHED, STOPPED)

    def seconds(self, part: Part) -> float:
        """Return the time that a part may take now."""
        left = self.end - time.monotonic()
        return left if part.share is None else min(left, part.share * 60 * self.options.minutes)

    def start(self, part: Part, seconds: float, *extra: str, nice: int = 0) -> Running:
        """Start a part's script in a process group of its own."""
        log = self.work / f"{part.name}{'-'.join(extra)}.log"
        command = [
            sys.executable, str(HERE / f"{part.name}.py"), "--json", str(self.file(part)), "--work", str(self.work),
            "--until", f"{time.time() + seconds:.1f}", "--price", str(self.options.price),
            "--results", str(self.options.out), *(["--rehearse"] if self.options.rehearse else []), *extra,
        ]  # fmt: skip
        if self.options.data:
            command += ["--data", *(str(path.resolve()) for path in self.options.data)]
        if nice:
            command = ["nice", "-n", str(nice), *command]
        with open(log, "ab") as file:
            mark = uuid.uuid4().hex
            process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                env=self.env | {MARK: mark}, cwd=ROOT, start_new_session=True,
            )  # fmt: skip
        return Running(process, log, mark)

    def stop(self, running: Running) -> None:
        """End a process group: first asked, then killed."""
        for number, patience in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, GRACE_SECONDS)):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(running.process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.process.wait(timeout=patience)
        for pid in _marked(f"{MARK}={running.mark}".encode()):
            # Launchers start workers in sessions of their own, which would go on holding the device.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    def run(self, part: Part) -> None:
        """Run a part to its end or the end of its time, and see that its JSON says which."""
        seconds = self.seconds(part)
        if seconds < 1:
            print(f"{part.name}: no time left", flush=True)
            return
        print(f"{part.name}: at most {seconds:.0f} s", flush=True)
        self.file(part).unlink(missing_ok=True)
        running = self.start(part, seconds)
        try:
            # The part itself keeps to its time; it is stopped where it does not.
            running.process.wait(timeout=min(seconds + GRACE_SECONDS, max(1.0, self.end - time.monotonic())))
            out_of_time = False
        except subprocess.TimeoutExpired:
            out_of_time = True
        finally:
            self.stop(running)
        self._close(part, running, out_of_time=out_of_time)

    def _close(self, part: Part, running: Running, *, out_of_time: bool) -> None:
        record = read_json(self.file(part))
        tail = running.log.read_text(encoding="utf-8", errors="replace").splitlines()
        if record.get("status", RUNNING) == RUNNING:
            record |= {"part": part.name, "status": STOPPED if out_of_time and "machine" in record else FAILED}
            if record["status"] == FAILED:
                code = running.process.returncode
                why = "its time was over" if out_of_time else f"its process ended with code {code}"
                record |= {"error": f"{why} before it had recorded its end", "traceback": tail[-12:]}
            write_json(self.file(part), record)
        for leftover in Path(self.options.out).glob(f".{part.name}.json.*"):  # of a write that was cut off
            leftover.unlink(missing_ok=True)
        with open(Path(self.options.out) / "run.log", "a", encoding="utf-8") as file:
            file.write("\n".join([f"==== {part.name}: {record['status']}", *tail[-LOG_LINES:], ""]))


def _marked(mark: bytes) -> Iterator[int]:
    # Processes with a mark in their environment, where the system shows it (Linux).
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (folder / "environ").read_bytes():
                yield int(folder.name)


def table(out: Path) -> list[str]:
    """Return the lines of the table of results."""
    lines = []
    for part in PARTS:
        record = read_json(out / f"{part.name}.json")
        if not record:
            lines.append(f"{part.name:<14} not run")
            continue
        took = record.get("seconds")
        lines.append(f"{part.name:<14} {record['status']}" + (f", {took:.0f} s" if took is not None else ""))
        rows = [f"error: {record['error']}".splitlines()[0]] if "error" in record else []
        lines += [f"    {row}" for row in [*rows, *record.get("summary", [])]]
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Run the parts that are still to be done, and print what all of them found."""
    options = parse(arguments)
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        work = options.work
        if work is None:
            temporary = tempfile.TemporaryDirectory(prefix="hf_progressive_", ignore_cleanup_errors=True)
            work = Path(stack.enter_context(temporary))
        work = work.resolve()
        work.mkdir(parents=True, exist_ok=True)
        runner = Runner(options, work)
        todo = [part for part in PARTS if part.name in options.parts and not runner.is_done(part)]
        background: list[Running] = []
        study = PARTS[-1]
        try:
            if study in todo and len(todo) > 1:  # its text is made ready on the CPU beside the parts before it
                background.append(runner.start(study, runner.seconds(study), "--prepare", nice=10))
            for part in todo:
                runner.run(part)
        finally:
            for running in background:
                runner.stop(running)
    print("\n".join(table(options.out)))
    done = [read_json(options.out / f"{name}.json").get("status") for name in options.parts]
    return 0 if all(status in (FINISHED, STOPPED) for status in done) else 1


if __name__ == "__main__":
    sys.exit(main())
