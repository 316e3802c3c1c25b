"""One word for each thing: those that are gone stay gone, and what documents name exists.

docs/glossary.md has each word's meaning and, at its end, what the old ones are called now.
"""

import importlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent

RETIRED = (
    r"arms?",
    r"(cold[ _-])?twins?",
    r"warm-?_?downs?(_fraction)?",
    r"takeovers?",
    r"captur(e|es|ing)(?!_output)",
    r"ledgers?",
    r"canvas(es)?",
    r"wording",
    r"quantities",
    r"rooms?",
    r"per[-_]sequence gradients?",
    r"parent_arm",
)
ALLOWED = ("CHANGELOG.md", "docs/glossary.md", "hf_progressive/config/renamed.py", "tests/test_words.py")
"""Where the old words may stand: what was changed, what they are called now, the keys that are still taken."""

_WORDS = re.compile(rf"(?<![A-Za-z0-9])({'|'.join(RETIRED)})(?![A-Za-z0-9])", re.IGNORECASE)
_LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")


def tracked_texts() -> Iterator[tuple[str, str]]:
    """Every text file under version control, or of a folder without one every file that the project is made of."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    names = listed.stdout.split("\0")[:-1]
    if listed.returncode != 0:
        folders = ("hf_progressive", "tests", "docs", "examples", "configs")
        names = [str(p.relative_to(ROOT)) for folder in folders for p in (ROOT / folder).rglob("*") if p.is_file()]
    for name in names:
        if (ROOT / name).is_file():
            content = (ROOT / name).read_bytes()
            if b"\0" not in content:
                yield name, content.decode("utf-8")


def test_words_that_are_gone_stand_nowhere_else() -> None:
    found = [
        f"{name}: {match[0]}"
        for name, text in tracked_texts()
        if name not in ALLOWED
        for match in _WORDS.finditer(text)
    ]
    assert not found, f"{len(found)} words that docs/glossary.md replaces: {', '.join(found[:20])}"


def test_the_glossary_says_what_each_is_called_now() -> None:
    table = (ROOT / "docs/glossary.md").read_text(encoding="utf-8").partition("## Words that are gone")[2]
    old = " ".join(line.split("|")[1] for line in table.splitlines() if line.startswith("|"))
    for word in RETIRED:
        assert re.search(rf"(?<![a-z]){word}(?![a-z])", old), word


@pytest.mark.parametrize(
    "document", ["README.md", *(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))]
)
def test_every_file_that_a_document_links_is_there(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    missing = [link for link in _LINK.findall(text) if not ((ROOT / document).parent / link).exists()]
    assert not missing


def test_the_architecture_shows_every_folder_of_the_package() -> None:
    text = (ROOT / "docs/development/architecture.md").read_text(encoding="utf-8")
    shown = re.findall(r"^  (\w+)/ ", text, re.MULTILINE)
    folders = {path.parent.name for path in (ROOT / "hf_progressive").glob("*/__init__.py")}
    assert set(shown) == folders


def resolves(dotted: str) -> bool:
    """Whether a dotted name is a module of the package, or something in one."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        return all((found := getattr(found, part, None)) is not None for part in parts[length:])
    return False


def test_every_dotted_name_in_a_text_exists() -> None:
    named = {
        (name, match[0])
        for name, text in tracked_texts()
        if name != "CHANGELOG.md" and name.startswith(("hf_progressive/", "docs/", "examples/", "configs/", "README"))
        for match in re.finditer(r"\bhf_progressive(\.[A-Za-z_]\w*)+", text)
    }
    assert len(named) > 50
    assert [(name, dotted) for name, dotted in sorted(named) if not resolves(dotted)] == []
