"""The shipped JSON Schemas describe what is read and written: their own small validator agrees with the reader."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from family_records import family
from run_records import ladder_record

from hf_progressive.records.rung import RungRecord
from hf_progressive.records.schema import SCHEMAS, json_schema, schema_text
from hf_progressive.records.study import StudyRecord

STUDIES = Path(__file__).parents[2] / "examples" / "studies"
TYPES: dict[str, Any] = {"string": str, "boolean": bool, "object": dict, "array": list, "null": type(None)}
PHI = {"ewc_lambda": 0.1, "gamma": 1e-3, "schedule": "linear", "until": 0.5}


def faults(value: Any, schema: dict[str, Any], whole: dict[str, Any], path: str = "") -> list[str]:
    """Return the paths at which a value does not follow a schema, by the few keywords that are in use."""
    if "$ref" in schema:
        return faults(value, whole["$defs"][schema["$ref"].rpartition("/")[2]], whole, path)
    if "anyOf" in schema:
        found = [faults(value, member, whole, path) for member in schema["anyOf"]]
        return [] if [] in found else min(found, key=len)
    if "enum" in schema:
        return [] if value in schema["enum"] and not isinstance(value, bool) else [path]
    kind = schema.get("type")
    if kind in ("integer", "number"):
        right = isinstance(value, int | float if kind == "number" else int) and not isinstance(value, bool)
        return [] if right and schema.get("minimum", value) <= value <= schema.get("maximum", value) else [path]
    if kind is not None and not isinstance(value, TYPES[kind]):
        return [path]
    if kind == "array":
        return [fault for i, item in enumerate(value) for fault in faults(item, schema["items"], whole, f"{path}.{i}")]
    if kind != "object":
        return []
    properties = schema.get("properties", {})
    missing = [f"{path}.{key}" for key in schema.get("required", ()) if key not in value]
    below = ((key, item, properties.get(key, schema.get("additionalProperties", {}))) for key, item in value.items())
    return missing + [fault for key, item, part in below for fault in faults(item, part, whole, f"{path}.{key}")]


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_shipped_schema_is_the_one_of_the_record(name: str) -> None:
    shipped = resources.files("hf_progressive.records").joinpath(name).read_text(encoding="utf-8")
    assert shipped == schema_text(SCHEMAS[name]), "run `python -m hf_progressive.records.schema`"


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_key_is_described(name: str) -> None:
    schema = json_schema(SCHEMAS[name])
    for part in (schema, *schema["$defs"].values()):
        assert all(field["description"] for field in part["properties"].values())


@pytest.mark.parametrize("name", ["books", "books_llama", "books_screen"])
def test_committed_studies_follow_their_schema(name: str) -> None:
    schema = json_schema(StudyRecord)
    assert faults(json.loads((STUDIES / name / "study.json").read_text()), schema, schema) == []


@pytest.mark.parametrize("origin", ["scratch", "taken", "taken unknown"])
def test_records_of_runs_follow_their_schemas(origin: Any) -> None:
    schema = json_schema(RungRecord)
    for record in family(3, origin=origin, phi=PHI, timed=True):
        assert faults(record, schema, schema) == []
        assert faults(RungRecord.from_dict(record).to_dict(), schema, schema) == []
    schema = json_schema(SCHEMAS["ladder.schema.json"])
    assert faults(ladder_record(["a", "b"], ["a"]), schema, schema) == []


def test_what_the_reader_refuses_does_not_follow_the_schema() -> None:
    schema = json_schema(RungRecord)
    record = family(2)[1]
    for key, wrong in (("tokens", -1), ("name", None), ("curve", [{}]), ("parameters", {"total": 1.5}), ("format", 2)):
        with pytest.raises(ValueError, match=f"^{key}"):
            RungRecord.from_dict(record | {key: wrong})
        assert faults(record | {key: wrong}, schema, schema)
