"""What the loopback Hub accepts as a model card's metadata, after the specification in huggingface/hub-docs."""

import re
from typing import Any

import yaml

YAML_BLOCK = re.compile(r"^(\s*---(?:\r\n|\r|\n))([\S\s]*?)((?:\r\n|\r|\n)---[ \t]*(\r\n|\n|$))")

LICENSES = {"apache-2.0", "mit", "cc-by-4.0", "bsd-3-clause", "other"}
"""A few of the identifiers the Hub knows, enough to refuse a wrong one."""

BASE_MODEL_RELATIONS = {"finetune", "adapter", "quantized", "merge"}

REPO_ID = re.compile(r"[\w-]+(\.[\w-]+)*(/[\w-]+(\.[\w-]+)*)?")


def metadata_errors(content: str) -> tuple[dict[str, Any], list[str]]:
    """The metadata of a README.md, and what is wrong with it."""
    block = YAML_BLOCK.search(content)
    if block is None:
        return {}, []
    try:
        data = yaml.safe_load(block[2])
    except yaml.YAMLError as error:
        return {}, [str(error)]
    if not isinstance(data, dict):
        return {}, ["metadata must be an object"]
    return data, [*_field_errors(data), *_model_index_errors(data.get("model-index", []))]


def _field_errors(data: dict[str, Any]) -> list[str]:
    errors = []
    if "license" in data and data["license"] not in LICENSES:
        errors.append(f'"license" must be one of [{", ".join(sorted(LICENSES))}]')
    if data.get("base_model_relation", "finetune") not in BASE_MODEL_RELATIONS:
        errors.append('"base_model_relation" must be one of [finetune, adapter, quantized, merge]')
    for key in ("base_model", "datasets"):
        values = data.get(key, [])
        for value in [values] if isinstance(values, str) else values:
            if not REPO_ID.fullmatch(value):
                errors.append(f'"{key}" {value!r} is not a valid name on the Hub')
    for language in data.get("language", []):
        if not re.fullmatch(r"[a-z]{2,3}|code|multilingual", str(language)):
            errors.append(f'"language" {language!r} must be an ISO 639-1, 639-2 or 639-3 code')
    return errors


def _model_index_errors(models: list[dict[str, Any]]) -> list[str]:
    errors = []
    for index, model in enumerate(models):
        errors += [f'"model-index[{index}].{key}" is required' for key in ("name", "results") if key not in model]
        for result in model.get("results", []):
            if "type" not in result.get("task", {}):
                errors.append(f'"model-index[{index}].results.task.type" is required')
            if not {"name", "type"} <= result.get("dataset", {}).keys():
                errors.append(f'"model-index[{index}].results.dataset" needs a name and a type')
            if not all({"type", "value"} <= metric.keys() for metric in result.get("metrics", [{}])):
                errors.append(f'"model-index[{index}].results.metrics" need a type and a value')
    return errors
