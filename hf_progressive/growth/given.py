"""What `grow_checkpoint` and `grow_model` are given, refused in one line where it is of another kind or in the way."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_progressive.config.ranges import class_of, shown
from hf_progressive.hub.names import CONFIG_NAME

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def require_path(value: Any, name: str, what: str) -> None:
    """Raise a ValueError unless an argument is a path of UTF-8 text, as records and safetensors hold names.

    An empty one is what a variable that is not set makes.
    """
    if not isinstance(value, str | os.PathLike):
        raise ValueError(f"{name} is {class_of(value)}; give {what}")
    path = os.fspath(value)
    if not path:
        raise ValueError(f"{name} is empty; give {what}")
    if any("\ud800" <= character <= "\udfff" for character in path):  # as Python reads bytes that are no UTF-8
        raise ValueError(f"{path}: the name is no UTF-8 text, and no record can hold it; give it another name")


def require_seed(seed: Any) -> None:
    """Raise a ValueError unless a seed is a whole number."""
    if type(seed) is not int:
        raise ValueError(f"seed is {shown(seed)}; give a whole number")


def require_model(model: Any) -> None:
    """Raise a ValueError unless it is a model in memory; a compiled or wrapped one is told apart by its weights."""
    if isinstance(model, str | os.PathLike):
        raise ValueError(f"{os.fspath(model)}: grow_model takes a model in memory; grow_checkpoint grows a folder's")
    if not isinstance(model, PreTrainedModel | torch.nn.Module) or not hasattr(model, "config"):
        raise ValueError(f"model is {class_of(model)}; give a causal language model of Transformers")


def named_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """Return the dtype of a name such as `"bfloat16"`; one that weights are not stored in is a ValueError."""
    name = str(dtype).removeprefix("torch.")
    if dtype is not None and name not in _DTYPES:
        raise ValueError(f"dtype is {name!r}; weights are stored in one of {', '.join(_DTYPES)}")
    return None if dtype is None else _DTYPES[name]


@contextlib.contextmanager
def named_in(place: Path) -> Iterator[None]:
    """Put the name of a file in front of a ValueError of what it holds."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


def require_replaceable(output: Path, source: Path) -> None:
    """Refuse an output that stands there unless it is a checkpoint, and neither the source nor a folder that holds it.

    What stands there is deleted once the new checkpoint is whole.
    """
    if not output.exists():
        return
    if output.samefile(source):
        raise ValueError(f"{output}: is the source itself; choose another folder for the output")
    if output.resolve() in source.resolve().parents:
        raise ValueError(f"{output}: holds the source, {source}; choose another folder for the output")
    if any(output.iterdir()) and not (output / CONFIG_NAME).is_file():
        raise FileExistsError(
            f"{output}: holds no {CONFIG_NAME}, so it is no checkpoint to be replaced; choose another folder"
        )
