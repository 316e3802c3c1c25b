"""The command line: exit codes, one line per mistake, one JSON object on the last line of stdout."""

import argparse
import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as distributed
from core_bundle_writer import write_bundle
from transformers import GPT2Config, GPT2LMHeadModel

from hf_progressive import cli
from hf_progressive.cli import parser
from hf_progressive.cli.grow_options import OPTION_HELP
from hf_progressive.data.tokenizer import train_tokenizer
from hf_progressive.distributed.processes import MainProcessFailedError
from hf_progressive.growth.methods import METHODS
from hf_progressive.growth.options import GrowthOptions

ROOT = Path(__file__).parents[2]

COMMANDS = ("grow", "verify", "plan", "ladder", "study", "report", "publish", "core")


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    """A GPT-2 whose norms and biases are not what initialisation leaves."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=64, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(tmp_path / "parent")
    return tmp_path / "parent"


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_grow_then_verify(parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    child = str(tmp_path / "child")
    assert cli.main(["grow", str(parent), child, "--set", "n_layer=3", "n_embd=24", "n_head=3", "--json"]) == 0
    report = last_line(capsys)
    assert report["preserves_function"] is True
    assert cli.main(["verify", str(parent), child, "--json"]) == 0
    check = last_line(capsys)
    assert 0 <= check["max_abs_logit_diff"] <= 1e-5 * check["max_abs_logit"]


def test_options_of_a_method_are_given_by_name_and_what_changes_the_function_is_said(
    parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--method", "split", "--option", "depth_method=stack", "uneven=0.5", "--option", "noise=0"]
    grow = ["grow", str(parent), str(tmp_path / "child"), "--set", "n_layer=4", "n_embd=32", "n_head=4", "--json"]
    assert cli.main([*grow, *options]) == 0
    written = capsys.readouterr()
    assert "by design the function changes: the order of layers of 'stack' does not keep the function" in written.err
    assert "function NOT preserved: max |Δlogit|" in written.err
    report = json.loads(written.out.splitlines()[-1])
    assert report["changes"] == ["the order of layers of 'stack' does not keep the function"]
    assert cli.main(["verify", str(parent), str(tmp_path / "child")]) == cli.EXIT_CHECK_FAILED
    written = capsys.readouterr()
    assert written.out.startswith("function NOT preserved: max |Δlogit|")
    assert "by design the function changes: the order of layers of 'stack' does not keep the function" in written.err
    chosen = json.loads((tmp_path / "child" / "growth.json").read_text(encoding="utf-8"))["options"]
    assert (chosen["depth_method"], chosen["uneven"], chosen["noise"]) == ("stack", 0.5, 0)


def test_help_and_documents_name_every_method_and_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["grow", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    api = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    for name in (method.replace("_", "-") for method in METHODS):
        assert re.search(rf"\b{name}\b", text), name
        assert f"`{name}`" in api, name
    for field in dataclasses.fields(GrowthOptions):
        assert f"| `{field.name}` |" in api, field.name
    assert list(OPTION_HELP) == [field.name for field in dataclasses.fields(GrowthOptions)]


def test_a_method_goes_by_the_name_that_people_know_and_options_have_flags(
    parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grow = ["grow", str(parent), "--set", "n_layer=4", "--no-verify", "--no-checksums", "--json"]
    for output, options in {
        "known": ["--method", "llama-pro"],
        "placed": ["--method", "identity", "--depth-position", "0", "1"],
        "stacked": ["--method", "identity", "--depth-method", "llama-pro", "--new-scale", "0"],
    }.items():
        assert cli.main([*grow, *options, "--overwrite"] + [str(tmp_path / output)]) == 0
        assert last_line(capsys)["verification"] is None
    layers = [
        json.loads((tmp_path / name / "growth.json").read_text(encoding="utf-8"))["plan"]["layers"]
        for name in ("known", "placed", "stacked")
    ]
    assert layers[0] == layers[1] == layers[2]
    assert [layer["source"] for layer in layers[0]] == [0, 0, 1, 1]
    manifest = json.loads((tmp_path / "known" / "manifest.json").read_text(encoding="utf-8"))
    assert not any(entry.get("sha256") for name, entry in manifest["files"].items() if name.endswith(".safetensors"))
    twice = [*grow, str(tmp_path / "twice"), "--noise", "1", "--option", "noise=2"]
    assert cli.main(twice) == cli.EXIT_BAD_INPUT
    assert "noise: is given as --noise and as --option; leave one out" in capsys.readouterr().err


def test_verify_fails_with_one_where_the_function_changed(
    parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = GPT2LMHeadModel.from_pretrained(parent)
    with torch.no_grad():
        model.transformer.h[1].mlp.c_proj.bias[0].add_(0.1)
    model.save_pretrained(tmp_path / "other")
    assert cli.main(["verify", str(parent), str(tmp_path / "other"), "--json"]) == cli.EXIT_CHECK_FAILED
    assert last_line(capsys)["preserved"] is False


def small_bundle(folder: Path) -> Path:
    """Write a CORE bundle of one task."""
    items = [{"query": "a", "choices": ["b", "c"], "gold": 0}]
    (folder / "bundle").mkdir()
    return write_bundle(folder / "bundle", {"arc_easy": ("multiple_choice", 0, None, 25, items)})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["grow", "PARENT", "CHILD", "--set", "n_layer=1"], "growth never shrinks: layers 2 → 1"),
        (["grow", "PARENT", "CHILD", "--set", "n_embd=17"], "n_embd"),
        (["grow", "PARENT", "CHILD", "--set", "n_layers=3"], "n_layer"),
        (["grow", "PARENT", "CHILD", "--set", "n_layer"], "expected key.path=value"),
        (["grow", "PARENT", "CHILD", "--set", "dtype=float32"], "--set dtype: the weights' dtype is no size; grow"),
        (
            ["grow", "PARENT", "CHILD", "--set", "n_layer=3", "--option", "nois=1"],
            "nois: unknown option; did you mean",
        ),
        (["grow", "PARENT", "CHILD", "--set", "n_layer=3", "--option", "seed=1"], "seed: unknown option"),
        (["grow", "PARENT", "CHILD", "--set", "n_layer=3", "--option", "noise=-1"], "noise=-1: expected a number"),
        (["grow", "/nowhere/at-all", "CHILD", "--set", "n_layer=3"], "/nowhere/at-all"),
        (["grow", "FILE", "CHILD", "--set", "n_layer=3"], "ladder.json: is a file; give the folder that holds it"),
        (["grow", "RUN", "CHILD", "--set", "n_layer=3"], "config.json: no such file; in it are "),
        (
            ["grow", "PARENT", "CHILD", "--set", "n_layer=3", "--optimizer", "RUN"],
            "give the optimizer.pt",
        ),
        (["plan", "ladder_tiny", "--set", "data.tokenizer={name: /nowhere}"], "data.tokenizer.name: cannot load"),
        (["grow", "PARENT", "PARENT", "--set", "n_layer=3"], "exists already"),
        (["plan", "nothing.yaml"], "nothing.yaml: no such file"),
        (["study", "nothing.yaml"], "nothing.yaml: no such file"),
        (
            ["study", "study_tiny", "--set", "recipes.0.parent_fraction=0"],
            "recipes.0.parent_fraction: expected above 0, at most 2, got 0.0",
        ),
        (["study", "study_tiny", "--set", "recipes.0.set={growth.method: grow}"], "recipe 'exact': "),
        (["report", "/nowhere"], "/nowhere"),
        (["report", "RUN", "--serve", "--into", "FILE"], "--into: writes a file, and --serve none"),
        (["plan", "ladder_tiny", "--budget-dollars", "9"], "--budget-dollars: nothing has a price yet; give --price"),
        (["publish", "PARENT", "--repo-id", "me/it", "--collection", "It"], "--collection: gathers a family; give"),
        (["plan", "study_tiny"], "study_tiny.yaml: is a study's configuration; `hf-progressive study` runs it"),
        (["study", "ladder_tiny"], "ladder_tiny.yaml: is a ladder's configuration; `hf-progressive ladder` runs it"),
        *(
            ([command, config, "--output-dir", "FILE"], "cannot be a run folder (it is a file); choose a folder")
            for command, config in (("ladder", "ladder_tiny"), ("prepare", "ladder_tiny"), ("study", "study_tiny"))
        ),
        (["publish", "RUN", "--repo-id", "me/it"], "is a run of several rungs; give ORG/x-{name}, or RUN/NAME/final"),
        (["core", "/nowhere", "--bundle", "/nowhere"], "/nowhere: no such folder, and no name on the Hub (ORG/NAME)"),
        (["core", __file__, "--bundle", "/nowhere"], "test_cli.py: is a file; give the folder that holds it"),
        (["core", "PARENT", "--bundle", "/nowhere"], "/nowhere/core.yaml: no such file; a bundle holds core.yaml"),
        (["core", "PARENT", "--bundle", "BUNDLE", "--tasks", "nope"], "bundle: has no task 'nope'; it has arc_easy"),
        (["core", "PARENT", "--bundle", "BUNDLE"], "parent: holds no tokenizer; save the model's own there"),
        (["core", "RUN", "--bundle", "BUNDLE"], "config.json: no such file; in it are "),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(
    parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (tmp_path / "ladder.json").write_text("{}")
    places = {"PARENT": str(parent), "CHILD": str(tmp_path / "child"), "RUN": str(tmp_path)}
    places["BUNDLE"] = str(small_bundle(tmp_path)) if "BUNDLE" in arguments else ""
    places["FILE"] = str(tmp_path / "ladder.json")
    code = cli.main([places.get(word, word) for word in arguments])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-progressive: error:")]
    assert code == cli.EXIT_BAD_INPUT
    assert len(lines) == 1
    assert places.get(message, message) in lines[0]
    assert not (tmp_path / "child").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_layer": 3}, "parent: 12 tensors do not fit the config: transformer.h.2.attn.c_attn.bias is missing; "),
        ({"n_positions": 32}, "transformer.wpe.weight has shape (16, 16), the config says (32, 16)"),
        ({"activation_function": "nope"}, "the stock class does not run with it; correct it first"),
    ],
)
def test_core_scores_no_layers_drawn_at_random(
    parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, object], message: str
) -> None:
    path = parent / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    train_tokenizer(["one"], vocab_size=257, training_bytes=3).save_pretrained(parent)
    assert cli.main(["core", str(parent), "--bundle", str(small_bundle(tmp_path))]) == cli.EXIT_BAD_INPUT
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-progressive: error:")]
    assert message in line


def test_core_reads_no_weights_where_there_is_no_tokenizer(
    parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (parent / "model.safetensors").unlink()  # whoever reads them says so
    assert cli.main(["core", str(parent), "--bundle", str(small_bundle(tmp_path))]) == cli.EXIT_BAD_INPUT
    assert "parent: holds no tokenizer; save the model's own there" in capsys.readouterr().err


def test_an_unknown_option_is_told_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["plan", "ladder_tiny", "--outputdir", "x"])
    usage, message = capsys.readouterr().err.splitlines()
    assert usage.startswith("usage: hf-progressive plan CONFIG")
    assert message.endswith("unrecognized arguments: --outputdir x; did you mean --output-dir?")
    with pytest.raises(SystemExit):
        cli.main(["grow", "SRC", "OUT", "n_layer=4", "n_embd=64"])
    assert capsys.readouterr().err.endswith("n_embd=64; did you mean --set n_layer=4 n_embd=64?\n")


def test_what_tells_rounding_from_a_fault_is_of_the_weights_dtype(
    parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grow = ["grow", str(parent), str(tmp_path / "child"), "--overwrite", "--set", "n_layer=3", "--dtype"]
    model = GPT2LMHeadModel.from_pretrained(parent)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(8)  # scores so far apart that bfloat16 decides where attention goes
    model.save_pretrained(parent)
    assert cli.main([*grow, "bfloat16"]) == cli.EXIT_CHECK_FAILED
    assert "grow with --dtype float32 too, whose weights are rounded less: that tells" in capsys.readouterr().err
    assert cli.main([*grow, "float32"]) == 0


def test_an_error_of_the_system_is_told_without_its_number(capsys: pytest.CaptureFixture[str]) -> None:
    def denied(options: argparse.Namespace) -> cli.Outcome:
        raise PermissionError(13, "Permission denied", "weights")

    assert cli.execute(denied, argparse.Namespace(json=False)) == cli.EXIT_BAD_INPUT
    assert capsys.readouterr().err == "hf-progressive: error: weights: Permission denied\n"


def test_an_interruption_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(options: argparse.Namespace) -> cli.Outcome:
        raise KeyboardInterrupt

    assert cli.execute(interrupted, argparse.Namespace(json=False)) == cli.EXIT_INTERRUPTED
    assert capsys.readouterr().err.splitlines() == [
        "hf-progressive: stopped; the same command goes on from what was saved"
    ]


def test_an_interrupted_growth_is_said_to_leave_nothing_and_leaves_nothing(
    parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*models: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_progressive.growth.grow.compare_logits", interrupted)
    grow = ["grow", str(parent), str(tmp_path / "out" / "child"), "--set", "n_layer=3"]
    assert cli.main(grow) == cli.EXIT_INTERRUPTED
    assert capsys.readouterr().err.splitlines()[-1] == "hf-progressive: stopped; nothing was written"
    assert not (tmp_path / "out").exists()


def test_plan_prints_the_three_prices(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "ladder_tiny", "--json"]) == 0
    flops = last_line(capsys)["flops"]
    assert max(flops["last_alone"], flops["all_inherited"]) < flops["all_cold"]


def test_every_command_explains_itself() -> None:
    for words in ([], *([name] for name in COMMANDS)):
        run = subprocess.run(
            [sys.executable, "-m", "hf_progressive", *words, "--help"], capture_output=True, text=True
        )
        assert run.returncode == 0
        assert run.stdout.startswith("usage: hf-progressive")


def test_a_launch_is_left_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a group still open, gloo's threads abort some exits after all the work is done."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        assert cli.execute(lambda options: (cli.EXIT_DONE, {}), argparse.Namespace(json=False)) == cli.EXIT_DONE
        assert not distributed.is_initialized()
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def test_an_error_of_another_process_alone_is_told(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """The first process has nothing to say of it; what the first has said already, the others do not repeat."""
    monkeypatch.setattr(parser, "_SECONDS_FOR_THE_FIRST", 0.0)
    monkeypatch.setenv("RANK", "3")

    def fail(error: Exception) -> str:
        def run(options: argparse.Namespace) -> cli.Outcome:
            raise error

        assert cli.execute(run, argparse.Namespace(json=True)) == cli.EXIT_BAD_INPUT
        return str(capsys.readouterr().err)

    assert fail(OSError("/scratch/x: Input/output error")) == (
        "hf-progressive: error in process 3: /scratch/x: Input/output error\n"
    )
    assert fail(MainProcessFailedError("no such corpus")) == ""
