"""A penalty on disk: what a run needs to go on with the same Φ, read back one tensor at a time."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hf_progressive.config.ranges import shown_key
from hf_progressive.penalty.lazy_tensors import LazyTensors
from hf_progressive.penalty.lora import LoraPenalty
from hf_progressive.penalty.specification import InheritancePenalty
from hf_progressive.storage import atomic_folder, read_json, require_inside_name, require_own_file, write_json

DESCRIPTION_NAME = "penalty.json"
"""Name of the file that says which λ and γ, which tensors and where."""
KEPT_PENALTY_NAME = "_phi"
"""Folder of a run's penalty beside its checkpoints; Trainer uploads all of a run's folder but names like this."""

# What older files leave out.
_UNCHANGED = {"apply": "gradient", "subspace_side": "outside", "constant": 0.0, "constants": {}}
_STORAGE = ("storage_dtype", "storage_device")
_PRODUCTS = "LoRA's products"
_FILE_BYTES = 1 << 30  # also what is held in memory while writing


def read_tensor(path: str | os.PathLike[str], name: str) -> Tensor:
    """Read one tensor of a safetensors file, or raise a ValueError that names both."""
    try:
        with safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
    except SafetensorError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: {shown_key(name)} cannot be read ({reason}); the file is damaged") from error
    return tensor


def save_penalty(penalty: InheritancePenalty | LoraPenalty, folder: str | os.PathLike[str]) -> None:
    """Write a penalty's tensors, λ and γ to a folder, whole or not at all, holding at most about 1 GiB at a time.

    >>> import tempfile, torch
    >>> ones = {"weight": torch.ones(2, 3)}
    >>> folder = Path(tempfile.mkdtemp(), "phi")
    >>> save_penalty(InheritancePenalty(ones, ones, ewc_lambda=0.5), folder)
    >>> again = load_saved_penalty(folder)
    >>> again.ewc_lambda, again.fingerprint() == InheritancePenalty(ones, ones).fingerprint()
    (0.5, True)
    """
    if isinstance(penalty, LoraPenalty):
        _save_lora_penalty(penalty, folder)
        return
    with atomic_folder(folder, overwrite=True) as temporary:
        parts = [
            {
                "ewc_lambda": float(part.ewc_lambda),
                "gamma": float(part.gamma),
                **{name: getattr(part, name) for name in _UNCHANGED},
                **storage_of(part),
                "files": {
                    kind: _write(temporary, f"{prefix}{kind}", tensors) for kind, tensors in part.tensors.items()
                },
            }
            for prefix, part in _parts(penalty)
        ]
        description = {"format": 1, **parts[0], "further": parts[1:]}
        written = _described(temporary, description)
        # of the same tensors, which may be dear to make anew
        write_json(temporary / DESCRIPTION_NAME, {**description, "fingerprint": written.fingerprint()})


def load_saved_penalty(folder: str | os.PathLike[str]) -> InheritancePenalty | LoraPenalty:
    """Read back what `save_penalty` wrote; a `phi` folder inside a checkpoint is one.

    The folder must stay while the penalty is in use: tensors are read when they are needed. That of a checkpoint may
    go with it, as the same files stand beside the checkpoints.
    """
    folder = Path(folder).absolute()
    description = read_json(folder / DESCRIPTION_NAME)
    try:
        if description.get("restrains") == _PRODUCTS:
            fisher = _stored(folder, dict(description["files"]["fisher"]))
            return LoraPenalty(fisher, ewc_lambda=description["ewc_lambda"], **_read_storage(description))
        return _described(folder, description)
    except (LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"{folder / DESCRIPTION_NAME}: not a penalty's description ({error!r})") from error


def _parts(penalty: InheritancePenalty) -> Iterator[tuple[str, InheritancePenalty]]:
    # each with what its files' names begin with
    yield "", penalty
    for number, part in enumerate(penalty.further, start=1):
        yield f"{number}-", part


def _described(folder: Path, description: Mapping[str, Any]) -> InheritancePenalty:
    files = [dict(description["files"][kind]) for kind in ("anchor", "fisher", "subspace")]
    anchor, fisher, subspace = (_stored(folder, each) for each in files)
    return InheritancePenalty(
        anchor,
        fisher,
        subspace,
        ewc_lambda=description["ewc_lambda"],
        gamma=description["gamma"],
        further=tuple(_described(folder, part) for part in description.get("further", [])),
        **{name: description.get(name, default) for name, default in _UNCHANGED.items()},
        **_read_storage(description),
    )


def storage_of(penalty: InheritancePenalty | LoraPenalty) -> dict[str, str | None]:
    """Return how W₀ and Ω are kept, as plain values: `storage_dtype` and `storage_device`, None being the default."""
    kept = {name: getattr(penalty, name) for name in _STORAGE}
    return {name: None if value is None else str(value).removeprefix("torch.") for name, value in kept.items()}


def _read_storage(description: Mapping[str, Any]) -> dict[str, Any]:
    # An accelerator need not be here, or by that number; beside the parameters, the default, is on one where there is.
    name, device = (description.get(key) for key in _STORAGE)
    dtype = None if name is None else getattr(torch, name)
    return {"storage_dtype": dtype, "storage_device": "cpu" if device == "cpu" else None}


def _save_lora_penalty(penalty: LoraPenalty, folder: str | os.PathLike[str]) -> None:
    with atomic_folder(folder, overwrite=True) as temporary:
        files = _write(temporary, "fisher", penalty.fisher)
        description = {
            "format": 1,
            "restrains": _PRODUCTS,
            "ewc_lambda": float(penalty.ewc_lambda),
            "gamma": penalty.gamma,
            **storage_of(penalty),
            "fingerprint": penalty.fingerprint(),
            "files": {"fisher": files},
        }
        write_json(temporary / DESCRIPTION_NAME, description)


def _stored(folder: Path, files: Mapping[str, str]) -> LazyTensors:
    for file in set(files.values()):
        require_own_file(folder / require_inside_name(file, str(folder / DESCRIPTION_NAME)), folder)
    kept, fingerprint = folder.parent.parent / KEPT_PENALTY_NAME, _fingerprint(folder)

    def read(name: str) -> Tensor:
        is_gone = fingerprint is not None and not (folder / files[name]).exists()
        place = kept if is_gone and _fingerprint(kept) == fingerprint else folder
        return read_tensor(place / files[name], name)

    return LazyTensors(files, read)


def _fingerprint(folder: Path) -> dict[str, str] | None:
    try:
        return read_json(folder / DESCRIPTION_NAME).get("fingerprint")
    except (FileNotFoundError, ValueError):
        return None


def _write(folder: Path, kind: str, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    # name → file; a new file is begun where the next tensor would make one larger than it may be
    files: dict[str, str] = {}
    batch: dict[str, Tensor] = {}
    held, number = 0, 1
    for name in tensors:
        tensor = tensors[name].detach().cpu().contiguous().clone()  # names of tied weights may share storage
        size = tensor.numel() * tensor.element_size()
        if batch and held + size > _FILE_BYTES:
            save_file(batch, folder / f"{kind}-{number:05d}.safetensors")
            batch, held, number = {}, 0, number + 1
        batch[name], held = tensor, held + size
        files[name] = f"{kind}-{number:05d}.safetensors"
    if batch:
        save_file(batch, folder / f"{kind}-{number:05d}.safetensors")
    return files
