"""Read safetensors checkpoints one tensor at a time.

`CheckpointReader` takes a folder with `model.safetensors`, or with shards and `model.safetensors.index.json`, reads
the headers and nothing else, and then hands out single tensors. `hf_progressive.growth.writer` is its counterpart.

The file format (https://github.com/huggingface/safetensors#format): 8 bytes with the length of the header, little
endian; the header, a JSON object of `{name: {dtype, shape, data_offsets}}` padded with spaces; the tensors' bytes,
without holes. A tensor is mapped from its file by itself, and let go with it: a file mapped whole would leave all its
pages in the process's resident memory.
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_progressive.distributed.working_dtype import working_dtype
from hf_progressive.storage import read_json

WEIGHTS_NAME = "model.safetensors"
"""Name of the weights' file of a checkpoint that is not sharded."""

INDEX_NAME = "model.safetensors.index.json"
"""Name of the index of a sharded checkpoint."""

LENGTH_BYTES = 8
"""Size of the number that a safetensors file begins with; the data are aligned to it."""

DTYPE_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What the format calls the dtypes known here."""

_PICKLED_PATTERNS = ("*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.ckpt")
_HEADER_LIMIT_BYTES = 100_000_000  # the format's own limit

_DTYPES = {code: dtype for dtype, code in DTYPE_CODES.items()}


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """Shape and dtype of a tensor, known before its values are.

    Args:
        shape: The shape.
        dtype: One of the dtypes a safetensors file can hold.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """The size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """Where a tensor lies: `spec.nbytes` bytes from `offset`, counted from the start of `path`."""

    path: Path
    offset: int
    spec: TensorSpec


class CheckpointReader:
    """The tensors of a local safetensors checkpoint, read one at a time.

    Args:
        folder: A folder with `model.safetensors`, or with `model.safetensors.index.json` and the shards it names.

    Raises:
        FileNotFoundError: There are no weights, or a shard is missing.
        ValueError: The weights are pickled, a file is damaged, or the index contradicts the files.

    >>> import tempfile, torch
    >>> from safetensors.torch import save_file
    >>> folder = tempfile.mkdtemp()
    >>> save_file({"w": torch.ones(2, 3)}, f"{folder}/model.safetensors")
    >>> reader = CheckpointReader(folder)
    >>> reader.specs["w"].shape, reader.read("w").sum().item()
    ((2, 3), 6.0)
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        shards, weight_map = _find_weight_files(self.folder)
        self.files = [*shards, INDEX_NAME] if weight_map else shards
        """Names of the files read."""
        self._entries: dict[str, _Entry] = {}
        for file in shards:
            for name, entry in _read_header(self.folder / file).items():
                if name in self._entries:
                    first = self._entries[name].path.name
                    raise ValueError(f"{self.folder}: tensor {name} is in both {first} and {file}; remove one of them")
                self._entries[name] = entry
        for name, file in weight_map.items():
            if name not in self._entries or self._entries[name].path != self.folder / file:
                raise ValueError(f"{self.folder / INDEX_NAME}: tensor {name} is not in {file}; fetch both again")

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """Shape and dtype of every tensor, by name, in the order of the files."""
        return {name: entry.spec for name, entry in self._entries.items()}

    def read(self, name: str) -> Tensor:
        """Return one tensor.

        Args:
            name: The tensor's name in the file.

        Returns:
            The tensor on the CPU, in the dtype of the file; what is written to it does not reach the file.

        Raises:
            KeyError: There is no tensor of that name.
            ValueError: The tensor holds NaN or an infinity, or the file has been cut short since it was opened.
        """
        entry = self._entries[name]
        try:
            tensor = _mapped(entry)
        except ValueError as error:
            raise ValueError(f"{entry.path}: tensor {name} ends early; the file has been truncated") from error
        if not is_finite(tensor):
            raise ValueError(f"{entry.path}: tensor {name} holds NaN or infinite values; a sound checkpoint is needed")
        return tensor


