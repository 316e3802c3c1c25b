import ast
import builtins
import importlib
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from documents.pages import blocks_of

from hf_progressive import __version__, load_ladder_config, load_study_config, plan_ladder

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in [*DOCS.rglob("*.md"), ROOT / "README.md"])
RUN = [page for page in PAGES if any(block.reason is None for block in blocks_of(page))]
# Their programs show names in passing; `test_api` holds them to the public API.
SHOWN = {"README.md", "docs/api.md", "docs/core.md"}


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", [page for page in PAGES if "```python" in page.read_text(encoding="utf-8")], ids=name)
def test_programs_on_a_page_import_the_classes_that_they_name(page: Path) -> None:
    programs = [ast.parse(block.code) for block in blocks_of(page) if block.language == "python"]
    nodes = [node for program in programs for node in ast.walk(program)]
    bound = {*dir(builtins)} | {node.name for node in nodes if isinstance(node, ast.ClassDef)}
    bound |= {alias.asname or alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    names = [node for node in nodes if isinstance(node, ast.Name)]
    bound |= {node.id for node in names if isinstance(node.ctx, ast.Store)}
    assert {node.id for node in names if node.id[0].isupper()} <= bound


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in RUN if name(page) not in SHOWN], ids=name)
def test_the_blocks_of_a_page_run_in_order(page: Path, tmp_path: Path) -> None:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, str(ROOT / "tests/documents/pages.py"), str(page)]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    assert ran.returncode == 0, (ran.stdout + ran.stderr)[-3000:]


def test_the_site_has_every_page_once() -> None:
    class Loader(yaml.SafeLoader):
        """Reads the material theme's tags as nothing."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python", lambda *_: None)
    navigation = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)["nav"]
    shown = re.findall(r"'([\w/]+\.md)'", str(navigation))
    assert sorted(shown) == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


def test_warnings_of_the_site_are_errors() -> None:
    made = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\ndocs:")[2].partition("\n\n")[0]
    assert "mkdocs build --strict" in made
    assert "--quiet" not in made  # hides warnings from --strict


def test_pages_made_from_the_code_are_up_to_date() -> None:
    command = [sys.executable, str(DOCS / "make_reference.py"), "--check"]
    made = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert made.returncode == 0, made.stderr


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_yaml_on_a_page_is_yaml(page: Path) -> None:
    for block in re.findall(r"^```yaml\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S):
        yaml.safe_load(block)


def configurations() -> Iterator[tuple[str, str]]:
    """Every ladder and study that a page shows, with the page's name."""
    for page in PAGES:
        for block in re.findall(r"^```yaml\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S):
            if yaml.safe_load(block).keys() & {"rungs", "recipes"}:
                yield name(page), block


@pytest.mark.parametrize(("page", "text"), configurations())
def test_a_ladder_or_study_on_a_page_is_one_that_can_be_planned(page: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    if "recipes:" in text:
        assert load_study_config(path).recipes
        return
    config = load_ladder_config(path)
    if config.rungs[0].source is None:
        assert len(plan_ladder(config).rungs) == len(config.rungs)


def test_citation_and_changes_are_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (citation["version"], citation["license"]) == (__version__, project["license"])
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[{re.escape(__version__)}\] - \d{{4}}-\d\d-\d\d$", changes, re.M)


def test_licences_are_listed_of_all_that_is_asked_for() -> None:
    page = (DOCS / "reference/licences.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| \*\*([\w.-]+)\*\* \| .* \| (.+) \|$", page, re.M))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert listed.keys() == {
        re.split(r"[<>=\[]", line)[0].lower().replace("_", "-") for line in project["dependencies"]
    }
    assert "see its files" not in listed.values()


def test_a_prime_in_a_formula_stands_beside_its_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS))
    formulas = importlib.import_module("formulas")
    shown = formulas.on_page_content('<p><span class="arithmatex">\\(\\frac{D}{D\'} x_1\\)</span></p>')
    assert "<mi>D</mi><mo " in shown
    assert "&#x02032;</mo>" in shown
    assert "<msup>" not in shown
    assert "<msub><mi>x</mi><mn>1</mn></msub>" in shown
