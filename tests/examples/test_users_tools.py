"""The script that takes grown checkpoints through other tools: its page, and one tool that is at hand."""

import json
from pathlib import Path

import pytest
import users_tools

PAGE = Path(__file__).parents[2] / "docs" / "tools.md"


def test_the_page_has_a_figure_or_a_reason_for_every_tool_and_family():
    close, failed = {"difference": 1e-6, "scale": 2.5}, {"said": "fails: TypeError: no", "parent": {"said": "other"}}
    results = {tool: dict.fromkeys(users_tools.FAMILIES, close) for tool in users_tools.TOOLS}
    results["PEFT, merged"] = {**results["PEFT, merged"], "llama": failed, "gpt2": {**failed, "parent": failed}}
    page = users_tools.page({"versions": {"transformers": "5", "mergekit": "0.1"}, "results": results})
    lines = [line for line in page.splitlines() if line.startswith("|")]
    assert "| mergekit 0.1 |" in lines[0]
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == list(users_tools.FAMILIES)
    assert all(line.count(" | ") == len(users_tools.TOOLS) for line in lines[2:])
    assert page.count("1.0e-06 at 2.5") == len(users_tools.TOOLS) * len(users_tools.FAMILIES) - 2
    assert [line.count("(1)") for line in lines] == [0, 0, *(name == "gpt2" for name in users_tools.FAMILIES)]
    assert "\n1. fails: TypeError: no; the parent alike\n" in page
    assert "\n2. fails: TypeError: no; the parent: other\n" in page


def test_a_reason_is_the_last_error_without_colours_and_folders():
    printed = "Traceback\nKeyError: 'x'\n\x1b[96mValueError: no /tmp/abc/llama/grown/tokenizer.model\x1b[0m\nsee above"
    assert users_tools.reason_in(printed) == "ValueError: no CHECKPOINT/tokenizer.model"
    assert users_tools.reason_in("no config (supported configurations are: all)") == "no config"
    assert users_tools.reason_in("") == "no reason given"


def test_the_committed_page_is_what_the_script_writes_of_its_figures():
    record = json.loads(users_tools.RECORD.read_text(encoding="utf-8"))
    assert list(record["results"]) == list(users_tools.TOOLS)
    assert all(list(found) == list(users_tools.FAMILIES) for found in record["results"].values())
    assert users_tools.page(record) == PAGE.read_text(encoding="utf-8")


def test_what_a_tool_cannot_take_is_tried_on_the_parent(monkeypatch, tmp_path):
    off, close = {"difference": 0.5, "scale": 2.0}, {"difference": 1e-6, "scale": 2.0}
    given = {"a/grown": close, "b/grown": off, "c/grown": {"said": "fails: x"}, "b/parent": off, "c/parent": close}

    def outcomes(tool, folders):
        return [given[folder.relative_to(tmp_path).as_posix()] for folder in folders]

    monkeypatch.setattr(users_tools, "outcomes", outcomes)
    found = users_tools.measure("x", {name: tmp_path / name / "grown" for name in "abc"})
    assert found == {"a": close, "b": {**off, "parent": off}, "c": {"said": "fails: x", "parent": close}}


def test_a_part_of_the_tools_does_not_overwrite_the_page(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("sys.argv", ["users_tools.py", "--tools", "mergekit", "--into", str(tmp_path / "page.md")])
    with pytest.raises(SystemExit):
        users_tools.main()
    assert "--into writes the whole page" in capsys.readouterr().err
    assert not (tmp_path / "page.md").exists()


def test_what_is_not_installed_is_said(monkeypatch, tmp_path):
    monkeypatch.setitem(users_tools.TOOLS, "x", (users_tools.peft, "no-such-package"))
    assert users_tools.outcomes("x", [tmp_path, tmp_path]) == [{"said": "not installed"}] * 2
    monkeypatch.delenv("GGUF_CONVERTER", raising=False)
    monkeypatch.setattr(users_tools, "version", lambda package: "1")
    assert users_tools.outcomes("GGUF converter", [tmp_path]) == [{"said": "not tried: no --gguf-converter"}]


@pytest.mark.slow
def test_an_adapter_on_a_grown_model_is_merged(tmp_path):
    pytest.importorskip("peft")
    grown = users_tools.build("gpt2", tmp_path)
    (outcome,) = users_tools.outcomes("PEFT, merged", [grown])
    assert outcome["difference"] < 1e-4, outcome