def is_finite(tensor: Tensor) -> bool:
    """Tell whether a tensor holds neither NaN nor an infinity.

    Args:
        tensor: Any tensor; one that is not floating is finite.

    Returns:
        True if all values are finite.

    >>> is_finite(torch.tensor([1.0, 3e38, 3e38])), is_finite(torch.tensor([1.0, float("nan")]))
    (True, False)
    """
    if not tensor.is_floating_point():
        return True
    # A sum is finite only if every term is, and costs a tenth of isfinite; one that overflows leads to the slow test.
    total = tensor.sum(dtype=working_dtype(tensor.dtype))
    return bool(total.isfinite()) or bool(tensor.isfinite().all())


def _mapped(entry: _Entry) -> Tensor:
    spec = entry.spec
    if spec.nbytes == 0:
        return torch.empty(spec.shape, dtype=spec.dtype)
    file_bytes: np.ndarray[Any, Any] = np.memmap(
        entry.path, np.uint8, mode="c", offset=entry.offset, shape=spec.nbytes
    )
    if entry.offset % spec.dtype.itemsize:  # the format does not ask for alignment
        file_bytes = np.array(file_bytes)
    return torch.from_numpy(file_bytes).view(spec.dtype).view(spec.shape)


# The names of a checkpoint's files, and its index's map of tensor to file, empty where there is no index.
def _find_weight_files(folder: Path) -> tuple[list[str], dict[str, str]]:
    if (folder / WEIGHTS_NAME).is_file():  # the order of precedence is that of from_pretrained
        return [WEIGHTS_NAME], {}
    index = folder / INDEX_NAME
    if not index.is_file():
        pickled = sorted(path.name for pattern in _PICKLED_PATTERNS for path in folder.glob(pattern))
        if pickled:
            raise ValueError(
                f"{folder}: {pickled[0]} is a pickle, which can run code when it is read; convert it where you trust "
                "it: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)"
            )
        raise FileNotFoundError(f"{folder}: has neither {WEIGHTS_NAME} nor {INDEX_NAME}")
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise ValueError(f'{index}: has no "weight_map" of tensor names to file names; fetch it again')
    files = sorted(set(weight_map.values()))
    for file in files:
        # A symbolic link may lead outside, as in the Hub's cache; a name may not.
        if Path(file).is_absolute() or ".." in Path(file).parts:
            raise ValueError(f"{index}: names {file}, which is outside the folder; only files beside it are read")
        if not file.endswith(".safetensors"):
            raise ValueError(f"{index}: names {file}, which is not a .safetensors file")
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise FileNotFoundError(f"{index}: names {', '.join(missing)}, missing from the folder; fetch it again")
    return files, weight_map


# Where each tensor of a file lies; the header must account for every byte of the file.
def _read_header(path: Path) -> dict[str, _Entry]:
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        start = LENGTH_BYTES + length
        if length > _HEADER_LIMIT_BYTES or start > size:
            raise ValueError(f"{path}: not a safetensors file, or truncated ({size} bytes); fetch it again")
        text = file.read(length)
    try:
        header = json.loads(text, object_pairs_hook=_unrepeated)
        header.pop("__metadata__", None)
        spans = sorted(
            (*entry["data_offsets"], name, str(entry["dtype"]), tuple(entry["shape"]))
            for name, entry in header.items()
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: its safetensors header is damaged ({error}); fetch it again") from error
    entries = {}
    position = 0
    for begin, end, name, code, shape in spans:
        if code not in _DTYPES:
            raise ValueError(f"{path}: tensor {name} has dtype {code}; growth takes {', '.join(_DTYPES)}")
        spec = TensorSpec(shape=shape, dtype=_DTYPES[code])
        if begin != position or end - begin != spec.nbytes or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError(f"{path}: its safetensors header is damaged (the bytes of {name}); fetch it again")
        entries[name] = _Entry(path=path, offset=start + begin, spec=spec)
        position = end
    if start + position != size:
        raise ValueError(f"{path}: {size} bytes, its header says {start + position}; the file is truncated or altered")
    return entries


# Of a repeated key `json` would keep the last and say nothing.
def _unrepeated(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)} is there twice")
    return table
