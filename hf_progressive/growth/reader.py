"""Read safetensors checkpoints one tensor at a time.

`CheckpointReader` takes a folder with `model.safetensors`, or with shards and `model.safetensors.index.json`, reads
the headers and nothing else, and then hands out single tensors. `hf_progressive.growth.writer` is its counterpart.

The file format (https://github.com/huggingface/safetensors#format): 8 bytes with the length of the header, little
endian; the header, a JSON object of `{name: {dtype, shape, data_offsets}}` padded with spaces; the tensors' bytes,
without holes. A file is opened for every tensor anew, and let go with it: one that stayed open, mapped whole, would
leave all its pages in the process's resident memory.
"""

import contextlib
import math
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hf_progressive.config.ranges import shown_key
from hf_progressive.distributed.working_dtype import working_dtype
from hf_progressive.growth.unmerged import refuse_adapter, refuse_adapter_beside
from hf_progressive.storage import parse_json, read_json, require_inside_name, require_own_file

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

_LONGEST_REASON = 300  # characters
_PICKLED_PATTERNS = ("*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.ckpt")
_DTYPES = {code: dtype for dtype, code in DTYPE_CODES.items()}


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """Shape and dtype of a tensor, known before its values are."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """The size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class CheckpointReader:
    """The tensors of a local safetensors checkpoint, in one file or in shards with an index, read one at a time.

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
        self.origin = str(self.folder / self.files[-1])
        """Where the tensors are: the weights' file, or the index of several."""
        self.specs: dict[str, TensorSpec] = {}
        """Shape and dtype of every tensor, by name, in the order of the files."""
        self._file_of: dict[str, str] = {}
        for file in shards:
            specs = _read_specs(self.folder / file)
            for name in specs.keys() & self.specs.keys():
                first = self._file_of[name]
                raise ValueError(
                    f"{self.folder}: tensor {shown_key(name)} is in both {first} and {file}; remove one of them"
                )
            self.specs |= specs
            self._file_of |= dict.fromkeys(specs, file)
        for name, file in weight_map.items():
            if self._file_of.get(name) != file:
                raise ValueError(
                    f"{self.folder / INDEX_NAME}: tensor {shown_key(name)} is not in {file}; fetch both again"
                )

    def read(self, name: str) -> Tensor:
        """Return one tensor on the CPU, in the dtype of the file; what is written to it does not reach the file."""
        path = self.folder / self._file_of[name]
        with _opened(path) as file:
            tensor: Tensor = file.get_tensor(name)
        if tensor.data_ptr() % tensor.dtype.itemsize:  # the format does not ask for alignment
            tensor = tensor.clone()
        if not is_finite(tensor):
            raise ValueError(
                f"{path}: tensor {shown_key(name)} holds NaN or infinite values; a sound checkpoint is needed"
            )
        return tensor


def is_finite(tensor: Tensor) -> bool:
    """Tell whether a tensor holds neither NaN nor an infinity.

    >>> is_finite(torch.tensor([1.0, 3e38, 3e38])), is_finite(torch.tensor([1.0, float("nan")]))
    (True, False)
    """
    if not tensor.is_floating_point():
        return True
    # A sum is finite only if every term is, and costs a tenth of isfinite; one that overflows leads to the slow test.
    total = tensor.sum(dtype=working_dtype(tensor.dtype))
    return bool(total.isfinite()) or bool(tensor.isfinite().all())


# The names of a checkpoint's files, and its index's map of tensor to file, empty where there is no index.
def _find_weight_files(folder: Path) -> tuple[list[str], dict[str, str]]:
    index = folder / INDEX_NAME
    if (folder / WEIGHTS_NAME).is_file() or index.is_file():
        refuse_adapter_beside(folder)
    if (folder / WEIGHTS_NAME).is_file():  # the order of precedence is that of from_pretrained
        require_own_file(folder / WEIGHTS_NAME, folder)
        return [WEIGHTS_NAME], {}
    if not index.is_file():
        pickled = sorted(path.name for pattern in _PICKLED_PATTERNS for path in folder.glob(pattern))
        if pickled:
            raise ValueError(
                f"{folder}: {pickled[0]} is a pickle, which can run code when it is read; convert it where you trust "
                "it: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)"
            )
        refuse_adapter(folder)
        shards = sorted(path.name for path in folder.glob("*.safetensors"))
        held = f"; it holds {shards[0]}, so fetch or save what is missing" if shards else ""
        raise FileNotFoundError(f"{folder}: has neither {WEIGHTS_NAME} nor {INDEX_NAME}{held}")
    weight_map = read_json(index).get("weight_map")
    if not (isinstance(weight_map, dict) and weight_map and all(isinstance(f, str) for f in weight_map.values())):
        raise ValueError(f'{index}: has no "weight_map" of tensor names to file names; fetch it again')
    files = sorted(set(weight_map.values()))
    for file in files:
        require_own_file(folder / require_inside_name(file, str(index)), folder)
        if not file.endswith(".safetensors"):
            raise ValueError(f"{index}: names {file}, which is not a .safetensors file")
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise FileNotFoundError(f"{index}: names {', '.join(missing)}, missing from the folder; fetch it again")
    return files, weight_map


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, "pt") as file:
            yield file
    except SafetensorError as error:
        reason = " ".join(str(error).removeprefix("Error while deserializing header: ").split())[:_LONGEST_REASON]
        raise ValueError(
            f"{path}: {path.stat().st_size} bytes that are no whole safetensors file ({reason}); fetch it again"
        ) from error


def _read_specs(path: Path) -> dict[str, TensorSpec]:
    with _opened(path) as file:
        specs = {}
        for name in file.offset_keys():
            tensor = file.get_slice(name)
            if (code := tensor.get_dtype()) not in _DTYPES:
                raise ValueError(
                    f"{path}: tensor {shown_key(name)} has dtype {code}; growth takes {', '.join(_DTYPES)}"
                )
            specs[name] = TensorSpec(shape=tuple(tensor.get_shape()), dtype=_DTYPES[code])
    # Of a repeated name the library keeps one tensor and says nothing.
    with open(path, "rb") as file:
        text = file.read(int.from_bytes(file.read(LENGTH_BYTES), "little"))
    header = parse_json(text, str(path), object_pairs_hook=list)
    for name, count in Counter(name for name, _ in header).items():
        if count > 1:
            raise ValueError(f"{path}: tensor {shown_key(name)} is there twice; fetch it again")
    return specs
