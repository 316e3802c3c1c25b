"""Write safetensors checkpoints one tensor at a time.

`CheckpointWriter` knows the shape of every tensor before the first one is computed, so it can write a file's header
first and append the tensors as they come. The format is described in `hf_progressive.growth.reader`.
"""

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from huggingface_hub.serialization._base import parse_size_to_int
from torch import Tensor

from hf_progressive.growth.reader import DTYPE_CODES, INDEX_NAME, LENGTH_BYTES, TensorSpec
from hf_progressive.storage import write_json

_SHARD_PATTERN = "model{suffix}.safetensors"
_IN_FLIGHT_BYTES = 1 << 26
_FLUSH_BYTES = 1 << 28


class CheckpointWriter:
    """Write a safetensors checkpoint tensor by tensor, into one file or shards, in bounded memory.

    Each file's header is written first, then its tensors in the order of `order`, by one thread, while a second one
    computes the file's SHA-256. At most 64 MiB, or one tensor that is larger, wait to be written.

    Args:
        folder: An existing folder.
        specs: Shape and dtype of every tensor, by name; a dtype that the format does not have is a ValueError.
        max_shard_size: The size beyond which a new file begins, in bytes or as `"5GB"`.
        checksums: Compute the SHA-256 of the files.
        then: Called with each tensor once it is written and hashed.

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
        checksums: bool = True,
        then: Callable[[Tensor], None] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.sha256: dict[str, str | None] = {}
        """SHA-256 of every finished file, by name; None without `checksums`."""
        self._checksums, self._then = checksums, then
        self.specs = dict(specs)
        """Shape and dtype of every tensor, by name."""
        for name, spec in self.specs.items():
            if spec.dtype not in DTYPE_CODES:
                raise ValueError(f"tensor {name}: safetensors files cannot hold {spec.dtype} here; give another dtype")
        split = split_state_dict_into_shards_factory(
            self.specs,
            get_storage_size=lambda spec: spec.nbytes,
            filename_pattern=_SHARD_PATTERN,
            max_shard_size=_shard_bytes(max_shard_size),
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
        self._file: _GrowingFile | None = None

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
        """Append the next tensor of `order`, as its shape and dtype were stated; it must not change afterwards."""
        assert name == self._remaining.popleft(), f"{name} is out of order"
        planned = self.specs[name]
        assert TensorSpec(shape=tuple(tensor.shape), dtype=tensor.dtype) == planned, f"{name} is not as planned"
        file = self._weight_map[name]
        if self._file is None or self._file.path.name != file:
            self._finish_file()
            self._file = _GrowingFile(self.folder / file, checksum=self._checksums)
            self._file.append(self._header(self._shards[file]))
        flat = tensor.detach().cpu().contiguous().view(-1)
        then = None if self._then is None else partial(self._then, tensor)
        self._file.append(flat.view(torch.uint8).numpy().data, then)

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
            header[name] = {
                "dtype": DTYPE_CODES[spec.dtype],
                "shape": list(spec.shape),
                "data_offsets": [position, end],
            }
            position = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % LENGTH_BYTES)  # the data begin aligned
        return memoryview(len(text).to_bytes(LENGTH_BYTES, "little") + text)


class _GrowingFile:
    """A new file to which buffers are appended by one thread while a second hashes and a third flushes them."""

    def __init__(self, path: Path, *, checksum: bool) -> None:
        self.path = path
        self._file = FileIO(path, "xb")
        self._digest = hashlib.sha256() if checksum else None
        self._writing, self._hashing, self._flushing = (ThreadPoolExecutor(1) for _ in range(3))
        self._pending: deque[tuple[int, list[Future[None]], Callable[[], None] | None]] = deque()
        self._pending_bytes = 0
        self._unflushed_bytes = 0

    def append(self, buffer: memoryview, then: Callable[[], None] | None = None) -> None:
        while self._pending and (self._pending_bytes + len(buffer) > _IN_FLIGHT_BYTES or self._first_is_done()):
            self._settle()
        steps = [self._writing.submit(self._write, buffer)]
        if self._digest is not None:
            steps.append(self._hashing.submit(self._digest.update, buffer))
        self._pending.append((len(buffer), steps, then))
        self._pending_bytes += len(buffer)

    # The SHA-256, once everything is written.
    def close(self) -> str | None:
        try:
            while self._pending:
                self._settle()
        finally:
            self.abandon()
        return None if self._digest is None else self._digest.hexdigest()

    def abandon(self) -> None:
        for executor in (self._writing, self._hashing, self._flushing):
            executor.shutdown(cancel_futures=True)
        self._file.close()

    def _first_is_done(self) -> bool:
        return all(step.done() for step in self._pending[0][1])

    def _settle(self) -> None:
        size, steps, then = self._pending.popleft()
        self._pending_bytes -= size
        for step in steps:
            step.result()
        if then is not None:
            then()

    def _write(self, buffer: memoryview) -> None:
        done = 0
        while done < len(buffer):  # a call writes at most 2 GiB
            done += self._file.write(buffer[done:])
        self._unflushed_bytes += len(buffer)
        if self._unflushed_bytes >= _FLUSH_BYTES:  # keeps the disk busy from the start, and not at the end alone
            self._unflushed_bytes = 0
            self._flushing.submit(os.fsync, self._file.fileno())


def _shard_bytes(size: int | str) -> int:
    try:
        found = parse_size_to_int(size) if isinstance(size, str) else size
    except (ValueError, OverflowError):
        found = 0
    if type(found) is not int or found < 1:
        raise ValueError(f"max_shard_size: {size!r} is no size; give one such as '5GB' or '300MB'")
    return found
