"""The model card of a rung: metadata the Hub understands and a page for people, both from the records alone.

What a record does not hold is left out, never guessed. The same records give the same card, byte for byte.
"""

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import jinja2
from huggingface_hub import (
    EvalResult,
    EvalResultEntry,
    ModelCard,
    ModelCardData,
    eval_result_entries_to_yaml,
)
from transformers import CONFIG_MAPPING

from hf_progressive.growth.families import FAMILIES
from hf_progressive.growth.mixtures import MIXTURES
from hf_progressive.hub.names import PLOT
from hf_progressive.publishing.card_text import (
    architecture,
    cold_comparison,
    core_results,
    data_use,
    facts,
    family_table,
    growth_story,
    introduction,
    limits,
    penalty,
    training_budget,
)
from hf_progressive.publishing.lineage import Lineage
from hf_progressive.records.rung import LAYER_FIELDS

BASE_MODEL_RELATION = "finetune"
"""The Hub knows finetune, adapter, quantized and merge; a model trained on from another's function is the first."""

METRIC, METRIC_TITLE = "bits_per_byte", "Bits per byte"

_SIZE_FIELDS = ("n_embd", "n_head", "hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size")

_FILES = {
    "config.json": "the model's configuration",
    "model.safetensors": "the weights",
    "model.safetensors.index.json": "which weight is in which of the `model-*.safetensors`",
    "tokenizer.json": "the tokenizer",
    "rung.json": "everything that was measured, but how long it took",
    "growth.json": "how it was grown from its parent, and how far their logits were apart",
    "phi/fisher.safetensors": "diagonal Fisher information of these weights, for a successor's penalty",
    "phi/subspace.safetensors": "the output subspace of each matrix, for a successor's penalty",
    "manifest.json": "size and SHA-256 of every file",
}


def model_card(
    lineage: Lineage,
    *,
    tag: str,
    files: Sequence[str],
    license: str | None = None,
    language: Sequence[str] = (),
) -> ModelCard:
    """Return a rung's model card, beside the files that are published with it, under the tag of this revision."""
    metadata = _metadata(lineage, license=license, language=language)
    body = _template().render(
        title=lineage.repo_id.partition("/")[2],
        repo_id=lineage.repo_id,
        tag=tag,
        architecture=architecture(lineage),
        introduction=introduction(lineage),
        facts=facts(lineage),
        plot=PLOT,
        plot_caption=_plot_caption(lineage),
        growth=growth_story(lineage),
        training=training_budget(lineage),
        cold=cold_comparison(lineage),
        core=core_results(lineage),
        phi=penalty(lineage),
        data=data_use(lineage),
        family=family_table(lineage),
        limits=limits(lineage),
        files=[(name, text) for name, text in _FILES.items() if name in files],
        **_growth_example(lineage, files),
    )
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{body}")


def evaluation_results(lineage: Lineage) -> list[dict[str, Any]]:
    """Return the rung's results in the form of the Hub's `.eval_results/*.yaml`.

    That form names the dataset by its Hub id, so there is none for local files and for the embedded corpus.
    """
    if lineage.dataset_id is None:
        return []
    entry = EvalResultEntry(
        dataset_id=lineage.dataset_id,
        task_id=METRIC,
        value=lineage.rung.bits_per_byte,
        dataset_revision=lineage.data.get("revision"),
        notes="validation documents held out by the hash of their text",
    )
    return eval_result_entries_to_yaml([entry])


def _metadata(lineage: Lineage, *, license: str | None, language: Sequence[str]) -> ModelCardData:
    rung, dataset = lineage.rung, lineage.dataset_id
    tags = ["hf-progressive"]
    if rung.grown:
        tags.append("model-growth")
    if rung.phi and rung.phi.ewc_lambda > 0 and rung.phi.fisher_kind != "ones":
        tags.append("elastic-weight-consolidation")
    metadata = ModelCardData(
        license=license,
        language=list(language) or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        datasets=[dataset] if dataset else None,
        base_model=lineage.parent_repo_id,
        tags=tags,
        metrics=[METRIC],
        model_name=lineage.repo_id.partition("/")[2],
        eval_results=_model_index(lineage),
    )
    if lineage.parent_repo_id is not None:
        metadata["base_model_relation"] = BASE_MODEL_RELATION
    return metadata


def _model_index(lineage: Lineage) -> list[EvalResult]:
    source = str(lineage.data["source"])
    bits_per_byte = EvalResult(
        task_type="text-generation",
        dataset_type=source,
        dataset_name=f"{source}, held-out documents",
        dataset_config=lineage.data.get("name"),
        dataset_revision=lineage.data.get("revision"),
        metric_type=METRIC,
        metric_name=METRIC_TITLE,
        metric_value=lineage.rung.bits_per_byte,
    )
    core = lineage.rung.core
    if core is None:
        return [bits_per_byte]
    return [
        bits_per_byte,
        EvalResult(
            task_type="text-generation",
            dataset_type="dclm-core",
            dataset_name=core.name,
            metric_type="core",
            metric_name="Mean centred accuracy",
            metric_value=core.score,
        ),
    ]


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )  # no autoescape: the page is Markdown
    source = resources.files("hf_progressive").joinpath("templates/model_card.md").read_text(encoding="utf-8")
    return environment.from_string(source)


def _plot_caption(lineage: Lineage) -> str:
    baseline = " and of its baseline" if lineage.rung.cold else ""
    return f"Validation bits per byte of {lineage.rung.name}{baseline} against training FLOPs"


def _growth_example(lineage: Lineage, files: Sequence[str]) -> dict[str, Any]:
    config, child = lineage.rung.config, lineage.child
    fields = {} if child is None else _grown_fields(config, child.config)
    upcycled = bool(fields) and child is not None and child.config["model_type"] != config["model_type"]
    if not fields:
        layer_field = next(name for name in LAYER_FIELDS if name in config)
        fields = {layer_field: config[layer_field] + 1}
    estimates = [
        text
        for name, text in (("fisher", "the Fisher information"), ("subspace", "the output subspaces"))
        if f"phi/{name}.safetensors" in files
    ]
    return {
        "next_folder": child.name if child else "grown",
        "next_fields": "{" + ", ".join(f'"{name}": {value}' for name, value in fields.items()) + "}",
        "next_settings": " ".join(f"{name}={value}" for name, value in fields.items()),
        "next_keyword": ', method="upcycle"' if upcycled else "",
        "next_option": " --method upcycle" if upcycled else "",
        "estimates": " and ".join(estimates),
    }


def _grown_fields(config: Mapping[str, Any], grown: Mapping[str, Any]) -> dict[str, Any]:
    # The sizes, by the names that growth takes, that a parent's config has otherwise or, of experts, not at all.
    family = (FAMILIES | MIXTURES).get(grown["model_type"])
    if family is None:  # one of somebody's own
        return {name: grown[name] for name in (*LAYER_FIELDS, *_SIZE_FIELDS) if grown.get(name) != config.get(name)}
    names = sorted(family.size_fields.values(), key=lambda name: name not in LAYER_FIELDS)
    if grown["model_type"] != config["model_type"] and isinstance(family.normed_choice, str):
        names.append(family.normed_choice)  # which exactness asks for
    stored = CONFIG_MAPPING[family.model_type].attribute_map  # files may have a field by another name
    values = {name: grown.get(name, grown.get(stored.get(name))) for name in names}
    before = {name: config.get(name, config.get(stored.get(name))) for name in names}
    return {name: value for name, value in values.items() if value not in (None, before[name])}
