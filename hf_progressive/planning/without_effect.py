"""Keys of a ladder that would change nothing: who sets one means something by it."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from hf_progressive.config import LadderConfig

_LOCAL = ("text", "json", "parquet")


def keys_without_effect(config: LadderConfig) -> Iterator[str]:
    """Find keys that are not at their default and change nothing; a line each."""
    data = config.data
    if data.source in (*_LOCAL, "stdlib"):
        yield from _given(data, "data", ("name", "split", "revision"), f"the source {data.source} is no Hub dataset")
    if data.source in ("text", "stdlib"):
        yield from _given(data, "data", ("text_column",), f"the source {data.source} has no columns")
    if data.source not in _LOCAL:
        yield from _given(data, "data", ("validation_files",), f"the source {data.source} reads no files")
    if data.validation_files:
        yield from _given(data, "data", ("validation_fraction",), "data.validation_files are held out")
    if data.tokenizer.name is not None:  # a first rung with a source is put into a ladder that trained its tokenizer
        reason, whole = (
            "no tokenizer is trained, one is taken over",
            f"--set 'data.tokenizer={{name: {data.tokenizer.name}}}'",
        )
        for fault in _given(data.tokenizer, "data.tokenizer", ("vocab_size", "training_bytes"), reason):
            yield f"{fault}, by {whole} where a file has it"
    if all(rung.depth is None for rung in config.rungs):
        yield from _given(config.model, "model", ("aspect_ratio", "head_dim"), "no rung is sized by its depth")


def _given(section: Any, path: str, names: tuple[str, ...], reason: str) -> Iterator[str]:
    defaults = {field.name: field.default for field in dataclasses.fields(section)}
    for name in names:
        if getattr(section, name) != defaults[name]:
            yield f"{path}.{name}: without effect, for {reason}; leave it out"
