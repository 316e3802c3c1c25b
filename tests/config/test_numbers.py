"""Every number of every configuration, found by walking the classes: what is none, or out of range, is named."""

import copy
import dataclasses
import functools
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any

import pytest

from hf_progressive.config import LadderConfig, StudyConfig, TrainingConfig, strict_yaml
from hf_progressive.config.model import RungConfig

LADDER = {
    "rungs": [{"name": "a", "n_layer": 2}, {"name": "b", "n_layer": 3}],
    "core": {"bundle": "core"},
    "publish": {"repo_id": "o/{name}"},
}
TRUNK = [{"name": "t", "n_layer": 2, "until": 0.2}]
STUDY = {"ladder": LADDER, "recipes": [{"name": "grown"}, {"name": "trunk", "trunk": TRUNK}]}

NO_NUMBERS = (".nan", ".inf", "-.inf", "1e400", "-1e400", "'1'", "many", "true", "[1]", "{a: 1}", "[]", "2020-01-01")
TOO_LARGE = ("1" + "0" * 40, "1" + "0" * 400, "0x" + "f" * 5000, "-1" + "0" * 40)

MAY_BE = {"-1": ["learning_rate_by_width"]}
"""Values out of range for all numbers but these."""


def numbers(hint: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Find the dotted path and the type of every number that a type holds."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        yield from numbers(arguments[0], path)
    elif origin in (typing.Union, types.UnionType):
        members = [member for member in arguments if member is not type(None)]
        if len(members) == 1:
            yield from ((where, (number, len(arguments) > 1)) for where, (number, _) in numbers(members[0], path))
    elif origin is tuple:
        yield from numbers(arguments[0], (*path, "0"))
    elif dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint, include_extras=True)
        for field in dataclasses.fields(hint):
            yield from numbers(hints[field.name], (*path, field.name))
    elif hint in (int, float):
        yield ".".join(path), (hint, False)


def with_value(plain: dict[str, Any], path: str, text: str) -> dict[str, Any]:
    """Put the value into plain values, and lists where a list is missing."""
    result = copy.deepcopy(plain)
    node, keys = result, path.split(".")
    for key, after in zip(keys, keys[1:], strict=False):
        if isinstance(node, list):
            node.extend([{}] * (int(key) + 1 - len(node)))
            node = node[int(key)]
        else:
            node = node.setdefault(key, [] if after.isdigit() else {})
    value = parsed(text)
    if isinstance(node, list):
        node[:] = [value]
    else:
        node[keys[-1]] = value
    return result


@functools.cache
def parsed(text: str) -> Any:
    """Read a value as YAML does."""
    return strict_yaml.parse_yaml(text)


def cases() -> list[tuple[type[Any], str, type[Any], bool]]:
    """List every number of a ladder and of a study."""
    found = [(LadderConfig, *case) for case in numbers(LadderConfig, ())]
    found += [(StudyConfig, *case) for case in numbers(StudyConfig, ()) if not case[0].startswith("ladder.")]
    return [(cls, path, number, optional) for cls, path, (number, optional) in found]


def test_the_walk_finds_the_numbers() -> None:
    paths = {path for _, path, _, _ in cases()}
    assert len(paths) > 50
    assert {"seed", "training.adam_beta2", "data.tokenizer.vocab_size", "phi.fisher.batch_tokens"} <= paths
    assert {"rungs.0.until", "rungs.0.depth", "core.batch_size", "seeds.0", "learning_rates.rates.0"} <= paths
    assert {"recipes.0.child_fractions.0", "recipes.0.trunk.0.until"} <= paths


@pytest.mark.parametrize(("cls", "path", "number", "optional"), cases())
def test_what_is_no_number_in_range_is_refused_by_its_path(
    cls: type[Any], path: str, number: type[Any], optional: bool
) -> None:
    plain, field = STUDY if cls is StudyConfig else LADDER, path.removesuffix(".0").rpartition(".")[2]
    refused = [*NO_NUMBERS, *TOO_LARGE, *([] if optional else ["null"])]
    refused += [] if field in MAY_BE["-1"] else ["-1", "-0.5"]
    refused += ["1.5"] if number is int else []
    refused.remove("'1'") if number is float else None  # text that is a number is one, as in 1e-3
    for text in refused:
        with pytest.raises(ValueError, match=".") as caught:
            strict_yaml.build(cls, with_value(plain, path, text))
        assert path in str(caught.value), text
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 600


@pytest.mark.parametrize(("cls", "path", "number", "optional"), cases())
def test_what_is_built_in_python_is_checked_as_what_is_read(
    cls: type[Any], path: str, number: type[Any], optional: bool
) -> None:
    owner: Any = cls
    *parents, last = path.removesuffix(".0").split(".")
    for key in parents:
        if not key.isdigit():
            owner = next(part for part in _parts(typing.get_type_hints(owner)[key]) if dataclasses.is_dataclass(part))
    needed = {"name": "x", "bundle": "core", "repo_id": "o/{name}", "rungs": (RungConfig(name="d2", depth=2),)}
    names = {field.name for field in dataclasses.fields(owner) if field.default is dataclasses.MISSING}
    given = {name: value for name, value in needed.items() if name in names}
    if owner is StudyConfig:
        given |= {"ladder": None, "recipes": ()}
    for value in (float("nan"), float("-inf"), 10**400, "x"):
        with pytest.raises(ValueError, match=rf"^{last}\b"):
            owner(**{**given, last: (value,) if path.endswith(".0") else value})


def _parts(hint: Any) -> Iterator[Any]:
    arguments = typing.get_args(hint)
    yield from (part for argument in arguments for part in _parts(argument)) if arguments else iter((hint,))


def test_limits_that_mean_something_pass() -> None:
    limits = {"weight_decay": 0, "max_grad_norm": 0, "adam_beta1": 0, "final_lr_ratio": 1, "inherited_fraction": 4}
    assert strict_yaml.build(TrainingConfig, limits).adam_beta1 == 0
    with pytest.raises(ValueError, match=r"adam_beta2: expected 0 or more, below 1, got 1\.0"):
        strict_yaml.build(TrainingConfig, {"adam_beta2": 1})
