"""Plain values to frozen dataclasses: every value of its declared type, every error with its dotted path.

Configurations are read from YAML, where every key must be known. Records are read from JSON by the same functions,
`exact`: JSON keeps types, so that a string is no number there and a whole number stays one; and what a newer version
wrote beside the known keys is kept, unread, in the class's field `others`.

This module imports neither torch nor transformers.
"""

import contextlib
import dataclasses
import difflib
import functools
import re
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, TypeVar

import yaml

from hf_progressive.config.ranges import require_finite, shown, shown_key
from hf_progressive.config.renamed import current_path, with_current_names

_MOST_VALUES = 100_000
"""Values of a configuration, those of aliases counted where they are used."""

_MOST_BYTES = 1 << 20
"""Size of a configuration's file; reading takes half a second for it, and for ever where a corpus is given instead."""

_MOST_LEVELS = 100
_IN_QUOTES = """; put it in quotes, "..." (on a command line '"..."'): YAML reads no text without them"""
_TOO_DEEP = "is nested too deeply for a configuration"


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


T = TypeVar("T", bound=_Dataclass)


class _PlainLoader(yaml.SafeLoader):
    """A safe loader of plain values alone, which refuses a key given twice: YAML would silently keep the last.

    A date is text, as it is where someone writes one. Tags for anything but numbers, text, lists and mappings are
    unknown here.
    """

    yaml_constructors = {
        tag: constructor
        for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in ("null", "bool", "int", "float", "str", "seq")
    }
    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def fetch_flow_collection_start(self, token: type[yaml.Token]) -> None:
        """Begin a list or a mapping in brackets; each makes every token within it slower."""
        if self.flow_level >= _MOST_LEVELS:
            raise ValueError(_TOO_DEEP)
        super().fetch_flow_collection_start(token)


def _construct_mapping(loader: _PlainLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    mapping: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise ValueError(f"line {line}: a key is a list or a mapping; keys are text")
        if key_node.tag.endswith(":merge"):
            raise ValueError(f"line {line}: keys are not merged by <<; write them out")
        key = loader.construct_object(key_node, deep=True)
        if key in mapping:
            raise ValueError(f"line {line}: the key {key!r} is given twice; keep one")
        mapping[key] = loader.construct_object(value_node, deep=True)
    return mapping


def _construct_scalar(loader: _PlainLoader, node: yaml.ScalarNode) -> Any:
    kind, line = node.tag.rpartition(":")[2], node.start_mark.line + 1
    if kind in ("int", "float"):
        _refuse_other_bases(node.value, line)
    try:
        value = yaml.SafeLoader.yaml_constructors[node.tag](loader, node)
        if isinstance(value, str):
            value.encode()  # half of a surrogate pair is no text
    except (ValueError, LookupError):
        raise ValueError(f"line {line}: {shown(node.value)} cannot be read as {_FORMS[_SCALARS[kind]]}") from None
    return value


def _refuse_other_bases(text: str, line: int) -> None:
    # YAML 1.1, which PyYAML reads, takes 010 for 8 and 1:30 for 90; hardly anybody who writes one means that.
    if _BASE_8.fullmatch(text):
        sign, digits = text[: text.index("0")], text.replace("_", "").lstrip("+-0") or "0"
        base, right, what = 8, f"write {shown_key(sign + digits)}", "begins with 0"
    elif ":" in text:
        base, right, what = 60, "write the number without", "has a colon"
    else:
        return
    raise ValueError(
        f"line {line}: {shown_key(text)} {what}, which YAML reads in base {base}; {right}, or {shown(text)} in quotes"
        " for a text"
    )


_BASE_8 = re.compile(r"[-+]?0[0-7_]+")

_SCALARS: dict[str, type] = {"bool": bool, "int": int, "float": float, "str": str}

_PlainLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)
for _name in _SCALARS:
    _PlainLoader.add_constructor(f"tag:yaml.org,2002:{_name}", _construct_scalar)


def _values_in(node: yaml.Node | None, known: dict[int, int]) -> int:
    # What a node holds once every alias is written out, which grows tenfold with each of a few lines.
    if node is None or isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = 0  # while it is counted
        parts = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_values_in(part, known) for part in parts)
    elif known[id(node)] == 0:
        raise ValueError(f"line {node.start_mark.line + 1}: an alias stands for what it is in; write the value out")
    return known[id(node)]


