"""The example runs offline: more λ means less forgotten and less learned, with LoRA too, and the picture is there."""

import json
import runpy
import sys
from pathlib import Path

import pytest

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
