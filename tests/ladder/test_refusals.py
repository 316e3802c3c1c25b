"""What the rung loop refuses, in one line."""

from pathlib import Path

import pytest
from ladder_fixtures import Finished, write_ladder

from hf_progressive import cli
from hf_progressive.config import load_ladder_config
from hf_progressive.ladder.rung_loop import run_ladder
from hf_progressive.storage.locks import try_lock


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
        (["training.arguments.fp16=true"], "training.arguments.fp16: without effect on a processor"),
        (["training.arguments.max_steps=1"], "training.arguments.max_steps: the ladder sets it"),
        (["growth.method=magic"], "magic"),
        (["growth.options={a: 1}"], "growth.options.a: unknown option"),
        (["growth.options={noise: x}"], "growth.options.noise='x': expected a number"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], message: str
) -> None:
    path = write_ladder(tmp_path)
    line = refused(capsys, str(path), "--output-dir", str(tmp_path / "run"), "--set", *overrides)
    assert message in line


def test_files_without_a_byte_are_named_and_not_the_vocabulary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_ladder(tmp_path)
    (tmp_path / "sums.jsonl").write_bytes(b"")
    line = refused(capsys, str(path), "--output-dir", str(tmp_path / "run"))
    assert "sums.jsonl holds nothing, not a byte; name files that hold texts" in line
    assert "vocab_size" not in line


def test_an_empty_corpus_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_ladder(tmp_path)
    (tmp_path / "sums.jsonl").write_text('{"text": ""}\n' * 20)  # as many bytes as the tokenizer has entries
    assert "sums.jsonl" in refused(capsys, str(path), "--output-dir", str(tmp_path / "run"))


def test_a_truncated_parent_is_named_and_left(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
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
    assert cli.main([*arguments, "--set", "training.learning_rate=1000"]) == cli.EXIT_CHECK_FAILED
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(lines) == 1
    assert "step" in lines[0]


def test_a_second_run_in_the_same_folder_is_kept_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_ladder(tmp_path)
    with try_lock(tmp_path / "run" / ".lock"):
        assert "another run is working in this folder" in refused(
            capsys, str(path), "--output-dir", str(tmp_path / "run")
        )


def test_a_changed_configuration_is_refused_by_name(finished: Finished) -> None:
    path, run, _ = finished
    config = load_ladder_config(path, ["phi.gamma=0.5", "rungs.2.n_layer=3"])
    with pytest.raises(ValueError, match=r"rungs\.2\.n_layer: 2 there, 3 here; phi\.gamma: 0\.001 there, 0\.5 here"):
        run_ladder(config, run)
