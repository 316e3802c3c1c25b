"""Read and write safetensors checkpoints one tensor at a time.

`CheckpointReader` takes a folder with `model.safetensors`, or with shards and `model.safetensors.index.json`, reads
the headers and nothing else, and then hands out single tensors. `CheckpointWriter` knows the shape of every tensor
before the first one is computed, so it can write a shard's header first and append the tensors as they come,
computing the SHA-256 of each file on the way. Neither ever holds more than a few tensors, whatever the model's size.

The file format (https://github.com/huggingface/safetensors#format): 8 bytes with the length of the header, little
endian; the header, a JSON object of `{name: {dtype, shape, data_offsets}}` padded with spaces; the tensors' bytes,
without holes. Files are read with `pread`, not mapped into memory: mapped pages would count as the process's own.
"""

import hashlib
import json
import math
import os
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from torch import Tensor

from hf_progressive.storage import read_json, write_json

WEIGHTS_NAME = "model.safetensors"
"""Name of the weights' file of a checkpoint that is not sharded."""

INDEX_NAME = "model.safetensors.index.json"
"""Name of the index of a sharded checkpoint."""

_PICKLED_PATTERNS = ("*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.ckpt")
_SHARD_PATTERN = "model{suffix}.safetensors"
_LENGTH_BYTES = 8
_HEADER_LIMIT_BYTES = 100_000_000  # the format's own limit
_IN_FLIGHT_BYTES = 1 << 28
_FLUSH_BYTES = 1 << 28

_CODES = {
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
_DTYPES = {code: dtype for dtype, code in _CODES.items()}


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
            The tensor on the CPU, in the dtype of the file, its memory its own.

        Raises:
            KeyError: There is no tensor of that name.
            ValueError: The tensor holds NaN or an infinity, or the file has been cut short since it was opened.
        """
        entry = self._entries[name]
        buffer = torch.empty(entry.spec.nbytes, dtype=torch.uint8)
        with FileIO(entry.path) as file:
            file.seek(entry.offset)
            if _fill(file, buffer.numpy().data) != entry.spec.nbytes:
                raise ValueError(f"{entry.path}: tensor {name} ends early; the file has been truncated")
        tensor = buffer.view(entry.spec.dtype).view(entry.spec.shape)
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
    total = tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32))
    return bool(total.isfinite()) or bool(tensor.isfinite().all())


def _fill(file: FileIO, view: memoryview) -> int:
    filled = 0
    while filled < len(view) and (count := file.readinto(view[filled:])):  # 2 GiB at most
        filled += count
    return filled


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
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        start = _LENGTH_BYTES + length
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


class CheckpointWriter:
    """Write a safetensors checkpoint tensor by tensor, into one file or shards, in bounded memory.

    Each file's header is written first, then its tensors in the order of `order`, by one thread, while a second one
    computes the file's SHA-256. At most 256 MiB, or one tensor that is larger, wait to be written.

    Args:
        folder: An existing folder.
        specs: Shape and dtype of every tensor, by name.
        max_shard_size: The size beyond which a new file begins, in bytes or as `"5GB"`.

    Raises:
        ValueError: A dtype that the format does not have.

    >>> import tempfile, torch
    >>> from safetensors.torch import load_file
    >>> folder = tempfile.mkdtemp()
    >>> with CheckpointWriter(folder, {"w": TensorSpec(shape=(2,), dtype=torch.float32)}) as writer:
    ...     for name in writer.order:
    ...         writer.write(name, torch.ones(2))
    >>> load_file(f"{folder}/model.safetensors")
    {'w': tensor([1., 1.])}
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        specs: Mapping[str, TensorSpec],
        *,
        max_shard_size: int | str = "5GB",
    ) -> None:
        self.folder = Path(folder)
        self.sha256: dict[str, str] = {}
        """SHA-256 of every finished file, by name."""
        self.specs = dict(specs)
        """Shape and dtype of every tensor, by name."""
        for name, spec in self.specs.items():
            if spec.dtype not in _CODES:
                raise ValueError(f"tensor {name}: safetensors files cannot hold {spec.dtype} here; give another dtype")
        split = split_state_dict_into_shards_factory(
            self.specs,
            get_storage_size=lambda spec: spec.nbytes,
            filename_pattern=_SHARD_PATTERN,
            max_shard_size=max_shard_size,
        )
        # Wide dtypes come first so that every tensor is aligned to its own size.
        self._shards = {
            file: sorted(names, key=lambda name: -self.specs[name].dtype.itemsize)
            for file, names in split.filename_to_tensors.items()
        }
        self.order = [name for names in self._shards.values() for name in names]
        """The names of the tensors in the order in which `write` takes them."""
        self.total_bytes = sum(spec.nbytes for spec in self.specs.values())
        self._weight_map = split.tensor_to_filename
        self._remaining = deque(self.order)
        self._file: _HashedFile | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            if self._file is not None:
                self._file.abandon()
            return
        self._finish_file()
        assert not self._remaining, f"{len(self._remaining)} tensors were not written, {self._remaining[0]} first"
        if len(self._shards) > 1:
            index = {
                "metadata": {"total_size": self.total_bytes},
                "weight_map": dict(sorted(self._weight_map.items())),
            }
            write_json(self.folder / INDEX_NAME, index)

    def write(self, name: str, tensor: Tensor) -> None:
        """Append a tensor; it must not be changed afterwards.

        Args:
            name: The next name of `order`.
            tensor: The values, with the shape and dtype stated for them.

        Raises:
            OSError: A write failed, this one or an earlier one.
        """
        assert name == self._remaining.popleft(), f"{name} is out of order"
        planned = self.specs[name]
        assert TensorSpec(shape=tuple(tensor.shape), dtype=tensor.dtype) == planned, f"{name} is not as planned"
        file = self._weight_map[name]
        if self._file is None or self._file.path.name != file:
            self._finish_file()
            self._file = _HashedFile(self.folder / file)
            self._file.append(self._header(self._shards[file]))
        flat = tensor.detach().cpu().contiguous().view(-1)
        self._file.append(flat.view(torch.uint8).numpy().data)

    def _finish_file(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            self.sha256[file.path.name] = file.close()

    def _header(self, names: Sequence[str]) -> memoryview:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        position = 0
        for name in names:
            spec = self.specs[name]
            end = position + spec.nbytes
            header[name] = {"dtype": _CODES[spec.dtype], "shape": list(spec.shape), "data_offsets": [position, end]}
            position = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _LENGTH_BYTES)  # the data begin aligned
        return memoryview(len(text).to_bytes(_LENGTH_BYTES, "little") + text)


