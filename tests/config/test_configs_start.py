"""Every file in configs/ is started as users start it: the installed command in a process without tests' settings.

Only sizes and where the data lie are changed; workers, streaming, precision, reporting, evaluations and what is kept
are as shipped. What each file in configs/accelerate is for here:

| file | here |
|---|---|
| cpu | `accelerate launch` of trunk_small, one process, as `make ladder` does |
| ddp, multi_gpu, multi_node | a ladder in two processes, on one machine |
| deepspeed_zero1, 2, 3, fsdp2 | composed; tests/distributed/test_engines.py trains with them |

Run them with `pytest -m slow -k configs_start`.
"""

import contextlib
import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from accelerate.commands import launch
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from datasets import Dataset
from environment import user_environment

from hf_progressive import cli

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
COMMAND = Path(sys.executable).with_name("hf-progressive")
SECONDS = 400

SMALL_TRAINING = ["training.batch_tokens=256", "training.micro_batch_size=2", "training.tokens_per_parameter=0.1"]
SMALL_DATA = [
    "data.max_validation_tokens=1024",
    "data.tokenizer.vocab_size=300",
    "data.tokenizer.training_bytes=50_000",
]
SMALL_DIAL = ["model.context=32", "model.aspect_ratio=8", "model.head_dim=8", "phi.fisher.sequences=8"]
SMALL_DIAL += [*SMALL_TRAINING, *SMALL_DATA]
LADDERS = {
    "ladder_tiny": [*SMALL_TRAINING, *SMALL_DATA, "model.context=32"],
    "ladder_small": [
        *(*SMALL_TRAINING, *SMALL_DATA, "model.context=32"),
        "rungs=[{name: l2w16, n_layer: 2, n_embd: 16, n_head: 2}, {name: l2w24, n_layer: 2, n_embd: 24, n_head: 3}]",
    ],
    "trunk_small": [
        *(*SMALL_TRAINING, *SMALL_DATA, "model.context=32"),
        "rungs=[{name: l1w24, n_layer: 1, n_embd: 24, n_head: 3, until: 0.5},"
        " {name: l2w24, n_layer: 2, n_embd: 24, n_head: 3}]",
    ],
    "trunk_l16": [
        *(*SMALL_TRAINING, *SMALL_DATA, "model.context=32"),
        "model.fields={hidden_size: 16, intermediate_size: 40, num_attention_heads: 2}",
        "rungs=[{name: l1, num_hidden_layers: 1, until: 0.5}, {name: l2, num_hidden_layers: 2}]",
    ],
    "ladder_d10_d18": [*SMALL_DIAL, "rungs=[d2, d3]", "cold=[d3]"],
    "validation_d15_d16": [*SMALL_DIAL, "rungs=[d2, d3]"],
}
"""Sizes, by configuration."""

STUDIES = {
    "study_tiny": ["seeds=[0]", "ladder.training.tokens_per_parameter=0.3"],
    "study_trunk_tiny": ["seeds=[0]", "ladder.training.tokens_per_parameter=1"],
    "study_books": [
        *("seeds=[0]", "ladder.model.context=32", "ladder.data.tokenizer.vocab_size=300"),
        *("ladder.data.max_validation_tokens=1024", "ladder.training.batch_tokens=128"),
        *("ladder.training.tokens_per_parameter=0.5", "ladder.training.micro_batch_size=4"),
        "ladder.rungs=[{name: l5w64, n_layer: 1, n_embd: 16, n_head: 2},"
        " {name: l6w64, n_layer: 2, n_embd: 16, n_head: 2}, {name: l6w72, n_layer: 2, n_embd: 24, n_head: 3},"
        " {name: l7w72, n_layer: 3, n_embd: 24, n_head: 3}]",
    ],
}
LAUNCHED = {
    "ladder_tiny": "ddp",
    "ladder_small": "ddp",
    "trunk_small": "cpu",
    "trunk_l16": "multi_gpu",
    "ladder_d10_d18": "multi_gpu",
    "validation_d15_d16": "multi_node",
}
"""Each ladder's file in configs/accelerate."""

