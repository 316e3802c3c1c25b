"""The checkpoint that growth starts from: where it is, what it is, and whether it is sound.

A source is a local folder or a repository of the Hub. Of the latter only configuration, safetensors weights and
tokenizer files are fetched, and nothing in a source is ever run.
"""

import contextlib
import difflib
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

from hf_progressive.config.ranges import shown
from hf_progressive.growth.divisors import unusable_value
from hf_progressive.growth.unmerged import ADAPTER_NAME, refuse_adapter
from hf_progressive.hub.fetch import locate_files
from hf_progressive.hub.names import COMPANIONS, CONFIG_NAME
from hf_progressive.storage import (
    MANIFEST_NAME,
    ReadingFromOutside,
    read_json,
    require_own_file,
    sha256_file,
    write_json,
)

_WEIGHT_PATTERNS = ("model*.safetensors", "model.safetensors.index.json")
_MOST_NAMED = 4
"""Checkpoints within a folder that a message names."""

_SHA256 = re.compile(r"[0-9a-f]{64}")

Stamps = Mapping[str, tuple[int, ...]]
"""By a file's name what tells it from one that was put in its place."""


@dataclass(frozen=True, kw_only=True)
class GrowthSource:
    """A checkpoint on this machine: its name as it was given, and the commit of one from the Hub."""

    name: str
    folder: Path
    revision: str | None = None

    def read_config(self) -> Any:
        """Return the model's `PreTrainedConfig`; one that is not valid or needs remote code is a ValueError."""
        require_config(self.folder)
        for file in (CONFIG_NAME, "tokenizer_config.json"):
            path = self.folder / file
            require_own_file(path, self.folder)
            held = read_json(path) if file == CONFIG_NAME or path.is_file() else {}
            if "auto_map" in held and not (file == CONFIG_NAME and _names_stock_classes(held)):
                raise ValueError(f"{path}: has an auto_map, so it needs remote code; only stock classes are grown")
        model_type = read_json(self.folder / CONFIG_NAME).get("model_type")
        if model_type is None:
            raise ValueError(f"{self.folder / CONFIG_NAME}: has no model_type; add its class's, such as llama")
        if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
            near = difflib.get_close_matches(str(model_type).lower(), CONFIG_MAPPING, n=1)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"{self.folder / CONFIG_NAME}: model_type is {shown(model_type)}, unknown to Transformers{meant}"
            )
        path = self.folder / CONFIG_NAME
        with ReadingFromOutside(
            str(path), "correct that field, or fetch the file again", also=(StrictDataclassError,)
        ):
            config = AutoConfig.from_pretrained(self.folder)
            config.to_json_string()  # some values are looked at only where it is written
        if hasattr(config, "auto_map"):  # of the stock classes: the code beside it stays behind
            del config.auto_map
        if fault := unusable_value(config):
            raise ValueError(f"{path}: {fault}")
        padding, rows = getattr(config, "pad_token_id", None), getattr(config, "vocab_size", None)
        if isinstance(padding, int) and isinstance(rows, int) and padding >= rows:
            raise ValueError(
                f"{self.folder / CONFIG_NAME}: pad_token_id {padding} is outside of the vocabulary of {rows}; set it"
                f" to null there, and add --set vocab_size={padding + 1} if the tokenizer has that token"
            )
        return config

    def companions(self) -> list[str]:
        """Return the names of the files that the grown checkpoint takes over."""
        found = {path for pattern in COMPANIONS for path in self.folder.glob(pattern) if path.is_file()}
        for path in sorted(found):
            require_own_file(path, self.folder)
        return sorted(path.relative_to(self.folder).as_posix() for path in found)

    def stamps(self) -> Stamps:
        """Return what tells that no file has been replaced: of every file that growth may read, by name."""
        patterns = (CONFIG_NAME, *_WEIGHT_PATTERNS, *COMPANIONS)
        found = {}
        for path in {path for pattern in patterns for path in self.folder.glob(pattern)}:
            with contextlib.suppress(FileNotFoundError):
                file = path.stat()
                name = path.relative_to(self.folder).as_posix()
                found[name] = file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns
        return found

    def require_unchanged(self, before: Stamps) -> None:
        """Raise a ValueError if a file was replaced, made or deleted since: a model of two halves is none."""
        now = self.stamps()
        if changed := sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name)):
            raise ValueError(
                f"{self.folder / changed[0]}: changed while it was read; wait for its writer, and try again"
            )

    def copy_companions(self, folder: Path) -> None:
        for name in self.companions():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(self.folder / name, folder / name)

    def follow_context(self, folder: Path, before: int, after: int) -> None:
        """Let the lengths of a tokenizer and of generation be the child's context, where they are the parent's."""
        for file, key in (("tokenizer_config.json", "model_max_length"), ("generation_config.json", "max_length")):
            held = read_json(self.folder / file) if (self.folder / file).is_file() else {}
            if before != after and held.get(key) == before:
                write_json(folder / file, read_json(folder / file) | {key: after})

    def sizes(self, files: Iterable[str]) -> dict[str, int]:
        """Measure files, in bytes, and compare them with the source's manifest, if it has one that lists them."""
        listed = self._manifest()
        sizes = {name: (self.folder / name).stat().st_size for name in files}
        for name, size in sizes.items():
            expected = listed.get(name, {}).get("size", size)
            if size != expected:
                path = self.folder / name
                raise ValueError(f"{path}: {size} bytes, {MANIFEST_NAME} says {expected}; it is truncated or altered")
        return sizes

    def digest(self, files: Iterable[str]) -> dict[str, str]:
        """Return the SHA-256 of files, compared with what is known of them.

        Known are those of the source's manifest, if it has one, and of large files in the Hub's cache, where it is the
        name of the file that a snapshot links to.
        """
        listed = self._manifest()
        digests = {}
        for name in files:
            path = self.folder / name
            digests[name] = actual = sha256_file(path)
            blob = path.resolve().name
            expected = blob if _SHA256.fullmatch(blob) else listed.get(name, {}).get("sha256", actual)
            if actual != expected:
                raise ValueError(f"{path}: its SHA-256 is not the one recorded; the file is damaged, fetch it again")
        return digests

    def _manifest(self) -> dict[str, Any]:
        if not (self.folder / MANIFEST_NAME).is_file():
            return {}
        files = read_json(self.folder / MANIFEST_NAME).get("files")
        return files if isinstance(files, dict) else {}  # a manifest of another tool says nothing here


