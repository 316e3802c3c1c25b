"""Finished CORE tasks on the disk, so that an interrupted evaluation goes on where it stopped.

One JSON file holds, for every finished task, its result and a key: a digest of all that the result depends on. A
task whose key differs (other weights, another tokenizer, other data, another subsample) is evaluated again.

One evaluation at a time has the file: each writes all that it has read and found, so that of two the first to write
would lose its tasks. The lock lies beside it, `.NAME.lock`, and goes with the process that holds it.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_progressive.evaluation.core.bundle import Task
from hf_progressive.storage import read_json, write_json
from hf_progressive.storage.locks import try_lock

_FORMAT = 1
"""Counts up when the same inputs may give other results."""


class FinishedTasks:
    """The finished tasks of one evaluation, kept in a JSON file that the first of them creates."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._content = read_json(self.path) if self.path.exists() else {"tasks": {}}
        if not isinstance(self._content.get("tasks"), dict):
            raise ValueError(f'{self.path}: has no "tasks" table; delete it, or name another file to resume from')

    @classmethod
    @contextlib.contextmanager
    def held(cls, path: str | os.PathLike[str]) -> Iterator["FinishedTasks"]:
        """Keep a second evaluation out of the file, and read it.

        Raises:
            ValueError: Another process has the file.
        """
        path = Path(path)
        with try_lock(path.with_name(f".{path.name}.lock")) as is_held:
            if not is_held:
                raise ValueError(f"{path}: another evaluation is working with this file; wait for it or name another")
            yield cls(path)

    def find(self, label: str, key: str) -> dict[str, Any] | None:
        """Return the result stored for a task under that very key, if there is one."""
        entry = self._content["tasks"].get(label)
        result = entry.get("result") if isinstance(entry, dict) and entry.get("key") == key else None
        return result if isinstance(result, dict) else None

    def record(self, label: str, key: str, result: dict[str, Any]) -> None:
        """Store the result of a finished task, as JSON can hold it, and write the file."""
        self._content["tasks"][label] = {"key": key, "result": result}
        write_json(self.path, self._content)


def task_key(model_digest: str, task: Task, max_per_task: int | None) -> str:
    """Digest all that a task's result depends on; `model_digest` is from `digest_model`."""
    definition = [task.label, task.kind, task.shots, task.delimiter, task.baseline, task.sha256]
    return hashlib.sha256(json.dumps([_FORMAT, model_digest, definition, max_per_task]).encode()).hexdigest()


def digest_model(model: PreTrainedModel, tokenizer: Any) -> str:
    """Digest a model's configuration and weights, and its tokenizer: equal weights agree wherever they come from."""
    config = {k: v for k, v in model.config.to_dict().items() if k not in {"_name_or_path", "transformers_version"}}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = sorted(tokenizer.get_vocab().items()) if backend is None else backend.to_str()
    digest.update(json.dumps([vocabulary, tokenizer.bos_token_id]).encode())
    return digest.hexdigest()
