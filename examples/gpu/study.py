"""Part 4: what the largest model costs when a trunk grows into it, on Llama models as large as the time allows.

Models are trained from scratch, finished at four shares of 12 tokens per parameter, and as trunks: one run at a
constant rate through a quarter and half of the layers, stacked on top of themselves, that ends in the whole model with
the same decay. Several processes share the device. Results are collected as runs finish, so that the study can end at
any moment.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

from part_file import PartFile, explain, part_arguments, read_json, seconds_left
from workers import Workers

WAIT_SECONDS = 1.0
MANY_CPUS = 8  # from which on the text is tokenized by processes
STOP_SECONDS = 6.0
TEXT_BYTES, TOY_TEXT_BYTES = 600_000_000, 1_500_000
SUFFIXES = {".txt": "text", ".md": "text", ".py": "text", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


def cpus() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def data_section(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return the ladder's `data` section: the files given, or the source text of the installed packages."""
    from design import VOCABULARY

    if options.data:
        kinds = {SUFFIXES.get(path.suffix, "text") for path in options.data}
        if len(kinds) > 1:
            raise ValueError(f"--data: the files are of different kinds ({', '.join(sorted(kinds))}); give one kind")
        source, files = kinds.pop(), [str(path) for path in options.data]
    else:
        source, files = "parquet", [str(folder / "source_text.parquet")]
    return {
        "source": source,
        "files": files,
        "validation_fraction": 0.05 if options.rehearse else 0.01,
        "max_validation_tokens": 4096 if options.rehearse else 524_288,
        "tokenizer": {
            "vocab_size": 512 if options.rehearse else VOCABULARY,
            "training_bytes": 500_000 if options.rehearse else 30_000_000,
        },
    }


