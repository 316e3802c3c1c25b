"""The script that takes grown checkpoints through other tools: its page, and one tool that is at hand."""

import re
from pathlib import Path

import pytest
import users_tools

PAGE = Path(__file__).parents[2] / "docs" / "tools.md"


def test_the_page_has_a_figure_or_a_reason_for_every_tool_and_family():
    results = {tool: dict.fromkeys(users_tools.FAMILIES, f"of {tool}") for tool in users_tools.TOOLS}
    lines = [line for line in users_tools.page(results).splitlines() if line.startswith("|")]
    assert lines[0] == "| tool | " + " | ".join(users_tools.FAMILIES) + " |"
    assert len(lines) == 2 + len(users_tools.TOOLS)
    for tool, line in zip(results, lines[2:], strict=True):
        assert line.count(f"of {tool}") == len(users_tools.FAMILIES)


def test_the_committed_page_is_what_the_script_writes_of_its_figures(monkeypatch):
    text = PAGE.read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.replace("\\|", "¦").splitlines() if line.startswith("| ")]
    results, versions = {}, {"transformers": re.search(r"Transformers ([\d.]+)", text)[1]}
    for name, *figures in rows[1:]:
        tool, _, of_tool = name.rpartition(" ")
        versions[users_tools.TOOLS[tool][1]] = of_tool
        results[tool] = {
            family: figure.replace("¦", "\\|") for family, figure in zip(rows[0][1:], figures, strict=True)
        }
    assert list(results) == list(users_tools.TOOLS)
    monkeypatch.setattr(users_tools, "version", versions.__getitem__)
    monkeypatch.setenv("GGUF_CONVERTER", "llama_cpp_python-0.3.36/vendor/llama.cpp/convert_hf_to_gguf.py")
    assert users_tools.page(results) == text


def test_a_part_of_the_tools_does_not_overwrite_the_page(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("sys.argv", ["users_tools.py", "--tools", "mergekit", "--into", str(tmp_path / "page.md")])
    with pytest.raises(SystemExit):
        users_tools.main()
    assert "--into writes the whole page" in capsys.readouterr().err
    assert not (tmp_path / "page.md").exists()


def test_what_is_not_installed_is_said(monkeypatch, tmp_path):
    monkeypatch.setitem(users_tools.TOOLS, "x", (users_tools.peft, "no-such-package"))
    assert users_tools.outcomes("x", [tmp_path, tmp_path]) == ["not installed"] * 2
    monkeypatch.delenv("GGUF_CONVERTER", raising=False)
    monkeypatch.setattr(users_tools, "version", lambda package: "1")
    assert users_tools.outcomes("GGUF converter", [tmp_path]) == ["not tried: no --gguf-converter"]


@pytest.mark.slow
def test_an_adapter_on_a_grown_model_is_merged(tmp_path):
    pytest.importorskip("peft")
    grown = users_tools.build("gpt2", tmp_path)
    (figure,) = users_tools.outcomes("PEFT, merged", [grown])
    assert float(figure.split()[2]) < 1e-4, figure
