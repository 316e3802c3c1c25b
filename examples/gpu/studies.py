"""Study configurations on one GPU: as many processes as keep it busy, a deadline, and results that travel.

    python examples/gpu/studies.py --minutes 9 --out results --data books-train.parquet books-validation.parquet \
        examples/studies/trunk/study.yaml examples/studies/trunk_gpt2/study.yaml

The studies are carried out in the order given. Models of half a million parameters leave a device idle, so that many
processes share it, and where too few tasks of one study are ready, the rest of them works on the next one. OUT/NAME
holds study.json and results/, kept up to date; weights stay in the work folder. Started again with the same OUT, here
or elsewhere, a study goes on with what was measured. See README.md beside this file.
"""

import argparse
import collections
import contextlib
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from part_file import PartFile, read_json, write_json
from probe import COMPILED, EAGER, MODES, probe
from run import environment
from study import cost_line, cpus
from workers import Workers

POLL_SECONDS = 2.0
LOOKS = 4  # at what is in hand, of which the highest counts: between two tasks a process has none
STARTING_SECONDS = 60.0  # of a process, in which it imports, and waits for the corpus
RESERVE_SECONDS = 20.0  # of the whole time, in which processes stop
PATIENCE_SECONDS = 10.0
CORES_PER_PROCESS = 1.3
MOST_PROBED = 16
TOY = {"tokens_per_parameter": 0.05, "max_validation_tokens": 4096, "training_bytes": 500_000}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", type=Path, help="configurations of studies, the most important first")
    parser.add_argument("--minutes", type=float, default=9.0, help="time for everything (default: 9)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument(
        "--data", nargs="+", type=Path, default=[],
        help="where the files are that the studies name, by their names without folders",
    )  # fmt: skip
    parser.add_argument("--set", action="append", default=[], help="a dotted override of every study, KEY=VALUE")
    parser.add_argument("--workers", type=int, help=f"processes (default: a process per {CORES_PER_PROCESS} cores)")
    parser.add_argument(
        "--compile", choices=[*MODES, "probe"], default=EAGER,
        help="compile models, also with CUDA graphs, or try for --probe-seconds each which is faster (default: no)",
    )  # fmt: skip
    parser.add_argument("--probe-seconds", type=float, default=10.0, help="of training in each mode (default: 10)")
    parser.add_argument("--work", type=Path, help="folder of weights and caches (default: a temporary one)")
    parser.add_argument("--rehearse", action="store_true", help="toy sizes on the CPU: does everything work?")
    options = parser.parse_args(arguments)
    options.studies = [path for path in options.data if path.suffix in (".yaml", ".yml")] + options.studies
    options.data = [path for path in options.data if path.suffix not in (".yaml", ".yml")]
    if not options.studies:
        parser.error("give one study's configuration or more")
    if not 0 < options.minutes < float("inf"):
        parser.error(f"--minutes: {options.minutes} is not a number above 0")
    if options.workers is not None and options.workers < 1:
        parser.error(f"--workers: {options.workers} is not 1 or more")
    missing = [path for path in [*options.studies, *options.data] if not path.exists()]
    if missing:
        parser.error(f"{missing[0]} does not exist")
    try:
        options.configs = [load(path, options) for path in options.studies]
    except ValueError as error:
        parser.error(str(error))
    names = [config.name for config in options.configs]
    for name in names:
        if names.count(name) > 1:
            parser.error(f"two studies are called {name!r}; give one of them another `name`")
    return options


def load(path: Path, options: argparse.Namespace) -> Any:
    """Read a study's configuration, with its files where they are here."""
    from hf_progressive.config import load_study_config

    config = load_study_config(path)
    data = config.ladder.data
    here = {file.name: str(file.resolve()) for file in options.data}
    overrides = []
    for key in ("files", "validation_files"):
        named = [str(file) for file in getattr(data, key) or ()]
        absent = [file for file in named if Path(file).name not in here and not Path(file).exists()]
        if absent and not any(item.startswith(f"ladder.data.{key}=") for item in options.set):
            raise ValueError(f"--data: {path} reads {absent[0]}, which is not among the files given")
        if named:
            found = [here.get(Path(file).name, str(Path(file).resolve())) for file in named]
            overrides.append(f"ladder.data.{key}={found}")
    if options.rehearse:
        overrides += [
            f"ladder.training.tokens_per_parameter={TOY['tokens_per_parameter']}",
            f"ladder.data.max_validation_tokens={TOY['max_validation_tokens']}",
            f"ladder.data.tokenizer.training_bytes={TOY['training_bytes']}",
            f"seeds=[{config.seeds[0]}]", "learning_rates={}",
        ]  # fmt: skip
    return load_study_config(path, [*overrides, *options.set])


