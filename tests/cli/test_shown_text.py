"""Text from outside is shown and not executed, in a terminal, a report and a card; tokens are shown nowhere."""

import io
import json
import logging
import sys
import unicodedata

import pytest
from hub_family import change_record, write_run

from hf_progressive import cli
from hf_progressive.config.credentials import without_tokens
from hf_progressive.publishing import prepare_publication
from hf_progressive.records.ladder import read_run
from hf_progressive.report.ladder_page import ladder_report
from hf_progressive.report.page import page_text
from hf_progressive.storage import read_json, visible

EVIL = "\x1b[2J\x1b]0;owned\x07\u202egnp\u2069\r\x9b31m\ufeff"
"""Clears a screen, names a window, turns the direction of text, and goes back to the start of the line."""


def is_harmless(text):
    kinds = {unicodedata.category(character) for character in text if character not in "\n\t"}
    turned = {unicodedata.bidirectional(character) for character in text}
    return not kinds & {"Cc", "Cs", "Zl", "Zp"} and not turned & {
        "LRE",
        "RLE",
        "LRO",
        "RLO",
        "PDF",
        "LRI",
        "RLI",
        "PDI",
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose names and sources are not what they seem."""
    run = write_run(tmp_path_factory.mktemp("evil") / "run", title=f"tiny{EVIL}<script>alert(1)</script>")
    final = run / "d4" / "final"
    change_record(final, data={**read_json(final / "rung.json")["data"], "source": f"org/data{EVIL}"})
    return run


def test_every_character_is_seen_or_written_out():
    for code in (*range(0x20), *range(0x7F, 0xA0), 0x202E, 0x2066, 0x2028, 0xFEFF, 0xDC80, 0xE0041):
        shown = visible(f"a{chr(code)}b")
        assert shown == f"a{chr(code)}b" if chr(code) in "\n\t" else shown.isascii() and shown.isprintable()
    assert visible("naïve Ω → 漢字 🙂 e\u0301") == "naïve Ω → 漢字 🙂 e\u0301"


def test_a_message_obeys_no_name(tmp_path, capsys):
    name = f"no{EVIL}.yaml"
    assert cli.main(["plan", str(tmp_path / name)]) == 2
    (tmp_path / name).write_text(f"{json.dumps('key' + EVIL)}: 1\nrungs: [d2]\n")
    assert cli.main(["plan", str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert is_harmless(error)
    assert "\\x1b[2J" in error
    assert "\\u202e" in error


def test_a_log_obeys_no_name(capsys):
    cli.main([])  # nothing is set up by it
    cli.main(["plan", "nothing"])
    logger, root = logging.getLogger("hf_progressive.test"), logging.getLogger()
    formatter = cli.parser.ShownFormatter("%(message)s")
    text = formatter.format(logger.makeRecord("x", 20, "f", 1, "%s: read", (EVIL,), None))
    assert is_harmless(text)
    assert root.handlers  # pytest's own, beside which `basicConfig` adds none


def test_a_report_and_a_card_obey_no_record(run):
    html = page_text(ladder_report(read_run(run), None, run), {})
    assert is_harmless(html)
    assert "<script>alert(1)" not in html
    card = prepare_publication(run / "d4" / "final", "org/d4").card
    assert is_harmless(card)
    assert "\\x1b[2J" in card or "\\u202e" in card or "owned" not in card


def test_a_token_of_any_form_is_blacked_out(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "oddly-formed-secret")
    assert without_tokens("no access with oddly-formed-secret") == "no access with ***"
    monkeypatch.setenv("HF_TOKEN", "a")  # a mistake, and no reason to hide every a
    assert without_tokens("an access") == "an access"


def test_a_file_s_name_that_is_no_text_is_shown(tmp_path, capsys):
    name = b"no\xff.yaml".decode("utf-8", "surrogateescape")
    assert cli.main(["plan", str(tmp_path / name)]) == 2
    assert "no\\udcff.yaml" in capsys.readouterr().err


def test_a_line_has_an_end(tmp_path, capsys):
    assert cli.main(["plan", "ladder_tiny", "--set", f"cold=[{'x' * 100_000}]"]) == 2
    assert len(capsys.readouterr().err) < 5000


def test_a_terminal_that_lacks_a_character_sees_it_written_out(monkeypatch):
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding="latin-1") for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    assert cli.main(["plan", "ladder_tiny"]) == 0
    assert cli.main([]) == 0  # the first steps
    assert cli.main(["plan", "漢字.yaml"]) == 2
    for stream in streams.values():
        stream.flush()
    assert b"\\u2500 from scratch" in streams["stdout"].buffer.getvalue()
    assert b"\\u6f22\\u5b57.yaml: no such file" in streams["stderr"].buffer.getvalue()


def test_a_name_that_no_record_can_hold_is_named(tmp_path, capsys):
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    error = UnicodeEncodeError("utf-8", f'{"x" * 90}"{name}"', 94, 95, "surrogates not allowed")
    line = cli.parser._in_one_line(error)
    assert "caf\\udce9" in line
    assert line.endswith("a name within cannot be written in utf-8; rename what has it")
    assert len(line) < 150
    error = UnicodeEncodeError("ascii", "runs/ü", 5, 6, "ordinal not in range(128)")
    assert cli.parser._in_one_line(error).endswith("rename what has it, or set LC_ALL=C.UTF-8")
