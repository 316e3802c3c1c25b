"""Fisher diagonals and subspaces on disk: one safetensors file each, which says how it was made."""

import dataclasses
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
from hf_progressive.estimation.sharded_sums import whole_tensor
from hf_progressive.penalty.saved_penalty import LazyTensors

_HEADER_KEY = "hf_progressive"


@dataclass(frozen=True, kw_only=True)
class FisherRecord:
    """How a Fisher diagonal was estimated."""

    kind: str
    """Where targets came from: "empirical" or "true"."""
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


def load_fisher(
    path: str | os.PathLike[str], *, expected: Mapping[str, Tensor] | None = None
) -> tuple[dict[str, Tensor], FisherRecord]:
    """Read a Fisher diagonal, and how it was estimated.

    Args:
        path: A file `save_estimate` wrote.
        expected: Tensors, parameters for instance, whose names and shapes the file must have exactly.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged or of another sort, or its names or shapes are not those expected.
    """
    tensors, record = _load(path, FisherRecord)
    if expected is not None:
        _check_names(path, set(tensors), set(expected), missing_allowed=False)
        for name, value in expected.items():
            if tensors[name].shape != value.shape:
                raise ValueError(
                    f"{path}: {name} has shape {tuple(tensors[name].shape)}, the model's has {tuple(value.shape)};"
                    " the file belongs to another model"
                )
    return tensors, record


def load_subspace(
    path: str | os.PathLike[str], *, expected: Mapping[str, int] | None = None
) -> tuple[dict[str, Tensor], SubspaceRecord]:
    """Read the bases of a subspace, and how it was learned.

    Args:
        path: A file `save_estimate` wrote.
        expected: Outputs per parameter name; the file may hold fewer names, but no others, and must have as many rows.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged or of another sort, or its names or rows are not those expected.
    """
    tensors, record = _load(path, SubspaceRecord)
    if expected is not None:
        _check_names(path, set(tensors), set(expected), missing_allowed=True)
        for name, basis in tensors.items():
            if len(basis) != expected[name]:
                raise ValueError(
                    f"{path}: the basis of {name} has {len(basis)} rows, the weight has {expected[name]} outputs;"
                    " the file belongs to another model"
                )
    return tensors, record


def read_record(path: str | os.PathLike[str], record_type: type[Record]) -> Record:
    """Read how a file's estimate was made, without the estimate."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            return _parse(path, file.metadata(), record_type)
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a sound safetensors file ({error}); write it again") from error


def open_estimate(path: str | os.PathLike[str], record_type: type[Record]) -> LazyTensors:
    """Read an estimate one tensor at a time; the file must stay while it is in use."""
    read_record(path, record_type)

    def read(name: str) -> Tensor:
        try:
            with safe_open(path, framework="pt") as file:
                tensor: Tensor = file.get_tensor(name)
        except SafetensorError as error:
            raise ValueError(f"{path}: not a sound safetensors file ({error}); write it again") from error
        return tensor

    with safe_open(path, framework="pt") as file:
        return LazyTensors(file.keys(), read)


def _load(path: str | os.PathLike[str], record_type: type[Record]) -> tuple[dict[str, Tensor], Record]:
    record, stored = read_record(path, record_type), open_estimate(path, record_type)
    return dict(stored), record


def _parse(path: str | os.PathLike[str], metadata: Mapping[str, str] | None, record_type: type[Record]) -> Record:
    header: dict[str, Any] = json.loads((metadata or {}).get(_HEADER_KEY, "{}"))
    if header.pop("type", None) != record_type.__name__:
        raise ValueError(
            f"{path}: holds no {record_type.__name__}; it was not written by this package's save function"
        )
    return record_type(**header)


def _check_names(path: str | os.PathLike[str], found: set[str], expected: set[str], *, missing_allowed: bool) -> None:
    missing, unknown = sorted(expected - found), sorted(found - expected)
    if unknown or (missing and not missing_allowed):
        raise ValueError(
            f"{path}: has {len(unknown)} names the model lacks (such as {unknown[:1]}) and lacks"
            f" {len(missing)} of its names (such as {missing[:1]}); the file belongs to another model"
        )