def parse_yaml(text: str) -> Any:
    """Read one YAML document to plain values.

    Raises:
        ValueError: It is not valid, has a key twice or one that is no text or number, or is nested too deeply or too
            large; in one line.
    """
    try:
        loader = _PlainLoader(text)
        try:
            node = loader.get_single_node()
            if (values := _values_in(node, {})) > _MOST_VALUES:
                raise ValueError(f"holds {values:,} values, aliases written out; {_MOST_VALUES:,} are the most")
            return None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        raise ValueError(f"not valid YAML: {_marked(error)}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None


def _marked(error: yaml.MarkedYAMLError) -> str:
    # Where and what, without the excerpt that PyYAML adds.
    mark, problem = error.problem_mark or error.context_mark, error.problem or error.context
    if str(problem).startswith("but ") and error.context:  # the rest of its sentence
        problem = f"{error.context}, {problem}"
    where = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
    return " ".join(f"{where}{problem}".split())


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping, and no key twice, to plain values under the names that keys have now."""
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file; give the path of a YAML configuration") from None
    if len(content) > _MOST_BYTES:
        raise ValueError(f"{path}: is larger than {_MOST_BYTES:,} bytes, which no configuration is; give a YAML file")
    try:
        value = with_current_names(parse_yaml(content.decode("utf-8")))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8, at its byte {error.start + 1:,}; save it as UTF-8 text") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(value, dict):
        found = "nothing" if value is None else _FORMS.get(type(value), "a list")
        raise ValueError(f"{path}: holds {found}, expected a mapping of keys to values")
    return value


def nearest(name: str, known: Iterable[str]) -> str:
    """Return advice on a misspelt name: the nearest right one, or all of them where none is near.

    >>> nearest("lamda", ["lambda", "gamma"])
    "did you mean 'lambda'?"
    >>> nearest("lamda", [])
    'there is none'
    """
    choices = sorted(known)
    if not choices:
        return "there is none"
    close = difflib.get_close_matches(name, choices, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(choices)}"


def apply_overrides(mapping: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return a copy of plain values with overrides of the form `key.path=value` applied.

    The value is YAML; a number in the path indexes a list.

    >>> apply_overrides({"phi": {"gamma": 1.0}, "rungs": ["d4"]}, ["phi.gamma=0.5", "rungs.0=d6"])
    {'phi': {'gamma': 0.5}, 'rungs': ['d6']}
    """
    if isinstance(overrides, str):
        raise ValueError(f"overrides is a text; give a list, [{overrides!r}]")
    result: dict[str, Any] = with_current_names(dict(mapping))  # a deep copy of plain values
    for item in overrides:
        path, equals, text = item.partition("=")
        if not equals or not path:
            raise ValueError(f"override {item!r}: expected key.path=value, with the '=' and without spaces")
        try:
            value = parse_yaml(text)
        except ValueError as error:
            raise ValueError(f"override of {path}: {error}") from error
        path, value = current_path(path), with_current_names(value)
        *parents, last = path.split(".")
        node: Any = result
        for depth, key in enumerate(parents):
            node = _child(node, key, ".".join(parents[: depth + 1]), item)
        if isinstance(node, list):
            node[_list_index(node, last, path, item)] = value
        elif isinstance(node, dict):
            node[last] = value
        else:
            raise ValueError(f"override {item!r}: {'.'.join(parents)} is a single value, it has no keys")
    return result


def _list_index(node: list[Any], key: str, path: str, item: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", key) or int(key) >= len(node):
        raise ValueError(f"override {item!r}: {path} needs an index from 0 to {len(node) - 1}")
    return int(key)


def _child(node: Any, key: str, path: str, item: str) -> Any:
    if isinstance(node, list):
        return node[_list_index(node, key, path, item)]
    if isinstance(node, dict):
        if node.get(key) is None:
            node[key] = {}
        return node[key]
    raise ValueError(f"override {item!r}: {path} lies below a single value, which has no keys")


def build(cls: type[T], value: Any, path: str = "", *, exact: bool = False) -> T:
    """Build a dataclass from a mapping at a dotted path, checking every key and the type of every value.

    A class may define `from_yaml(value, path)` to accept other forms than a mapping, and `advice_on(key, known)` to
    say more of unknown keys than `nearest` does.

    Raises:
        ValueError: A key is unknown or missing, or a value has the wrong type or is refused by the class; all such
            keys are listed, in one line; of a record the first alone, since a damaged one may lack them all.
    """
    where = path or "the top level"
    if not isinstance(value, Mapping):
        names = ", ".join(field.name for field in dataclasses.fields(cls))
        keys = "" if exact or not path else f"; its keys are {names}"
        raise ValueError(f"{where}: expected a mapping of keys to values, got {shown(value)}{keys}")
    if not path and not exact:
        value = with_current_names(dict(value))
    hints = type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    arguments: dict[str, Any] = {"others": {}} if exact else {}
    problems = []
    for key, item in value.items():
        here = f"{path}.{shown_key(key)}" if path else shown_key(key)
        if key not in fields and exact:
            require_finite(item, here)
            arguments["others"][key] = item
            continue
        if key not in fields:
            advice = getattr(cls, "advice_on", nearest)(str(key), fields)
            problems.append(f"{here}: unknown key; {advice}")
            continue
        try:
            arguments[key] = convert(hints[key], item, here, exact=exact)
        except ValueError as error:
            problems.append(str(error))
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in value:
            problems.append(f"{f'{path}.{name}' if path else name} is missing; it has no default")
    if problems:
        raise ValueError(problems[0] if exact else "; ".join(problems))
    try:
        return cls(**arguments)
    except ValueError as error:
        raise ValueError(f"{path}.{error}" if path else str(error)) from None


@functools.cache
def type_hints(cls: type) -> dict[str, Any]:
    """Return the types of a class's fields, with what numbers may be."""
    return typing.get_type_hints(cls, include_extras=True)


def convert(hint: Any, value: Any, path: str, *, exact: bool = False) -> Any:
    """Convert a plain value at a dotted path to a declared type, strictly.

    The type is a scalar, `Annotated` with a `Range` or not, `Literal`, union, `tuple[X, ...]`, `dict[str, X]`,
    dataclass or `Any`. Integers pass for floats, and so do strings such as `1e-3`, which YAML 1.1 takes for text.
    """
    if hint is Any:
        require_finite(value, path)
        return value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        value = convert(arguments[0], value, path, exact=exact)
        arguments[1].check(value, path)
        return value
    if origin is Literal:
        if value not in arguments or isinstance(value, bool):
            remedy = _IN_QUOTES if isinstance(value, bool) and str(value).lower() in arguments and not exact else ""
            raise ValueError(f"{path}: {shown(value)} is not one of {', '.join(map(str, arguments))}{remedy}")
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, value, path, exact=exact)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{path}: expected a list, got {shown(value)}{_as_a_list(value)}")
        return tuple(convert(arguments[0], item, f"{path}.{i}", exact=exact) for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ValueError(f"{path}: expected a mapping, got {shown(value)}")
        return {
            str(key): convert(arguments[1], item, f"{path}.{shown_key(key)}", exact=exact)
            for key, item in value.items()
        }
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        from_yaml = getattr(hint, "from_yaml", None)
        return from_yaml(value, path) if from_yaml else build(hint, value, path, exact=exact)
    return _convert_scalar(hint, value, path, exact=exact)


def _as_a_list(value: Any) -> str:
    return f"; write [{shown(value)}]" if isinstance(value, str | int | float) else ""


def _convert_union(members: tuple[Any, ...], value: Any, path: str, *, exact: bool) -> Any:
    if value is None and type(None) in members:
        return None
    if exact and isinstance(value, Mapping):  # of several dataclasses, the one whose keys are most alike
        records = [member for member in members if isinstance(member, type) and dataclasses.is_dataclass(member)]
        alike = sorted(records, key=lambda record: len(type_hints(record).keys() & value.keys()))
        members = tuple(alike[-1:]) or members
    errors = []
    for member in members:
        if member is type(None):
            continue
        try:
            return convert(member, value, path, exact=exact)
        except ValueError as error:
            errors.append(str(error))
    if len(errors) == 1:
        raise ValueError(errors[0])
    forms = ", or ".join(_form(member) for member in members if member is not type(None))
    raise ValueError(f"{path}: {shown(value)} fits none of the accepted forms: {forms}")


_FORMS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    tuple: "a list",
    dict: "a mapping",
}


def _form(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return ", ".join(map(str, arguments))
    plain = typing.get_origin(arguments[0]) or arguments[0] if origin is Annotated else origin or hint
    return _FORMS.get(plain, "a mapping")


def _convert_scalar(hint: Any, value: Any, path: str, *, exact: bool) -> Any:
    if hint is float and isinstance(value, str) and not exact:
        with contextlib.suppress(ValueError):
            value = float(value)
    if type(value) in (int, float):
        require_finite(value, path)
    if hint is float and type(value) is int:
        return value if exact else float(value)
    if type(value) is not hint:
        remedy = _IN_QUOTES if hint is str and isinstance(value, int | float) and not exact else ""
        raise ValueError(f"{path}: expected {_FORMS.get(hint, hint.__name__)}, got {shown(value)}{remedy}")
    return value