def require_config(folder: Path) -> None:
    """Refuse a folder without a model's config, and say which folders within it have one.

    Raises:
        FileNotFoundError: It holds none.
        ValueError: It holds an adapter.
    """
    if not (folder / CONFIG_NAME).is_file():
        refuse_adapter(folder)
        within = [path.parent for depth in ("*", "*/*") for path in folder.glob(f"{depth}/{CONFIG_NAME}")]
        named = [str(path) for path in sorted(within, key=_likely)[:_MOST_NAMED]]
        more = f" and {len(within) - len(named)} more" if len(within) > len(named) else ""
        advice = f"; in it are {', '.join(named)}{more}" if within else "; give a checkpoint's folder"
        raise FileNotFoundError(f"{folder / CONFIG_NAME}: no such file{advice}")


# What is meant comes first: what is not far down, the trained model before its beginning, the newest checkpoint.
def _likely(folder: Path) -> tuple[int, bool, int, str]:
    step = folder.name.rpartition("-")[2]
    return len(folder.parts), folder.name != "final", -int(step) if step.isdecimal() else 0, str(folder)


# Phi-3 and Falcon were published with code of their own, which became the stock classes under the same names.
def _names_stock_classes(held: Mapping[str, Any]) -> bool:
    model_type, classes = held.get("model_type"), held["auto_map"]
    if not (isinstance(model_type, str) and isinstance(classes, Mapping) and model_type in CONFIG_MAPPING):
        return False
    config = CONFIG_MAPPING[model_type]
    stock = {"AutoConfig": config}
    if config in MODEL_FOR_CAUSAL_LM_MAPPING:
        stock["AutoModelForCausalLM"] = MODEL_FOR_CAUSAL_LM_MAPPING[config]
    return stock.keys() <= classes.keys() and all(
        str(classes[name]).rpartition(".")[2] == own.__name__ for name, own in stock.items()
    )


def locate_source(source: str | os.PathLike[str], revision: str | None = None) -> GrowthSource:
    """Find a checkpoint on this machine, or fetch it from the Hub, as `locate_files` does."""
    name = os.fspath(source)
    folder, commit = locate_files(name, [CONFIG_NAME, ADAPTER_NAME, *_WEIGHT_PATTERNS, *COMPANIONS], revision=revision)
    return GrowthSource(name=name, folder=folder, revision=commit)
