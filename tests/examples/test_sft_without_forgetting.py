"""The example runs offline: more λ means less forgotten and less learned, with LoRA too, and the picture is there."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from hf_progressive.data.tokenizer import train_tokenizer

pytest.importorskip("trl")
EXAMPLE = Path(__file__).parents[2] / "examples" / "sft_without_forgetting.py"
SMALL = ["--layers", "1", "--width", "32", "--vocabulary", "400", "--characters", "120000", "--rate", "2e-2"]


@pytest.mark.slow
@pytest.mark.parametrize("more", [["--lambdas", "1e6"], ["--lora", "4", "--lambdas", "1e6"]], ids=["all", "lora"])
def test_a_strong_penalty_forgets_less_and_learns_less(monkeypatch, capsys, tmp_path, more):
    picture = tmp_path / "picture.png"
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *SMALL, "--steps", "40", "12", *more, "--picture", str(picture)])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    before, free, held = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert held["english"] - before["english"] < 0.3 * (free["english"] - before["english"])
    assert free["functions"] < held["functions"] < before["functions"] + 0.1
    assert picture.stat().st_size > 1000


def test_the_readme_s_program_runs_as_it_is_printed(monkeypatch, tmp_path):
    readme = (EXAMPLE.parents[1] / "README.md").read_text(encoding="utf-8")
    (program,) = [code for code in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "SFTTrainer" in code]
    folder = tmp_path / re.search(r'"(runs/.*?)"', program)[1]
    train_tokenizer(["import os, sys"], vocab_size=257, training_bytes=100).save_pretrained(folder)
    sizes = {"n_layer": 1, "n_embd": 8, "n_head": 1, "n_positions": 32}
    GPT2LMHeadModel(GPT2Config(**sizes, vocab_size=257, bos_token_id=0, eos_token_id=0)).save_pretrained(folder)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(program, "README.md", "exec"), names)
    moved = [
        not torch.equal(parameter, names["anchor"][name]) for name, parameter in names["model"].named_parameters()
    ]
    assert all(moved)