ALONE = ("ladder_small", "trunk_l16", "ladder_d10_d18")
"""Of each kind one, without a launcher: a chain, a trunk and a dial of a corpus that streams."""

ENGINES = {  # what Accelerate must be told, which the launched processes read from the environment
    "deepspeed_zero1": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"},
    "deepspeed_zero2": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"},
    "deepspeed_zero3": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
    "fsdp2": {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"},
}


def test_no_configuration_is_left_out() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {*LADDERS, *STUDIES}
    assert {path.stem for path in (CONFIGS / "accelerate").glob("*.yaml")} == {*LAUNCHED.values(), *ENGINES}
    assert set(LAUNCHED) == set(LADDERS)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one corpus as JSON Lines and as parquet, with other documents to validate on."""
    folder = tmp_path_factory.mktemp("corpus")
    texts = [" ".join(f"{n} and {m} make {n + m}." for m in range(n % 7, n % 7 + 30)) for n in range(1500)]
    (folder / "documents.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    Dataset.from_dict({"text": texts[50:]}).to_parquet(folder / "train.parquet")
    Dataset.from_dict({"text": texts[:50]}).to_parquet(folder / "validation.parquet")
    return folder


def production() -> dict[str, str]:
    """A user's environment; one thread, as `make ladder` runs models this small. SIGABRT prints the stacks."""
    return {**user_environment(), "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}


class Started:
    """A command and the processes that it starts, all of which a machine that goes down takes with it."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.log = log
        with open(log, "a") as file:
            self.process = subprocess.Popen(command, env=production(), stdout=file, stderr=file, cwd=ROOT)

    def kill_once(self, folder: Path, pattern: str) -> None:
        """Kill all of it as soon as something has been written."""
        deadline = time.monotonic() + SECONDS
        while not any(folder.glob(pattern)):
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.02)
        self.kill()
        assert self.process.wait() == -signal.SIGKILL, "it was over before it could be killed"

    def kill(self) -> None:
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def processes(self) -> list[psutil.Process]:
        # The launcher first, or it ends the others. It gives them sessions of their own, so that a signal to its group
        # leaves them.
        return [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]

    def where_they_stand(self) -> str:
        """Return the stacks of all processes, which end with that, each under its number and command."""
        stacks, said = [], len(self.log.read_bytes())
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                stacks.append(f"{process.pid}, child of {process.ppid()}: {' '.join(process.cmdline())[:80]}\n")
                process.send_signal(signal.SIGABRT)
                time.sleep(0.5)
                printed = self.log.read_bytes()
                stacks.append(printed[said:].decode(errors="replace"))
                said = len(printed)
        return "".join(stacks)

    def finish(self) -> None:
        try:
            code = self.process.wait(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            said, stacks = self.said(), self.where_they_stand()
            self.kill()
            raise AssertionError(f"not finished in {SECONDS} s: {said}\n{stacks}") from None
        assert code == 0, self.said()

    def said(self) -> str:
        return self.log.read_text()[-4000:]


def killed_and_continued(command: list[str], run: Path) -> str:
    """Start a ladder, kill it at its first checkpoint, start it again; return what it said."""
    log = run.with_suffix(".log")
    Started(command, log).kill_once(run, "*/checkpoints/checkpoint-*")
    Started(command, log).finish()
    said = log.read_text()
    assert "continues from checkpoint-" in said
    return said


def check_run(name: str, run: Path, processes: int) -> None:
    """Compare what a run left with what its configuration asks for."""
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    ladder = json.loads((run / "ladder.json").read_text())
    assert ladder["complete"]
    assert ladder["environment"]["processes"] == processes
    for rung in ladder["rungs"]:
        record = json.loads((run / rung / "final" / "rung.json").read_text())
        asked = ladder["config"]["cold"]
        assert (record["cold"] is not None) == (record["parent"] is not None and (asked == "all" or rung in asked))
        assert len(record["curve"]) == 1 + min(config["training"]["evaluations"], record["curve"][-1]["step"])
        kept = ladder["config"]["schedule"] == "trunk" and rung != ladder["rungs"][-1]
        kept = kept or config["training"].get("keep_stable", False)
        assert (run / rung / "stable" / "model.safetensors").is_file() == kept
    reports = config["training"].get("arguments", {}).get("report_to", [])
    assert any(run.rglob("events.out.tfevents*")) == ("tensorboard" in reports)
    check_report(run, "report")


def check_report(folder: Path, name: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert cli.main(["report", str(folder), "--json"]) == 0
    made = json.loads(printed.getvalue().splitlines()[-1])
    assert Path(made["html"]) == folder / f"{name}.html"
    assert (folder / f"{name}.md").stat().st_size > 1000


def ladder_settings(name: str, corpus: Path) -> list[str]:
    return [*LADDERS[name], "data.source=json", f"data.files=[{corpus / 'documents.jsonl'}]", "data.name=null"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ALONE)
def test_configs_start_and_continue_in_one_process(name: str, corpus: Path, tmp_path: Path) -> None:
    command = [str(COMMAND), "ladder", str(CONFIGS / f"{name}.yaml"), "--output-dir", str(tmp_path / "run")]
    killed_and_continued([*command, "--set", *ladder_settings(name, corpus)], tmp_path / "run")
    check_run(name, tmp_path / "run", processes=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", LADDERS)
def test_configs_start_and_continue_under_accelerate_launch(name: str, corpus: Path, tmp_path: Path) -> None:
    launcher = LAUNCHED[name]
    command = [str(COMMAND.with_name("accelerate")), "launch", *launch_options(launcher), "--main_process_port", "0"]
    command += [str(ROOT / "examples" / "run_ladder.py"), "--config", str(CONFIGS / f"{name}.yaml")]
    command += ["--output-dir", str(tmp_path / "run"), *ladder_settings(name, corpus)]
    killed_and_continued(command, tmp_path / "run")
    check_run(name, tmp_path / "run", processes=1 if launcher == "cpu" else 2)


def launch_options(name: str) -> list[str]:
    """What a machine of two cores changes in a file of configs/accelerate."""
    processes = [] if name == "cpu" else ["--num_processes", "2"]
    return ["--config_file", str(CONFIGS / "accelerate" / f"{name}.yaml"), *processes, "--num_machines", "1"]


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_configs_start_studies_and_continue(name: str, corpus: Path, tmp_path: Path) -> None:
    """One process is killed with the first model trained; two that share the folder do the rest."""
    run = tmp_path / "run"
    command = [str(COMMAND), "study", str(CONFIGS / f"{name}.yaml"), "--output-dir", str(run), "--set", *STUDIES[name]]
    if name == "study_books":
        command += [f"ladder.data.files=[{corpus / 'train.parquet'}]"]
        command += [f"ladder.data.validation_files=[{corpus / 'validation.parquet'}]"]
    Started(command, tmp_path / "first.log").kill_once(run, "results/*.json")
    both = [Started(command, tmp_path / f"{process}.log") for process in ("one", "other")]
    for process in both:
        process.finish()
    record = json.loads((run / "study.json").read_text())
    assert (record["complete"], record["failed"]) == (True, [])
    check_report(run, "study")


@pytest.mark.parametrize("name", ENGINES)
def test_engines_are_composed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`accelerate launch` takes the file and tells its processes which engine to use."""
    environments: list[dict[str, str]] = []
    deepspeed, others = (
        lambda args: environments.append(prepare_deepspeed_cmd_env(args)[1]),
        lambda args: environments.append(prepare_multi_gpu_env(args)),
    )
    monkeypatch.setattr(launch, "deepspeed_launcher", deepspeed)
    monkeypatch.setattr(launch, "multi_gpu_launcher", others)
    launch.launch_command(launch.launch_command_parser().parse_args([*launch_options(name), "train.py"]))
    (environment,) = environments
    assert environment["ACCELERATE_MIXED_PRECISION"] == "bf16"
    assert {key: environment.get(key, "").lower() for key in ENGINES[name]} == ENGINES[name]
