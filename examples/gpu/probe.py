"""Which is faster for small models in many processes at once: eager, compiled, or compiled with CUDA graphs?

A small model's step takes as long as its kernels take to launch, a few hundred of them, so that the processor decides.
Compilation leaves fewer, CUDA graphs one; but every training run pays for it at its start again, from the cache on.

    python probe.py CONFIG.json SECONDS FOLDER

is one of the processes: it trains the study's last rung on synthetic tokens for so long and prints a line of JSON.
"""

import contextlib
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

EAGER, COMPILED, GRAPHS = "no", "yes", "graphs"
MODES: dict[str, dict[str, str]] = {
    EAGER: {"TORCH_COMPILE_DISABLE": "1"},
    COMPILED: {},
    GRAPHS: {"ACCELERATE_DYNAMO_MODE": "reduce-overhead"},
}
"""The environment of each. The configuration stays `compile: auto`: models keep their names, which tell what they are
made of, and a study goes on elsewhere with what was measured here."""

WARMUP_STEPS = 3
PATIENCE_SECONDS = 120.0  # for imports and compilation, besides the time for training


def probe(config_file: Path, folder: Path, *, processes: int, seconds: float, env: dict[str, str]) -> dict[str, Any]:
    """Try all modes, each in as many processes as will share the device, and say which takes the least.

    Returns:
        Per mode the seconds until the first steps are done, with compiled code in the cache, the seconds of a step,
        and those of a whole run, all medians over processes; an error where a process failed. `fastest` names a mode.
    """
    found: dict[str, Any] = {}
    for mode, changes in MODES.items():
        if mode != EAGER:  # one fills the cache, from which every later run compiles
            _run(config_file, folder, mode, 1, 0.0, env | changes)
        found[mode] = _together(_run(config_file, folder, mode, processes, seconds, env | changes))
    timed = {mode: entry["whole_run_seconds"] for mode, entry in found.items() if "error" not in entry}
    return found | {"fastest": min(timed, key=lambda mode: timed[mode]) if timed else EAGER}


def _run(
    config_file: Path, folder: Path, mode: str, processes: int, seconds: float, env: dict[str, str]
) -> list[dict[str, Any]]:
    running = [
        subprocess.Popen(
            [sys.executable, __file__, str(config_file), str(seconds), str(folder / f"{mode}-{number}")],
            env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for number in range(processes)
    ]  # fmt: skip
    until = time.monotonic() + seconds + PATIENCE_SECONDS
    return [_answer(process, until - time.monotonic()) for process in running]


def _answer(process: "subprocess.Popen[str]", seconds: float) -> dict[str, Any]:
    try:
        output, errors = process.communicate(timeout=max(1.0, seconds))
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return {"error": "it took too long"}
    if process.returncode != 0 or not output.strip():
        return {"error": "\n".join(errors.splitlines()[-3:])[-1000:]}
    answer: dict[str, Any] = json.loads(output.splitlines()[-1])
    return answer


def _together(answers: list[dict[str, Any]]) -> dict[str, Any]:
    failed = [answer for answer in answers if "error" in answer]
    if failed:
        return failed[0]
    names = ("start_seconds", "step_seconds", "whole_run_seconds")
    return {name: round(statistics.median(answer[name] for answer in answers), 5) for name in names}


def measure(config_file: Path, seconds: float, folder: Path) -> dict[str, float]:
    """Train the study's last rung for some seconds, as the study would."""
    from configuration import OutOfTime, Stopwatch
    from synthetic import synthetic_corpus

    from hf_progressive.config import StudyConfig, strict_yaml
    from hf_progressive.study.plan import plan_study
    from hf_progressive.training.checkpoints import write_fresh
    from hf_progressive.training.training_run import TrainingRun, train_run

    config = strict_yaml.build(StudyConfig, json.loads(config_file.read_text(encoding="utf-8")))
    size, training = plan_study(config, fingerprint="").ladder.rungs[-1].size, config.ladder.training
    corpus = synthetic_corpus(
        folder, vocab_size=size.config.vocab_size, context=config.ladder.model.context, blocks=512
    )
    write_fresh(size.config, corpus.tokenizer, folder / "init", seed=0)
    run = TrainingRun(
        title="probe", init=folder / "init", folder=folder / "run", training=training,
        learning_rate=training.learning_rate, steps=size.steps, first_block=0, flops_per_token=size.flops_per_token,
        checkpoint_steps=frozenset(), phi_until=1.5,
    )  # fmt: skip
    began = time.perf_counter()
    watch: Any = Stopwatch(float("inf"), lambda taken: _begin(watch, taken, seconds))
    with contextlib.suppress(OutOfTime):
        train_run(run, corpus, None, [watch])
    steps = watch.seconds
    start = watch.marks[WARMUP_STEPS] - began
    step = statistics.median(steps[WARMUP_STEPS:])
    return {"start_seconds": start, "step_seconds": step, "whole_run_seconds": start + size.steps * step}


def _begin(watch: Any, taken: list[float], seconds: float) -> None:
    # The time counts from the first steps on, however long compilation took.
    if len(taken) == WARMUP_STEPS:
        watch.deadline = time.monotonic() + seconds


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3]))))