def prepare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Collect the text and tokenize it, or wait for the process that does."""
    os.environ.setdefault("RAYON_NUM_THREADS", str(max(1, cpus() // 2)))  # the other parts need cores too
    import source_text
    from design import CONTEXT

    from hf_progressive.config import DataConfig, strict_yaml
    from hf_progressive.data import prepare_corpus

    collected: dict[str, Any] = {}
    if not options.data:
        limit = TOY_TEXT_BYTES if options.rehearse else TEXT_BYTES
        collected = source_text.collect(folder / "source_text.parquet", limit)
    config = strict_yaml.build(DataConfig, data_section(options, folder))
    context = 64 if options.rehearse else CONTEXT
    processes = cpus() // 2 if cpus() >= MANY_CPUS else None
    corpus = prepare_corpus(config, context, folder / "study" / "data", num_proc=processes)
    return {"text": str(options.data or "source text of the installed packages"), **collected, **corpus.summary()}


def outcome(record: dict[str, Any]) -> dict[str, Any]:
    """Return what a study's record says so far, with the cost of the last model alone.

    Args:
        record: What study.json holds.

    Returns:
        Figures over the seeds that are complete, and the record itself without its configuration's repetition.
    """
    found: dict[str, Any] = {
        "finished_runs": record["finished"],
        "planned_runs": record["runs"],
        "failed": record["failed"],
        "last_model": None,
        "recipes": [],
    }
    for recipe in record["recipes"]:
        for rung in recipe["rungs"]:
            cost = rung["last_model_cost"]
            found["recipes"].append(
                {
                    "recipe": recipe["name"], "rung": rung["child"], "seeds": rung["seeds"], "last_model_cost": cost,
                    "gap_bits_per_byte": rung["gap_bits_per_byte"], "eta": rung["eta"],
                }
            )  # fmt: skip
            if recipe["name"] == record["headline"]["recipe"]:
                found |= {"last_model": cost, "seeds": rung["seeds"], "matched": rung["matched"]}
    return found | {"study": record}


def lines_of(found: dict[str, Any], *, complete: bool) -> list[str]:
    """Return the lines of the table."""
    record = found["study"]
    end = record["rungs"][-1]
    lines = [cost_line(entry) for entry in found["recipes"]] or ["last-model cost: no seed is complete"]
    stages = " → ".join([*(stage["name"] for stage in record["recipes"][0]["trunk"]), end["name"]])
    lines.append(
        f"{record['family']} {stages}, {end['parameters'] / 1e6:.1f} M parameters,"
        f" {end['cold_tokens'] / 1e6:.0f} M tokens; {found['finished_runs']} of {found['planned_runs']} runs"
        + ("" if complete else ", not finished")
    )
    for swept in record["learning_rates"]:
        reached = (swept["point"] or {}).get("bits_per_byte")
        if reached is not None:
            kind = "from scratch" if swept["kind"] == "cold" else swept["recipe"] or "trunk"
            lines.append(f"first seed, {kind} at {swept['learning_rate']:g}: {reached:.4f} bits/byte")
    return lines


def cost_line(entry: dict[str, Any]) -> str:
    """Return a recipe's last-model cost with its interval, and how its models compare with the whole budget's."""
    cost, seeds = entry["last_model_cost"], f"{entry['seeds']} seed" + ("s" if entry["seeds"] > 1 else "")
    gap = f"{entry['gap_bits_per_byte']:+.4f} bits per byte above from scratch at the whole budget"
    if cost is None:
        return f"last-model cost not known, {seeds}; {gap} ({entry['recipe']})"
    beyond = f", {cost['extrapolated']} extrapolated" if cost["extrapolated"] else ""
    value = _with_ends(cost["value"], cost["low"], cost["high"])
    return f"last-model cost {value}, {seeds}{beyond}; {gap} ({entry['recipe']})"


def _with_ends(value: float, low: float | None, high: float | None) -> str:
    return f"{value:.3f}" + ("" if low is None or high is None else f" [{low:.3f}, {high:.3f}]")


class Study:
    """The study's processes and what they have found.

    Args:
        file: The part's file.
        folder: The work folder.
        end: When to stop, on the monotonic clock.
    """

    def __init__(self, file: PartFile, folder: Path, end: float) -> None:
        self.file, self.folder, self.end = file, folder, end
        self.root = folder / "study"
        self.taken = 0.0

    def run(self, config: Any, workers: int, name: str) -> bool:
        """Carry out a study with several processes, as far as the time goes; tell whether it came to its end."""
        threads = str(max(1, cpus() // workers))
        env = os.environ | {"OMP_NUM_THREADS": threads, "TORCHINDUCTOR_COMPILE_THREADS": threads}
        processes = Workers(config, self.root, self.folder, name, env)
        try:
            processes.start(workers)
            while time.monotonic() < self.end and processes.running:
                time.sleep(WAIT_SECONDS)
                self.take_over(complete=False)
        finally:
            ended = processes.codes
            processes.end()
        broken = [code for code in ended if code not in (None, 0)]
        if len(broken) == workers:
            raise RuntimeError(f"all {workers} processes of the study ended with codes {broken}; see the log")
        if broken:
            self.file.update(broken_workers=broken)
        complete = not any(code is None for code in ended)
        self.take_over(complete=complete)
        return complete

    def take_over(self, *, complete: bool) -> None:
        """Copy the study's record into the part's file where it has changed."""
        path = self.root / "study.json"
        written = path.stat().st_mtime if path.exists() else 0.0
        record = read_json(path)
        if not record or (written == self.taken and not complete):
            return
        self.taken = written
        found = outcome(record)
        found["study"].pop("config", None)  # it stands in `design`
        self.file.update(**found, complete=complete, summary=lines_of(found, complete=complete))


def main() -> int:
    """Prepare the text, choose the study, and run it until the time is over."""
    parser = part_arguments(__doc__)
    parser.add_argument("--prepare", action="store_true", help="only make the text ready")
    options = parser.parse_args()
    folder = options.work / "study"
    end = time.monotonic() + seconds_left(options) - STOP_SECONDS
    if options.prepare:
        print(prepare(options, folder))
        return 0
    with PartFile(options.json, "study", rehearsal=options.rehearse) as file:
        from design import choose

        from hf_progressive.distributed.accelerators import gpu_named

        gpu = gpu_named(file.record["machine"]["device"])
        peak = None if gpu is None else gpu.peak_flops
        data = data_section(options, folder)
        file.update(data=prepare(options, folder))
        os.environ.pop("RAYON_NUM_THREADS", None)
        left = end - time.monotonic()
        design = choose(data, seconds=left, results=options.results, peak=peak, cpus=cpus(), rehearse=options.rehearse)
        file.update(design=design.reasons | {"config": design.config.to_dict()})
        study = Study(file, folder, end)
        try:
            complete = study.run(design.config, design.workers, "seeds")
        except RuntimeError as error:
            if not design.can_compile:
                raise
            file.update(not_compiled=explain(error))  # uncompiled it is slower, and perhaps it works
            design = design.uncompiled()
            complete = study.run(design.config, design.workers, "uncompiled")
        for number, config in enumerate(design.extensions):
            if complete and time.monotonic() < end:
                complete = study.run(config, design.workers, f"extension-{number}")
        file.out_of_time = not complete
    return 0


if __name__ == "__main__":
    sys.exit(main())
