"""The house's order: a module imports only what stands above it, and importing the package loads nothing heavy."""

import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter
from importlib import metadata
from pathlib import Path

import pytest

import hf_progressive

PACKAGE = Path(hf_progressive.__file__).parent

FOLDERS = [
    "storage",
    "distributed",
    "config",
    "hub",
    "growth",
    "penalty",
    "estimation",
    "data",
    "training",
    "evaluation",
    "records",
    "planning",
    "ladder",
    "study",
    "report",
    "publishing",
    "cli",
    "__main__",
]
"""In the order in which they may import each other: each only what stands before it."""
OF_EXTRAS = ["deepspeed", "tensorboard", "lm_eval", "peft", "trl", "hypothesis", "pytest", "_pytest"]
OF_ONE_SYSTEM = {"fcntl", "grp", "msvcrt", "posix", "pwd", "resource", "termios", "winreg"}
READ_BY_OTHERS: set[str] = set()  # dependencies that other packages alone import
MOST_LINES = 400
MIRRORS = {
    "__init__.py": "a folder's own",
    "ladder.py": "a ladder's configuration, and its record",
    "study.py": "a study's configuration, its record, and its figures",
}
"""Names of several modules: each is about the one thing that the name says."""
STRANGERS = {("penalty", "growth"), ("estimation", "growth")}


def folder_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_folders(path: Path) -> set[str]:
    folders = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "hf_progressive":
            folders |= {alias.name for alias in node.names if alias.name != "__version__"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hf_progressive."):
            folders.add(node.module.split(".")[1])
    return folders


def imported_packages(path: Path, *, everywhere: bool) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return {name.split(".")[0] for name in names} - {"hf_progressive"}


def normal(requirement: str) -> str:
    name = re.match(r"[\w.-]+", requirement)
    assert name
    return re.sub(r"[-_.]+", "-", name[0]).lower()


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py" or path.parent != PACKAGE)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_up(path: Path) -> None:
    folder = folder_of(path)
    for other in imported_folders(path) - {folder}:
        assert FOLDERS.index(other) < FOLDERS.index(folder), f"{folder} imports {other}, which stands after it"
        assert (folder, other) not in STRANGERS, f"{folder} and {other} do not know each other"


def test_the_list_names_every_folder() -> None:
    assert {folder_of(path) for path in MODULES} == set(FOLDERS)
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py"}


def test_no_two_modules_of_one_name_mean_different_things() -> None:
    counts = Counter(path.name for path in PACKAGE.rglob("*.py"))
    assert {name for name, count in counts.items() if count > 1} <= MIRRORS.keys()


def test_no_file_is_long() -> None:
    root = PACKAGE.parent
    files = [path for folder in (PACKAGE, root / "tests", root / "examples") for path in folder.rglob("*.py")]
    lengths = {str(path.relative_to(root)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import hf_progressive", ["torch", "transformers", "matplotlib", "deepspeed"]),
        ("import hf_progressive.ladder", ["matplotlib", "deepspeed"]),
        ("import hf_progressive.cli; hf_progressive.cli.build_parser()", ["torch", "transformers", "datasets"]),
        ("import hf_progressive.config", ["torch", "transformers"]),
        ("import hf_progressive.study.points, hf_progressive.records.interval", ["torch", "transformers"]),
    ],
)
def test_nothing_heavy_is_loaded(statement: str, absent: list[str]) -> None:
    program = f"import sys; {statement}; print([name for name in {absent!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_import_is_declared_and_every_dependency_imported() -> None:
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    always = {normal(requirement) for requirement in project["dependencies"]}
    extras = {normal(r) for name, group in project["optional-dependencies"].items() if name != "dev" for r in group}
    packages = metadata.packages_distributions()
    used = set()
    for path in [PACKAGE / "__init__.py", *MODULES]:
        for name in imported_packages(path, everywhere=True) - sys.stdlib_module_names:
            distributions = {normal(found) for found in packages[name]}
            at_once = name in imported_packages(path, everywhere=False)
            declared = distributions & (always if at_once else always | extras)
            assert declared, f"{path.name} imports {name}, of {distributions}, which pyproject.toml does not declare"
            used |= declared
    assert always - used == READ_BY_OTHERS


def test_the_lowest_versions_declared_are_those_that_are_tried() -> None:
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (PACKAGE.parent / "constraints-lowest.txt").read_text(encoding="utf-8").splitlines()
    pins = {normal(line): line.partition("==")[2] for line in lines if not line.startswith("#")}
    for requirement in project["dependencies"]:
        floor = requirement.partition(">=")[2]
        if normal(requirement) != "torch":
            assert f"{pins[normal(requirement)]}.0.0".startswith(f"{floor}."), requirement


def test_no_module_needs_one_operating_system() -> None:
    for path in MODULES:
        assert not imported_packages(path, everywhere=True) & OF_ONE_SYSTEM, path


def test_everything_loads_without_the_extras() -> None:
    program = f"""
import importlib, pkgutil, sys
sys.modules |= dict.fromkeys({OF_EXTRAS!r})  # as if they were not installed: None makes an import of the name fail
import hf_progressive
for module in pkgutil.walk_packages(hf_progressive.__path__, "hf_progressive."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
for name in hf_progressive.__all__:
    getattr(hf_progressive, name)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_every_public_name_can_be_loaded() -> None:
    assert set(hf_progressive._HOMES) == set(hf_progressive.__all__)
    for name in hf_progressive.__all__:
        assert getattr(hf_progressive, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = hf_progressive.nothing
