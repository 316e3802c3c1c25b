"""Part 1: the tests in tests/gpu, each one's outcome recorded as soon as it is known."""

import importlib.util
import os
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from part_file import PartFile, part_arguments

ROOT = Path(__file__).resolve().parents[2]
WORKERS = 6  # processes that share the device: the tests' models are small, their time is start-up and compilation
MESSAGE_LINES = 12


class Recorder:
    """A pytest plugin that writes each test's outcome, seconds and message into a part's file."""

    def __init__(self, file: PartFile) -> None:
        self.file = file
        self.tests: dict[str, dict[str, Any]] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Take one phase of one test; a worker's reports come here too."""
        test = self.tests.setdefault(report.nodeid, {"test": report.nodeid, "outcome": "passed", "seconds": 0.0})
        test["seconds"] = round(test["seconds"] + report.duration, 2)
        if report.outcome != "passed":
            test["outcome"] = "error" if report.failed and report.when != "call" else report.outcome
            test["message"] = _message(report)
        if report.user_properties:
            test["figures"] = dict(report.user_properties)
        if report.when == "teardown" or report.outcome != "passed":
            self.write()

    def pytest_collectreport(self, report: Any) -> None:
        """Take a file that could not be read."""
        if report.failed:
            self.tests[report.nodeid] = {"test": report.nodeid, "outcome": "error", "message": _message(report)}
            self.write()

    def write(self) -> None:
        """Write what is known."""
        counts = Counter(test["outcome"] for test in self.tests.values())
        failed = [test for test in self.tests.values() if test["outcome"] in ("failed", "error")]
        summary = [", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))]
        self.file.record |= {"tests": list(self.tests.values()), "counts": dict(counts)}
        self.file.record["summary"] = summary + [f"failed: {test['test']}{_reason(test)}" for test in failed]
        self.file.write()


def _message(report: Any) -> str:
    if report.skipped and isinstance(report.longrepr, tuple | list):
        return str(report.longrepr[2])
    return "\n".join(str(report.longreprtext).splitlines()[-MESSAGE_LINES:])


def _reason(test: dict[str, Any]) -> str:
    # What a process of the test's said last of an exception: most failures of a machine are of one kind.
    said = re.findall(r"^E? *([\w.]+(?:Error|Exception): .+)$", test.get("message", ""), re.MULTILINE)
    return f": {said[-1]}" if said else ""


def main() -> int:
    """Run the tests."""
    options = part_arguments(__doc__).parse_args()
    # The tests hide all devices unless they are told which to use.
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "" if options.rehearse else "0")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before the device's first use: for the same bits
    if options.rehearse:
        os.environ["HF_PROGRESSIVE_GPU_TESTS"] = "cpu"
    with PartFile(options.json, "correctness", rehearsal=options.rehearse) as file:
        import pytest

        arguments = [
            str(ROOT / "tests" / "gpu"), "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT),
            "-c", str(ROOT / "pyproject.toml"), "--basetemp", str(options.work / "correctness"),
        ]  # fmt: skip
        if options.rehearse:
            arguments += ["-k", "not killed"]  # of three processes, most of whose time is start-up
        elif importlib.util.find_spec("xdist") is not None:
            arguments += ["-n", str(WORKERS), "--dist", "worksteal"]
        recorder = Recorder(file)
        code = pytest.main(arguments, plugins=[recorder])
        recorder.write()
        file.record["exit_code"] = int(code)
        if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            raise RuntimeError(f"pytest ended with code {int(code)}; see the log")
    return 0


if __name__ == "__main__":
    sys.exit(main())
