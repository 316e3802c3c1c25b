"""Fisher diagonals and subspaces on disk: one safetensors file each, which says how it was made."""

import dataclasses
import functools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch import distributed as dist
from torch.distributed.tensor import DTensor

from hf_progressive import storage
from hf_progressive.config.strict_yaml import build
from hf_progressive.estimation.sharded_sums import whole_tensor
from hf_progressive.penalty.lazy_tensors import LazyTensors
from hf_progressive.penalty.saved_penalty import read_tensor

_HEADER_KEY = "hf_progressive"


@dataclass(frozen=True, kw_only=True)
class FisherRecord:
    """How a Fisher diagonal was estimated."""

    kind: str
    """Where targets came from: "empirical" or "true"; "optimizer" if it was read from Adam's second moment."""
    definition: str
    """Whose gradients were squared: "sequence" or "token"."""
    sequences: int
    """Sequences read."""
    tokens: int
    """Tokens read."""
    normalize: str | None = None
    """"mean" if divided by the mean over all entries."""
    model_hash: str = ""
    """SHA-256 of the model's weights, as the caller computes it."""
    data_fingerprint: str = ""
    """What identifies the data, as the caller computes it."""
    batch_tokens: int | None = None
    """Target tokens of the steps whose squared gradients the optimizer averaged."""
    max_grad_norm: float | None = None
    """To what their gradients' norm was clipped; None where that was not undone."""


@dataclass(frozen=True, kw_only=True)
class SubspaceRecord:
    """How a subspace was learned."""

    source: str
    """"weights", "gradients" or "activations"."""
    energy: float | None = None
    """Share of the trace the basis holds, where that set its rank."""
    rank: int | None = None
    """The rank, where it was fixed."""
    sequences: int = 0
    """Sequences read; 0 for weights."""
    tokens: int = 0
    """Tokens read; 0 for weights."""
    model_hash: str = ""
    """SHA-256 of the model's weights, as the caller computes it."""
    data_fingerprint: str = ""
    """What identifies the data, as the caller computes it."""


Record = TypeVar("Record", FisherRecord, SubspaceRecord)


def save_estimate(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], record: FisherRecord | SubspaceRecord
) -> None:
    """Write a Fisher diagonal or bases by name, and how they were made, whole or not at all even if the process dies.

    If the tensors are divided among processes, each of these must call; the first writes.
    """
    content = {name: whole_tensor(value).cpu().contiguous() for name, value in tensors.items()}
    if any(isinstance(value, DTensor) for value in tensors.values()) and dist.get_rank() > 0:
        return
    # One key: safetensors writes several in an order that changes from call to call, so that equal files would differ.
    header = {_HEADER_KEY: json.dumps({"type": type(record).__name__} | dataclasses.asdict(record))}
    with storage.atomic_file(path) as temporary:
        save_file(content, temporary, metadata=header)


def read_record(path: str | os.PathLike[str], record_type: type[Record]) -> Record:
    """Read how a file's estimate was made, without the estimate."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_HEADER_KEY, "{}")
    except SafetensorError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not a sound safetensors file ({reason}); write it again") from error
    header: Any = storage.parse_json(text, str(path))
    if not isinstance(header, dict) or header.pop("type", None) != record_type.__name__:
        raise ValueError(
            f"{path}: holds no {record_type.__name__}; it was not written by this package's save function"
        )
    try:
        return build(record_type, header, _HEADER_KEY)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def open_estimate(path: str | os.PathLike[str], record_type: type[Record]) -> LazyTensors:
    """Read an estimate one tensor at a time; the file must stay while it is in use."""
    read_record(path, record_type)  # refuses a file that is damaged or of another sort
    with safe_open(path, framework="pt") as file:
        return LazyTensors(file.keys(), functools.partial(read_tensor, path))
