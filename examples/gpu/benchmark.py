"""Part 2: the training benchmark, whose results are collected one by one as it writes them."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from part_file import PartFile, part_arguments, read_json, seconds_left

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "bench_training.py"
POLL_SECONDS = 0.5
STOP_SECONDS = 3.0
STARTING_SECONDS = 15.0  # of imports, before the benchmark looks at the clock, and of its last turn
TOY_SIZES, TOY_SECONDS = ["l1w32"], 40.0
SHORT_SECONDS = 240.0  # below which there is no time to compile four variants: each takes 25 to 40 s on an H100
SHORT = ["--sizes", "d10", "--mode", "compiled", "--variants", "bare", "ours"]


def lines_of(results: list[dict[str, Any]]) -> list[str]:
    """Return a line of text per measurement."""
    lines = []
    for result in results:
        how = f"{result.get('size')} {'compiled' if result.get('compiled') else 'eager'}"
        if "variants" not in result:
            lines.append(f"{how}: {result.get('skipped', 'not measured')}")
            continue
        ours = result["variants"].get("ours", {})
        mfu = "" if not ours.get("mfu") else f", MFU {ours['mfu']:.1%}"
        lines.append(
            f"{how}: {ours.get('tokens_per_second') or 0:,} tokens/s{mfu}, ours/bare {result.get('ours_over_bare')},"
            f" ours/stock {result.get('ours_over_stock')}, Φ {result.get('phi_over_ours')},"
            f" reads between logs {ours.get('reads_between_logs')}"
        )
    return lines


def main() -> int:
    """Run the benchmark and copy what it finds."""
    options = part_arguments(__doc__).parse_args()
    found = options.work / "bench_training.json"
    with PartFile(options.json, "benchmark", rehearsal=options.rehearse) as file:
        seconds = seconds_left(options) - STOP_SECONDS  # what describing the machine has left
        found.unlink(missing_ok=True)
        budget = TOY_SECONDS if options.rehearse else max(1.0, seconds - STARTING_SECONDS)
        command = [sys.executable, str(SCRIPT), "--seconds", f"{budget:.0f}", "--output", str(found)]
        if options.rehearse:
            command += ["--sizes", *TOY_SIZES, "--mode", "eager"]
        elif budget < SHORT_SECONDS:
            command += SHORT
        end = time.monotonic() + seconds
        process = subprocess.Popen(command)
        while process.poll() is None and time.monotonic() < end:
            time.sleep(POLL_SECONDS)
            copy(file, found)
        cut_short = process.poll() is None
        if cut_short:  # compiling cannot be interrupted from inside
            process.kill()
        code = process.wait()
        copy(file, found)
        file.record["cut_short"] = cut_short
        if code != 0 and not cut_short:
            raise RuntimeError(f"{SCRIPT.name} ended with code {code}; see the log")
        if not file.record.get("results"):
            raise RuntimeError(f"{SCRIPT.name} measured nothing in {seconds:.0f} s")
    return 0


def copy(file: PartFile, found: Path) -> None:
    """Take over what the benchmark has written so far."""
    report = read_json(found)
    if report and len(report.get("results", [])) > len(file.record.get("results", [])):
        file.update(**report, summary=lines_of(report["results"]))


if __name__ == "__main__":
    sys.exit(main())
