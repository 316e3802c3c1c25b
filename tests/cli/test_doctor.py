import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from hf_progressive import cli
from hf_progressive.cli import doctor


def test_the_doctor_tells_what_is_here(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "of_no_package").mkdir()  # and could be imported all the same
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(doctor._ENGINES, "of_no_package", "a folder of yours")
    monkeypatch.setattr("hf_progressive.distributed.compilation.compiles_on", lambda kind: False)
    monkeypatch.setenv("HF_ENDPOINT", "http://user:hf_abcdefghijklmnopqrstuvwxyzABCDEFGH@mirror")
    assert cli.main(["doctor", "--json"]) == cli.EXIT_DONE
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["python"], found["packages"]["torch"]) == (platform.python_version(), torch.__version__)
    assert found["device"] == ("cpu" if not torch.accelerator.is_available() else found["device"])
    assert found["engines"]["of_no_package"] is None
    assert any(problem.startswith("torch.compile does not work") for problem in found["problems"])
    assert "hf_abcdefghij" not in str(found)
    text = doctor.describe({**found, "engines": {"deepspeed": None}, "problems": []})
    assert "no deepspeed  (ZeRO-1, -2 and -3: pip install" in text
    assert text.splitlines()[-1] == "Nothing stands in the way."
    assert max(len(line) for line in text.splitlines() if doctor.__file__.partition("/cli/")[0] not in line) <= 100


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package that needs several others, as pip leaves one that is installed without them."""
    folder = tmp_path / "half_installed-1.2.dist-info"
    folder.mkdir()
    needs = [
        "torch",
        "torch>=900",
        "two words of a vendor",
        "odd>=1",
        "of_nobody>=2",
        "of_nobody; extra == 'more'",
        "of_nobody; sys_platform == 'plan9'",
    ]
    lines = ["Metadata-Version: 2.1", "Name: half_installed", "Version: 1.2", *(f"Requires-Dist: {n}" for n in needs)]
    (folder / "METADATA").write_text("\n".join(lines) + "\n")
    odd = tmp_path / "odd-1.dist-info"
    odd.mkdir()
    (odd / "METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: of today\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return "half_installed"


def test_the_doctor_tells_what_an_installed_package_does_not_find(
    installed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert doctor.unmet(installed) == [
        f"half_installed 1.2 needs torch>=900, and {version('torch')} is installed",
        "half_installed 1.2 needs of_nobody>=2, and it is not installed",
    ]
    assert doctor.unmet("of_nobody") == []
    monkeypatch.setitem(doctor._ENGINES, installed, "half of it")
    monkeypatch.setattr("hf_progressive.distributed.compilation.compiles_on", lambda kind: True)
    assert [line for line in doctor.examine()["problems"] if line.startswith("half_installed 1.2 needs of_nobody>=2,")]


def test_where_the_memory_cannot_be_asked_for_the_doctor_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sysconf")  # as on Windows
    monkeypatch.setattr("hf_progressive.distributed.compilation.compiles_on", lambda kind: True)
    found = doctor.examine()
    assert found["memory_gb"] is None
    assert f"{found['cores']} cores, memory not known, " in doctor.describe(found)


def test_without_a_command_the_first_steps_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == cli.EXIT_DONE
    shown = capsys.readouterr().out
    commands = [line.split()[1] for line in shown.splitlines() if line.startswith("  hf-progressive ")]
    assert commands == ["doctor", "ladder", "grow", "plan", "publish"]
    assert all(len(line) <= 100 for line in shown.splitlines())
