"""The rung loop: what a run leaves, how it goes on after an interruption, and what it refuses."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from ladder_fixtures import RUNGS, ladder_mapping, write_corpus, write_ladder
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, pipeline

from hf_progressive import cli, storage
from hf_progressive.config import LadderConfig, load_ladder_config, strict_yaml
from hf_progressive.ladder.rung_loop import RungResult, run_ladder
from hf_progressive.planning.ladder_plan import plan_ladder
from hf_progressive.planning.pricing import Cluster, LadderPrice
from hf_progressive.planning.sizing import DIAL_FIELDS
from hf_progressive.publishing import prepare_publication
from hf_progressive.records.reading import read_run
from hf_progressive.storage.locks import try_lock
from hf_progressive.training import training_run as training_run
from hf_progressive.training.checkpoints import newest_complete_checkpoint

NAMES = [rung["name"] for rung in RUNGS]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[RungResult]]:
    """A configuration, the folder of its finished run, and what the run returned."""
    folder = tmp_path_factory.mktemp("ladder")
    path = write_ladder(folder)
    return path, folder / "run", run_ladder(load_ladder_config(path), folder / "run")


def final_files(run: Path) -> dict[str, object]:
    """Everything in the rungs' final folders, but for the times in rung.json and that file's digest."""
    found: dict[str, object] = {}
    for name in NAMES:
        final = run / name / "final"
        for path in (path for path in final.rglob("*") if path.is_file()):
            found[path.relative_to(run).as_posix()] = path.read_bytes()
        record, manifest = (storage.read_json(final / file) for file in ("rung.json", storage.MANIFEST_NAME))
        del record["seconds"], record["throughput"], manifest["files"]["rung.json"]
        if record["cold"]:
            for times in ("seconds", "evaluation_seconds", "throughput"):
                del record["cold"][times]
        found |= {f"{name}/final/rung.json": record, f"{name}/final/{storage.MANIFEST_NAME}": manifest}
    return found


def test_every_rung_is_a_stock_checkpoint(finished: tuple[Path, Path, list[RungResult]]) -> None:
    _, run, results = finished
    assert [result.name for result in results] == NAMES
    for rung, result in zip(RUNGS, results, strict=True):
        storage.check_manifest(result.folder)
        model = AutoModelForCausalLM.from_pretrained(result.folder)
        assert type(model).__name__ == "GPT2LMHeadModel"
        assert (model.config.n_layer, model.config.n_embd) == (rung["n_layer"], rung["n_embd"])
        assert len(AutoTokenizer.from_pretrained(result.folder)) <= model.config.vocab_size
    generate = pipeline("text-generation", model=str(run / NAMES[-1] / "final"))
    assert len(generate("3 and ", max_new_tokens=4, do_sample=False)[0]["generated_text"]) > len("3 and ")


def test_a_grown_rung_starts_as_its_parent(finished: tuple[Path, Path, list[RungResult]]) -> None:
    _, run, results = finished
    tokens = torch.randint(300, (2, 32), generator=torch.Generator().manual_seed(0))
    for parent, child in zip(NAMES, NAMES[1:], strict=False):
        before = AutoModelForCausalLM.from_pretrained(run / parent / "final")(tokens).logits
        after = AutoModelForCausalLM.from_pretrained(run / child / "init")(tokens).logits
        assert (after - before).abs().max() <= 1e-5 * before.abs().max()
    for result in results[1:]:
        record = result.record
        assert record["max_abs_logit_diff"] <= 1e-5 * record["max_abs_logit"]


def test_the_record_adds_up(finished: tuple[Path, Path, list[RungResult]]) -> None:
    path, run, results = finished
    first, second, third = (result.record for result in results)
    validated = (run / "data" / "validation.bin").stat().st_size // 2  # tokens, in two bytes each
    priced = LadderPrice(plan=plan_ladder(load_ladder_config(path)), cluster=Cluster(count=1)).to_dict()
    for record, price in zip((first, second, third), priced["rungs"], strict=True):
        spent = len(record["curve"]) * validated * record["flops"]["per_token"] / 3
        assert record["flops"]["evaluation"] == pytest.approx(spent)
        assert price["validation"]["points"] == len(record["curve"])
        assert record["seconds"]["evaluate"] > 0
        for name, estimate in record["estimates"].items():
            assert price["estimates"]["by_term"][name] == estimate["flops"]
    baseline = third["cold"]
    spent = len(baseline["curve"]) * validated * third["flops"]["per_token"] / 3
    assert baseline["evaluation_flops"] == pytest.approx(spent)
    assert 0 < baseline["evaluation_seconds"] < baseline["seconds"]
    assert first["parent"] is None
    assert first["cold"] is None
    assert first["flops"]["inherited"] == 0
    for parent, child in ((first, second), (second, third)):
        estimates = {name: estimate["flops"] for name, estimate in parent["estimates"].items()}
        assert child["parent"] == parent["name"]
        assert child["flops"]["fisher"] == estimates["fisher"] > 0
        assert child["flops"]["subspace"] == estimates["subspace"] > 0
        own = parent["flops"]["train"] + parent["flops"]["fisher"] + parent["flops"]["subspace"]
        assert child["flops"]["inherited"] == own + parent["flops"]["inherited"]
        assert child["data"]["first_block"] == parent["data"]["first_block"] + parent["data"]["blocks"]
        assert child["curve"][0]["flops"] == sum(estimates.values())
        assert child["curve"][-1]["flops"] == pytest.approx(sum(estimates.values()) + child["flops"]["train"])
    for record in (first, second, third):
        steps = [point["step"] for point in record["curve"]]
        assert steps[0] == 0
        assert steps[-1] * 128 == record["tokens"]
        assert record["flops"]["train"] == record["tokens"] * record["flops"]["per_token"]
        assert record["curve"][-1]["bits_per_byte"] == record["bits_per_byte"]
    cold = third["cold"]
    assert cold["tokens"] == third["cold_tokens"]
    assert third["gap_bits_per_byte"] == pytest.approx(third["bits_per_byte"] - cold["bits_per_byte"])
    assert third["c_parent_over_c_cold"] == pytest.approx(second["cold_flops"] / third["cold_flops"])
    if third["flops_to_match"] is not None:
        saved = cold["flops"] - third["flops_to_match"]
        assert third["eta"] == pytest.approx(saved / third["flops"]["inherited"])
        assert third["saving"] == pytest.approx(saved / cold["flops"])


def test_the_record_says_how_fast_it_trained_and_the_log_only_what_it_learned(
    finished: tuple[Path, Path, list[RungResult]],
) -> None:
    _, run, results = finished
    for record in (result.record for result in results):
        speed, spent = record["throughput"], record["throughput"]["seconds"]
        assert set(spent) == {"training", "evaluation", "saving"}
        assert min(spent.values()) > 0
        assert sum(spent.values()) <= record["seconds"]["train"] + record["seconds"].get("evaluate", 0.0)
        assert speed["tokens"] == record["tokens"]
        assert speed["tokens_per_second"] == pytest.approx(record["tokens"] / spent["training"])
        assert (speed["mfu"], speed["device"], speed["processes"]) == (None, "cpu", 1)
        assert [entry["step"] for entry in speed["log"]] == [entry["step"] for entry in record["training_log"]]
        assert all(entry["tokens_per_second"] > 0 for entry in speed["log"])
        assert not any("tokens_per_second" in entry for entry in record["training_log"])
        # The speeds of the stretches between logs are those of the whole.
        steps = [0] + [entry["step"] for entry in speed["log"]]
        stretches = [
            (after - before) * 128 / entry["tokens_per_second"]
            for before, after, entry in zip(steps, steps[1:], speed["log"], strict=False)
        ]
        assert sum(stretches) == pytest.approx(spent["training"], rel=0.2, abs=0.2)
    assert len(read_run(run).rungs) == len(results)


def test_nothing_published_tells_where_the_run_lay(finished: tuple[Path, Path, list[RungResult]]) -> None:
    path, run, results = finished
    corpus = storage.read_json(run / "data" / "corpus.json")
    for result in results:
        assert result.record["growth"] is None or result.record["growth"]["source"]["name"] == result.record["parent"]
        assert result.record["data"]["block_tokens"] == 32
        assert result.record["data"]["corpus_blocks"] == corpus["counts"]["train_tokens"] // 32
        assert result.record["data"]["fingerprint"] == corpus["fingerprint"]
        files = prepare_publication(result.folder, f"org/{result.name}").files
        assert (result.record["growth"] is None) == ("growth.json" not in files)
        for name, file in files.items():
            content = file.content if isinstance(file.content, bytes) else file.content.read_bytes()
            for place in (str(path.parent), str(ROOT), str(Path.home())):
                assert place.encode() not in content, f"{name} holds {place}"


def test_the_penalty_is_logged_and_absent_from_the_first_rung(
    finished: tuple[Path, Path, list[RungResult]],
) -> None:
    _, run, results = finished
    first, second, _ = (result.record for result in results)
    assert first["phi"] is None
    assert not any("phi/ewc" in entry for entry in first["training_log"])
    assert second["phi"]["ewc_lambda"] == 0.1
    weights = [entry.get("phi/lambda", 0.0) for entry in second["training_log"]]
    assert 0.0 < weights[0] <= 0.1
    assert weights == sorted(weights, reverse=True)
    assert weights[-1] == 0.0, "the default schedule is over by the middle of the run"
    assert any(entry.get("phi/ewc", 0) > 0 for entry in second["training_log"])
    fisher = load_file(run / NAMES[0] / "final" / "phi" / "fisher.safetensors")
    assert set(fisher) == set(dict(AutoModelForCausalLM.from_pretrained(run / NAMES[0] / "final").named_parameters()))


def test_the_baseline_reads_what_the_child_reads(finished: tuple[Path, Path, list[RungResult]]) -> None:
    config = load_ladder_config(finished[0])
    third = plan_ladder(config).rungs[2]
    assert third.trains_baseline
    assert third.first_block == sum(r.steps for r in plan_ladder(config).rungs[:2]) * 128 // 32


def test_a_finished_run_is_not_run_again(finished: tuple[Path, Path, list[RungResult]]) -> None:
    path, run, results = finished
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*.safetensors")}
    again = run_ladder(load_ladder_config(path), run)
    assert [result.record for result in again] == [result.record for result in results]
    assert {file: file.stat().st_mtime_ns for file in run.rglob("*.safetensors")} == before


def test_a_changed_configuration_is_refused_by_name(finished: tuple[Path, Path, list[RungResult]]) -> None:
    path, run, _ = finished
    config = load_ladder_config(path, ["phi.gamma=0.5", "rungs.2.n_layer=3"])
    with pytest.raises(ValueError, match=r"rungs\.2\.n_layer: 2 there, 3 here; phi\.gamma: 0\.001 there, 0\.5 here"):
        run_ladder(config, run)


def test_a_rung_can_grow_from_before_its_parents_decay(tmp_path: Path) -> None:
    path = write_ladder(tmp_path)
    config = load_ladder_config(path, ["growth.parent=stable", "cold=none", f"rungs={RUNGS[:2]}"])
    run_ladder(config, tmp_path / "run")
    tokens = torch.randint(300, (2, 32), generator=torch.Generator().manual_seed(0))
    stable, final, child = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "run" / folder)(tokens).logits
        for folder in ("l1w16/stable", "l1w16/final", "l2w16/init")
    )
    assert (child - stable).abs().max() <= 1e-5 * stable.abs().max()
    assert (child - final).abs().max() > 1e-3 * stable.abs().max()


class _Interruption(TrainerCallback):
    """Break off at a given step, as a failing machine would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: object, state: object, control: object, **kwargs: object) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def test_an_interrupted_run_ends_with_the_same_bits(
    finished: tuple[Path, Path, list[RungResult]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, run, _ = finished
    config = load_ladder_config(path)
    build = training_run.ProgressiveTrainer.__init__

    def interrupted(self: object, *args: object, **kwargs: object) -> None:
        build(self, *args, **kwargs)
        self.add_callback(_Interruption(step=9))

    monkeypatch.setattr(training_run.ProgressiveTrainer, "__init__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_ladder(config, tmp_path / "run")
    monkeypatch.undo()
    run_ladder(config, tmp_path / "run")
    assert final_files(tmp_path / "run") == final_files(run)


class _Told(TrainerCallback):
    """Let SIGTERM come within a given step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: object, state: object, control: object, **kwargs: object) -> None:
        if state.global_step == self.step - 1:
            signal.raise_signal(signal.SIGTERM)


def test_sigterm_leaves_a_checkpoint_of_that_step_and_its_penalty(
    finished: tuple[Path, Path, list[RungResult]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Step 7 of the second rung, where no checkpoint is due: it goes on in silence, with the same bits."""
    path, run, _ = finished
    config = load_ladder_config(path)
    build = training_run.ProgressiveTrainer.__init__

    def told(self: object, *args: object, **kwargs: object) -> None:
        build(self, *args, **kwargs)
        if kwargs["penalty"] is not None:
            self.add_callback(_Told(step=7))

    monkeypatch.setattr(training_run.ProgressiveTrainer, "__init__", told)
    with pytest.raises(SystemExit) as caught:
        run_ladder(config, tmp_path / "run")
    monkeypatch.undo()
    assert caught.value.code == 143
    left = newest_complete_checkpoint(tmp_path / "run" / NAMES[1] / "checkpoints")
    assert left.name == "checkpoint-7"
    assert (left / "phi" / "penalty.json").samefile(left.parent / "phi" / "penalty.json")  # once on the disk
    again = LadderConfig(**{**vars(config), "phi": dataclasses.replace(config.phi, gamma=0.0)})
    record = storage.read_json(tmp_path / "run" / "ladder.json")
    storage.write_json(tmp_path / "run" / "ladder.json", {**record, "config": again.to_dict()})
    with pytest.raises(ValueError, match="checkpoint-7 was trained with another penalty: its subspace differ"):
        run_ladder(again, tmp_path / "run")
    storage.write_json(tmp_path / "run" / "ladder.json", record)
    caplog.clear()
    run_ladder(config, tmp_path / "run")
    assert not [e for e in caplog.records if e.name.startswith("hf_progressive") and e.levelname == "WARNING"]
    assert final_files(tmp_path / "run") == final_files(run)


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(finished: tuple[Path, Path, list[RungResult]], tmp_path: Path) -> None:
    path, run, _ = finished
    command = [sys.executable, str(ROOT / "examples" / "run_ladder.py"), "--config", str(path)]
    command += ["--output-dir", str(tmp_path / "run")]
    draw, kills = random.Random(7), 0
    while kills < 5:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 120
        marks = len(list(tmp_path.rglob("checkpoint-*"))) + len(list(tmp_path.rglob("rung.json")))
        # Wait until this attempt has done something, then strike at a random moment.
        while process.poll() is None and time.monotonic() < deadline:
            if len(list(tmp_path.rglob("checkpoint-*"))) + len(list(tmp_path.rglob("rung.json"))) > marks:
                break
            time.sleep(0.05)
        time.sleep(draw.uniform(0.0, 1.5))
        if process.poll() is not None:
            assert process.returncode == 0, process.stderr.read()
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert kills >= 3, "the run was over before it could be killed often enough to mean anything"
    subprocess.run(command, check=True, capture_output=True)
    assert final_files(tmp_path / "run") == final_files(run)
    report = {"plots", "report.html", "report.md"}  # which the command writes, beside what `run_ladder` does
    assert {path.name for path in (tmp_path / "run").iterdir()} - report == {path.name for path in run.iterdir()}
    assert not [p for p in (tmp_path / "run").rglob("*") if p.suffix == ".tmp" or p.name in (".saving", "trained")]


@pytest.mark.slow
def test_two_processes_train_the_same_family(finished: tuple[Path, Path, list[RungResult]], tmp_path: Path) -> None:
    path, run, results = finished
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command += [str(ROOT / "examples" / "run_ladder.py"), "--config", str(path), "--output-dir", str(tmp_path / "run")]
    subprocess.run(
        command,
        check=True,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
    )
    for name, result in zip(NAMES, results, strict=True):
        other = json.loads((tmp_path / "run" / name / "final" / "rung.json").read_text())
        assert other["environment"]["processes"] == 2
        assert other["bits_per_byte"] == pytest.approx(result.bits_per_byte, abs=2e-5)
        for key, tolerance in (("loss", 1e-5), ("grad_norm", 1e-3)):
            ours, theirs = ([entry[key] for entry in record["training_log"]] for record in (result.record, other))
            assert theirs == pytest.approx(ours, rel=tolerance)
        # In norm: Adam turns the rounding of a gradient entry near zero into a whole step of that entry.
        one, two = (load_file(folder / name / "final" / "model.safetensors") for folder in (run, tmp_path / "run"))
        for key, value in one.items():
            assert (two[key] - value).norm() <= 1e-2 * value.norm(), key


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run the command line, expect exit code 2 and one line on stderr, and return it."""
    assert cli.main(["ladder", *arguments]) == cli.EXIT_BAD_INPUT
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["phi.lamda=1"], "phi.lamda: unknown key"),
        (["seed=high"], "seed: expected a whole number"),
        (["rungs.2.n_layer=1"], "rung l2w24, grown from l2w16: "),
        (["rungs.1.n_head=3"], "rung l2w16: n_head 3 does not divide n_embd 16"),
        (["data.files=[/nowhere/*.jsonl]"], "/nowhere/*.jsonl"),
        (["training.arguments.learning_rte=1"], "training.arguments.learning_rte: unknown argument"),
        (["training.arguments.max_steps=1"], "training.arguments.max_steps: the ladder sets it"),
        (["growth.method=magic"], "magic"),
        (["growth.options={a: 1}"], "growth.options.a: unknown option"),
        (["growth.options={noise: x}"], "growth.options: "),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], message: str
) -> None:
    path = write_ladder(tmp_path)
    line = refused(capsys, str(path), "--output-dir", str(tmp_path / "run"), "--set", *overrides)
    assert message in line


def test_all_failures_are_reported_at_once(tmp_path: Path) -> None:
    mapping = ladder_mapping(write_corpus(tmp_path))
    path = tmp_path / "ladder.yaml"
    path.write_text(yaml.safe_dump(mapping))
    config = load_ladder_config(path, ["rungs.1.n_head=3", "rungs.2.n_head=5"])
    with pytest.raises(ValueError, match=r"rung l2w16: .*; rung l2w24: "):
        plan_ladder(config)


def test_an_empty_corpus_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_ladder(tmp_path)
    (tmp_path / "sums.jsonl").write_text('{"text": ""}\n' * 20)  # as many bytes as the tokenizer has entries
    assert "sums.jsonl" in refused(capsys, str(path), "--output-dir", str(tmp_path / "run"))


def test_a_truncated_parent_is_named_and_left(
    finished: tuple[Path, Path, list[RungResult]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _, results = finished
    source = tmp_path / "parent"
    source.mkdir()
    for file in results[0].folder.iterdir():
        if file.is_file():
            (source / file.name).write_bytes(file.read_bytes())
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    code = cli.main(["grow", str(source), str(tmp_path / "child"), "--set", "n_layer=2"])
    assert code == cli.EXIT_BAD_INPUT
    assert "model.safetensors" in capsys.readouterr().err
    assert not (tmp_path / "child").exists()


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_ladder(tmp_path)
    arguments = ["ladder", str(path), "--output-dir", str(tmp_path / "run")]
    assert cli.main([*arguments, "--set", "training.learning_rate=1e30"]) == cli.EXIT_CHECK_FAILED
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(lines) == 1
    assert "step" in lines[0]


def test_a_second_run_in_the_same_folder_is_kept_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_ladder(tmp_path)
    with try_lock(tmp_path / "run" / ".lock"):
        assert "another run is working in this folder" in refused(
            capsys, str(path), "--output-dir", str(tmp_path / "run")
        )


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("[!s]*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_ladder_can_be_planned(path: Path) -> None:  # studies, study_*.yaml, have their own tests
    plan = plan_ladder(load_ladder_config(path))
    ratios = [a.size.flops / b.size.flops for a, b in zip(plan.rungs, plan.rungs[1:], strict=False)]
    if path.stem != "ladder_tiny":
        assert all(0.6 < ratio < 0.8 for ratio in ratios)
    assert plan.table().count("\n") >= len(plan.rungs)


@pytest.mark.parametrize("family", sorted(DIAL_FIELDS))
def test_a_ladder_of_every_family_can_be_planned(family: str) -> None:
    mapping = {"model": {"family": family, "context": 32}, "rungs": ["d1", "d2"], "training": {"batch_tokens": 256}}
    plan = plan_ladder(strict_yaml.build(LadderConfig, mapping))
    assert plan.rungs[1].growth.preserves_function
    assert plan.rungs[1].config.num_hidden_layers == 2