class _HashedFile:
    """A new file to which buffers are appended by one thread and hashed by another."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = FileIO(path, "xb")
        self._digest = hashlib.sha256()
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="checkpoint-write")
        self._hashing = ThreadPoolExecutor(1, thread_name_prefix="checkpoint-hash")
        self._pending: deque[tuple[int, Future[None], Future[None]]] = deque()
        self._pending_bytes = 0
        self._unflushed_bytes = 0

    def append(self, buffer: memoryview) -> None:
        while self._pending and self._pending_bytes + len(buffer) > _IN_FLIGHT_BYTES:
            self._settle()
        written = self._writing.submit(self._write, buffer)
        hashed = self._hashing.submit(self._digest.update, buffer)
        self._pending.append((len(buffer), written, hashed))
        self._pending_bytes += len(buffer)

    def close(self) -> str:
        try:
            while self._pending:
                self._settle()
        finally:
            self.abandon()
        return self._digest.hexdigest()

    def abandon(self) -> None:
        self._writing.shutdown(cancel_futures=True)
        self._hashing.shutdown(cancel_futures=True)
        self._file.close()

    def _settle(self) -> None:
        size, written, hashed = self._pending.popleft()
        self._pending_bytes -= size
        written.result()
        hashed.result()

    def _write(self, buffer: memoryview) -> None:
        done = 0
        while done < len(buffer):  # a call writes at most 2 GiB
            done += self._file.write(buffer[done:])
        self._unflushed_bytes += len(buffer)
        if self._unflushed_bytes >= _FLUSH_BYTES:  # keeps the disk busy meanwhile, instead of at the end
            os.fdatasync(self._file.fileno())
            self._unflushed_bytes = 0
