"""JSON Schemas of the records, made of their dataclasses; run as a module, it writes the shipped files anew."""

import ast
import dataclasses
import inspect
import json
import textwrap
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

from hf_progressive.config.ranges import Range
from hf_progressive.records.ladder import LadderRecord
from hf_progressive.records.run_progress import ProgressRecord
from hf_progressive.records.rung import RungRecord
from hf_progressive.records.study import StudyRecord
from hf_progressive.records.typed import Record

SCHEMAS: dict[str, type[Record]] = {
    "rung.schema.json": RungRecord,
    "ladder.schema.json": LadderRecord,
    "progress.schema.json": ProgressRecord,
    "study.schema.json": StudyRecord,
}
"""The shipped files, and what they describe."""

_SCALARS = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}


def json_schema(record: type[Record]) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of what a record's reader takes: beside the known keys, any others."""
    found: dict[str, Any] = {}
    _define(record, found)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found.pop(record.__name__), "$defs": found}


def _define(record: type[Any], found: dict[str, Any]) -> dict[str, str]:
    # A reference to a record's schema, which is added to those found.
    if record.__name__ not in found:
        found[record.__name__] = {}  # its place
        hints, texts = typing.get_type_hints(record, include_extras=True), _field_texts(record)
        fields = [field for field in dataclasses.fields(record) if field.name != "others"]
        required = [field.name for field in fields if _is_required(field, record)]
        found[record.__name__] |= {
            "title": record.__name__,
            "description": inspect.getdoc(record),
            "type": "object",
            "properties": {
                field.name: {"description": texts[field.name], **_schema(hints[field.name], found)} for field in fields
            },
            **({"required": required} if required else {}),
        }
    return {"$ref": f"#/$defs/{record.__name__}"}


def _is_required(field: "dataclasses.Field[Any]", record: type[Any]) -> bool:
    if field.name == "format":
        return record in SCHEMAS.values()
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _field_texts(record: type[Any]) -> dict[str, str]:
    # The string under each field, in the class and those that it extends.
    texts: dict[str, str] = {}
    for cls in reversed(record.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                texts[ast.unparse(field.target)] = " ".join(str(ast.literal_eval(text.value)).split())
    return texts


def _schema(hint: Any, found: dict[str, Any]) -> dict[str, Any]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return {}
    if origin is Annotated:
        limit: Range = arguments[1]
        most = {} if limit.maximum == float("inf") else {"maximum": limit.maximum}
        return {**_schema(arguments[0], found), "minimum": limit.minimum, **most}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_schema(member, found) for member in arguments]}
    if origin is tuple:
        return {"type": "array", "items": _schema(arguments[0], found)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(arguments[1], found)}
    return {"type": _SCALARS[hint]} if hint in _SCALARS else _define(hint, found)


def schema_text(record: type[Record]) -> str:
    """Return what a record's shipped file holds: a line for every key."""
    return _lines(json_schema(record), " ") + "\n"


def _lines(schema: dict[str, Any], indent: str) -> str:
    lines = []
    for key, value in schema.items():
        opened = key in ("properties", "$defs") or (isinstance(value, dict) and "properties" in value)
        text = _lines(value, indent + " ") if opened else json.dumps(value, ensure_ascii=False)
        lines.append(f"{indent}{json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + f"\n{indent[1:]}}}"


if __name__ == "__main__":
    for name, record in SCHEMAS.items():
        (Path(__file__).parent / name).write_text(schema_text(record), encoding="utf-8")
