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
import torch
from transformers import LlamaConfig

import hf_progressive
from hf_progressive import (
    InheritancePenalty,
    LoraPenalty,
    ParentDivergence,
    RungResult,
    load_ladder_config,
    plan_growth,
    plan_ladder,
)
from hf_progressive.evaluation.core.evaluate import CoreResult

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


def objects_of_the_api() -> Iterator[object]:
    weights = {f"layers.{layer}.weight": torch.ones(64, 64) for layer in range(24)}
    yield InheritancePenalty(weights, weights, ewc_lambda=2.0)
    yield LoraPenalty(weights, ewc_lambda=2.0)
    yield ParentDivergence(parent=torch.nn.Sequential(*map(torch.nn.Identity, range(24))), blocks=torch.ones(8, 16))
    plan = plan_ladder(load_ladder_config("ladder_tiny"))
    yield from (plan, plan.rungs[-1], plan.rungs[-1].growth)
    yield RungResult(folder=Path("run/l2/final"), record={"name": "l2", "bits_per_byte": 2.5, "curve": [0.1] * 1000})
    tasks: Any = ("a task and its figures",) * 22
    yield CoreResult(
        name="CORE",
        score=0.1,
        standard_error=0.01,
        tasks=tasks,
        absent=(),
        max_per_task=None,
        context=32,
        bos_token=None,
    )


def test_a_notebook_shows_a_few_lines_of_what_the_api_returns() -> None:
    for thing in objects_of_the_api():
        text = repr(thing)
        assert " object at 0x" not in text
        assert (len(text) < 700, text.count("\n") < 10) == (True, True), f"{type(thing).__name__}: {len(text)}"
    shown = {type(thing).__name__: repr(thing) for thing in objects_of_the_api()}
    assert shown["RungResult"] == "<RungResult l2: 2.5000 bits per byte, run/l2/final>"
    assert shown["InheritancePenalty"].startswith("InheritancePenalty(ewc_lambda=2.0, gamma=0.0, apply='gradient'")
    assert shown["GrowthPlan"] == (
        "<GrowthPlan exact, gpt2: width 32 → 48, heads 2 → 3, mlp 128 → 192; 40 tensors; function preserved>"
    )


def test_a_growth_plan_says_why_the_function_is_not_preserved() -> None:
    parent = LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    assert repr(plan_growth(parent, {"num_hidden_layers": 4}, method="stack")) == (
        "<GrowthPlan stack, llama: layers 2 → 4; 39 tensors; function not preserved (the order of layers of 'stack'"
        " does not keep the function)>"
    )
