"""The script that takes grown checkpoints through other tools: its page, and one tool that is at hand."""

import pytest
import users_tools


def test_the_page_has_a_figure_or_a_reason_for_every_tool_and_family():
    results = {tool: dict.fromkeys(users_tools.FAMILIES, f"of {tool}") for tool in users_tools.TOOLS}
    lines = [line for line in users_tools.page(results).splitlines() if line.startswith("|")]
    assert lines[0] == "| tool | " + " | ".join(users_tools.FAMILIES) + " |"
    assert len(lines) == 2 + len(users_tools.TOOLS)
    for tool, line in zip(results, lines[2:], strict=True):
        assert line.count(f"of {tool}") == len(users_tools.FAMILIES)


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
