"""The public API is documented whole: what each thing is, every parameter, what comes back and what is raised."""

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hf_progressive

_SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises):$", re.MULTILINE)
_ENTRY = re.compile(r"^    \*{0,2}(\w+):", re.MULTILINE)

CONTRACT = {
    "GrowthPlan": ["map_diagonal", "map_gradient", "map_subspace", "inherited_mask", "tensor", "summary"],
    "InheritancePenalty": ["value", "terms"],
    "LadderPlan": ["table"],
}
"""The methods that people's scripts call."""


def sections(doc: str) -> dict[str, str]:
    """The text before the sections under an empty name, and each section's text under its own."""
    parts = _SECTION.split(inspect.cleandoc(doc))
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def entries(text: str) -> set[str]:
    return set(_ENTRY.findall(text))


def raised(function: Any) -> set[str]:
    """The errors that a function's own lines raise, those that it passes on left out."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    calls = (node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise))
    return {call.func.id for call in calls if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)}


def faults_of_function(function: Any, name: str) -> Iterator[str]:
    if not function.__doc__:
        yield f"{name} has no docstring"
        return
    doc, signature = sections(function.__doc__), inspect.signature(function)
    if not re.match(r"[A-ZΦ`].*\.", doc[""], re.DOTALL):
        yield f"{name} does not begin with a sentence"
    parameters = {parameter for parameter in signature.parameters if parameter != "self"}
    if missing := parameters - entries(doc.get("Args", "")):
        yield f"{name} does not document {', '.join(sorted(missing))}"
    if unknown := entries(doc.get("Args", "")) - parameters:
        yield f"{name} documents {', '.join(sorted(unknown))}, which it does not take"
    if signature.return_annotation not in (None, "None") and not doc.keys() & {"Returns", "Yields"}:
        yield f"{name} does not say what it returns"
    if missing := raised(function) - entries(doc.get("Raises", "")):
        yield f"{name} does not say when it raises {', '.join(sorted(missing))}"


def described_fields(cls: type) -> set[str]:
    """The fields of a class that have a text under them."""
    names = set()
    for base in cls.__mro__:
        if base.__module__.startswith("hf_progressive."):
            body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body
            for field, text in zip(body, body[1:], strict=False):
                if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                    names.add(field.target.id)
    return names


def own_parameters(cls: type) -> set[str]:
    """What the class takes by its own lines: fields that it declares, or parameters of its own `__init__`."""
    if dataclasses.is_dataclass(cls):
        own = {name for base in cls.__mro__ if base.__module__.startswith("hf_") for name in base.__annotations__}
        return {field.name for field in dataclasses.fields(cls) if field.name in own and field.init}
    init = cls.__dict__.get("__init__")
    return set() if init is None else set(inspect.signature(init).parameters) - {"self"}


def faults_of_class(cls: type) -> Iterator[str]:
    doc = sections(cls.__doc__ or "")
    if not re.match(r"[A-ZΦ`].*\.", doc[""], re.DOTALL):
        yield f"{cls.__name__} does not begin with a sentence"
    documented = entries(doc.get("Args", "") + doc.get("Attributes", "")) | described_fields(cls)
    if missing := own_parameters(cls) - documented:
        yield f"{cls.__name__} does not document {', '.join(sorted(missing))}"
    for name in CONTRACT.get(cls.__name__, []):
        yield from faults_of_function(inspect.getattr_static(cls, name), f"{cls.__name__}.{name}")
    for name, member in vars(cls).items():
        if inspect.isfunction(member) and not name.startswith("_") and not member.__doc__:
            yield f"{cls.__name__}.{name} has no docstring"


@pytest.mark.parametrize("name", hf_progressive.__all__)
def test_what_is_public_is_documented_whole(name: str) -> None:
    thing = getattr(hf_progressive, name)
    assert list(faults_of_class(thing) if inspect.isclass(thing) else faults_of_function(thing, name)) == []


def test_the_check_finds_what_is_missing() -> None:
    def undocumented(model, *, rate): ...

    def half(model, *, rate) -> int:
        """Train a model.

        Args:
            model: The model.
            speed: How fast.
        """
        raise ValueError(f"{rate}")

    assert list(faults_of_function(undocumented, "f")) == ["f has no docstring"]
    assert list(faults_of_function(half, "f")) == [
        "f does not document rate",
        "f documents speed, which it does not take",
        "f does not say what it returns",
        "f does not say when it raises ValueError",
    ]


ROOT = Path(hf_progressive.__file__).parent.parent


def test_the_page_shows_every_public_name() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert [name for name in hf_progressive.__all__ if not re.search(rf"`{name}\b", text)] == []


@pytest.mark.parametrize(("document", "programs"), [("docs/api.md", 8), ("docs/core.md", 1), ("README.md", 1)])
def test_code_in_documents_parses_and_imports_what_is_public(document: str, programs: int) -> None:
    found = re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(encoding="utf-8"), re.DOTALL)
    assert len(found) >= programs
    for program in found:
        for node in ast.walk(ast.parse(program)):
            if isinstance(node, ast.ImportFrom) and node.module == "hf_progressive":
                assert {alias.name for alias in node.names} <= set(hf_progressive.__all__)
