"""Options of `grow` that change nothing are told, and they do change nothing; options that change weights are not."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from hf_progressive import cli
from hf_progressive.data.tokenizer import train_tokenizer

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama on weights far from zero, with a tokenizer."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("idle") / "parent"
    config = LlamaConfig(**SIZES, vocab_size=260, max_position_embeddings=16, bos_token_id=0, eos_token_id=0)
    LlamaForCausalLM(config).save_pretrained(folder)
    train_tokenizer(["a text"], vocab_size=258, training_bytes=6).save_pretrained(folder)
    return folder


WIDER = ["hidden_size=32", "num_attention_heads=4", "num_key_value_heads=4", "intermediate_size=48"]
DEEPER = ["num_hidden_layers=4"]


@pytest.mark.parametrize(
    ("target", "options", "told"),
    [
        (WIDER, ["--depth-position", "spread"], "without effect: --depth-position; no layer is new"),
        (WIDER, ["--depth-method", "stack", "--new-layers", "fresh"], "--new-layers, --depth-method; no layer is new"),
        (WIDER, ["--noise", "0.5", "--uneven", "0.5"], "--noise, --uneven; nothing is copied side by side"),
        (DEEPER, ["--method", "split", "--noise", "0.5"], "without effect: --noise; nothing is copied side by side"),
        (DEEPER, ["--new-moments", "mean"], "without effect: --new-moments; no --optimizer is given"),
        (DEEPER, ["--text", __file__], "without effect: --text; no token is new, whose cost it would measure"),
        (DEEPER, ["--depth-position", "spread"], None),
        (DEEPER, ["--new-layers", "fresh"], None),
        (WIDER, ["--method", "tile", "--noise", "0.5"], None),
        (WIDER, ["--method", "split", "--uneven", "0.5"], None),
    ],
)
def test_what_is_told_to_have_no_effect_has_none(
    parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], target: list[str], options: list[str], told: str
) -> None:
    grow = ["--no-checksums", "--set", *target]
    method = options[:2] if options[0] == "--method" else []
    assert cli.main(["grow", str(parent), str(tmp_path / "plain"), *grow, *method, "--no-verify"]) == 0
    assert "without effect" not in capsys.readouterr().err
    assert cli.main(["grow", str(parent), str(tmp_path / "child"), *grow, *options]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "without effect" in line]
    assert [told in line for line in lines] == [True] * (told is not None)
    plain, child = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "child"))
    assert all(torch.equal(plain[name], child[name]) for name in plain) == (told is not None)