class Study:
    """One study's folders, processes, and what has come of it.

    Args:
        config: The study.
        out: The folder of all results.
        work: The work folder.
        env: The processes' environment.
    """

    def __init__(self, config: Any, out: Path, work: Path, env: dict[str, str]) -> None:
        self.config = config
        self.name, self.out, self.root = config.name, out / config.name, work / config.name / "study"
        self.workers = Workers(config, self.root, work / config.name, "process", env)
        self._last_start = 0.0
        self._looks: collections.deque[int] = collections.deque([0], maxlen=LOOKS)
        (self.root / "results").mkdir(parents=True, exist_ok=True)
        (self.out / "results").mkdir(parents=True, exist_ok=True)
        _copy_new(self.out / "results", self.root / "results")
        self._began = time.time()

    def start(self, number: int) -> None:
        """Start some processes."""
        self.workers.start(number)
        self._last_start = time.monotonic()

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return 0 in self.workers.codes

    @property
    def broken(self) -> list[int]:
        """What processes ended with that did not end well."""
        return [code for code in self.workers.codes if code not in (None, 0)]

    def look(self) -> None:
        """Take over what is new, and see how many processes have a task in hand."""
        _copy_new(self.root / "results", self.out / "results")
        with contextlib.suppress(FileNotFoundError):
            if (self.root / "study.json").stat().st_mtime >= self._began:
                _copy(self.root / "study.json", self.out / "study.json")
        self._looks.append(self.workers.busy())

    @property
    def active(self) -> int:
        """Processes that need a core: those with a task in hand; soon after their start, all."""
        if time.monotonic() - self._last_start < STARTING_SECONDS:
            return self.workers.running
        return min(self.workers.running, max(self._looks))

    def summary(self) -> dict[str, Any]:
        """Return how far the study has come, and its costs, from its record."""
        record = read_json(self.out / "study.json")
        steps = [(recipe, step) for recipe in record.get("recipes", []) for step in recipe["rungs"]]
        entry = {
            "study": self.name, "finished_runs": record.get("finished", 0), "planned_runs": record.get("runs"),
            "complete": record.get("complete", False), "failed": record.get("failed", []), "recipes": [
                {
                    "recipe": recipe["name"], "rung": step["child"], "seeds": step["seeds"], "eta": step["eta"],
                    "gap_bits_per_byte": step["gap_bits_per_byte"], "last_model_cost": step["last_model_cost"],
                }
                for recipe, step in steps
            ],
        }  # fmt: skip
        return entry | ({"broken_processes": self.broken} if self.broken else {})


def _copy(source: Path, target: Path) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copyfile(source, temporary)
    os.replace(temporary, target)


def _copy_new(source: Path, target: Path) -> None:
    for path in source.glob("[!.]*.json"):
        if not (target / path.name).exists():
            _copy(path, target / path.name)


def fill(studies: list[Study], processes: int) -> None:
    """Start processes for those that have nothing to do, in the first study that has not all of them yet."""
    free = processes - sum(study.active for study in studies)
    for study in studies:
        if free <= 0:
            return
        if not study.complete:
            started = min(free, processes - len(study.workers.processes))
            if started > 0:
                study.start(started)
                free -= started


def carry_out(studies: list[Study], processes: int, file: PartFile, end: float) -> None:
    """Carry out studies until all are done, or the time is over."""
    try:
        while time.monotonic() < end and not all(study.complete and not study.workers.running for study in studies):
            fill(studies, processes)
            time.sleep(POLL_SECONDS)
            for study in studies:
                study.look()
            report(studies, file)
            if all(len(study.broken) >= processes for study in studies if not study.complete):
                break
    finally:
        for study in studies:
            study.workers.ask_to_stop()
        until = time.monotonic() + PATIENCE_SECONDS
        for study in studies:
            study.workers.end(patience=max(0.0, until - time.monotonic()))
            study.look()
        file.out_of_time = not all(study.complete for study in studies)
        report(studies, file)
    failed = [study for study in studies if len(study.broken) >= processes and not study.complete]
    if failed and time.monotonic() < end:
        raise RuntimeError(f"{failed[0].name}: all its processes ended with codes {failed[0].broken}; see the log")


def prepare(studies: list[Study], processes: int, end: float) -> None:
    """Make the first study's text ready, and copy it to those that read the same."""
    first = studies[0]
    if not (first.root / "data").exists():
        first.workers.prepare(processes, max(1.0, end - time.monotonic()))
    for study in studies[1:]:
        ladder, other = study.config.ladder, first.config.ladder
        same = (ladder.data, ladder.model.context) == (other.data, other.model.context)
        if same and (first.root / "data").exists() and not (study.root / "data").exists():
            shutil.copytree(first.root / "data", study.root / "data")


def report(studies: list[Study], file: PartFile) -> None:
    """Write how far all have come."""
    entries = [study.summary() for study in studies]
    lines = []
    for entry in entries:
        done = "" if entry["complete"] else ", not finished"
        lines.append(f"{entry['study']}: {entry['finished_runs']} of {entry['planned_runs']} runs{done}")
        lines += [f"    {cost_line(recipe)}" for recipe in entry["recipes"]]
    file.update(studies=entries, summary=lines)


def main(arguments: list[str] | None = None) -> int:
    """Carry out the studies and print what each has found."""
    options = parse(arguments)
    end = time.monotonic() + 60 * options.minutes - RESERVE_SECONDS
    out = options.out.resolve()
    processes = options.workers or max(1, int(cpus() / CORES_PER_PROCESS))
    with contextlib.ExitStack() as stack:
        work = options.work
        if work is None:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        work = work.resolve()
        env = environment(work, rehearse=options.rehearse) | {
            "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"
        }  # fmt: skip
        os.environ |= {name: env[name] for name in ("CUDA_VISIBLE_DEVICES",) if name in env}
        file = stack.enter_context(PartFile(out / "studies.json", "studies", rehearsal=options.rehearse))
        mode = options.compile
        if mode == "probe":
            config_file = work / "probe" / "study.json"
            write_json(config_file, options.configs[0].to_dict())
            tried = min(processes, MOST_PROBED)
            found = probe(config_file, work / "probe", processes=tried, seconds=options.probe_seconds, env=env)
            file.update(probe=found)
            print(found, flush=True)
            mode = found["fastest"]
        file.update(processes=processes, compile=mode)
        env |= MODES.get(mode, MODES[COMPILED])
        studies = [Study(config, out, work, env) for config in options.configs]
        prepare(studies, max(1, cpus() // 2), end)
        carry_out(studies, processes, file, end)
    print("\n".join(file.record["summary"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
