"""Finished CORE tasks on the disk, so that an interrupted evaluation goes on where it stopped.

One JSON file holds, for every finished task, its result and a key: a digest of all that the result depends on. A
task whose key differs (other weights, another tokenizer, other data, another subsample) is evaluated again.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_progressive.evaluation.core.bundle import Task
from hf_progressive.storage import read_json, write_json

_FORMAT = 1
"""Counts up when the same inputs may give other results."""


class TaskLedger:
    """The finished tasks of one evaluation, kept in a JSON file.

    Args:
        path: The file; it is created with the first finished task.

    Raises:
        ValueError: The file exists and is not a ledger.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._content = read_json(self.path) if self.path.exists() else {"tasks": {}}
        if not isinstance(self._content.get("tasks"), dict):
            raise ValueError(f'{self.path}: has no "tasks" table; delete it, or name another file to resume from')

    def find(self, label: str, key: str) -> dict[str, Any] | None:
        """Look a finished task up.

        Args:
            label: The task's label.
            key: Its key now.

        Returns:
            The result stored under that very key, or None.
        """
        entry = self._content["tasks"].get(label, {})
        result: dict[str, Any] | None = entry.get("result") if entry.get("key") == key else None
        return result

    def record(self, label: str, key: str, result: dict[str, Any]) -> None:
        """Store a finished task and write the file.

        Args:
            label: The task's label.
            key: What its result depends on, digested.
            result: The result, as JSON can hold it.
        """
        self._content["tasks"][label] = {"key": key, "result": result}
        write_json(self.path, self._content)


def task_key(model_digest: str, task: Task, max_per_task: int | None) -> str:
    """Digest what a task's result depends on.

    Args:
        model_digest: Of the model and its tokenizer, from `digest_model`.
        task: The task.
        max_per_task: How many examples are asked; None for all.

    Returns:
        64 hexadecimal digits.
    """
    definition = [task.label, task.kind, task.shots, task.delimiter, task.baseline, task.sha256]
    return hashlib.sha256(json.dumps([_FORMAT, model_digest, definition, max_per_task]).encode()).hexdigest()


def digest_model(model: PreTrainedModel, tokenizer: Any) -> str:
    """Digest a model's configuration and weights, and its tokenizer.

    Args:
        model: The model.
        tokenizer: Its tokenizer.

    Returns:
        64 hexadecimal digits, the same for equal weights wherever they were loaded from.
    """
    config = {k: v for k, v in model.config.to_dict().items() if k not in {"_name_or_path", "transformers_version"}}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = sorted(tokenizer.get_vocab().items()) if backend is None else backend.to_str()
    digest.update(json.dumps([vocabulary, tokenizer.bos_token_id]).encode())
    return digest.hexdigest()
