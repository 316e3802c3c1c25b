"""Grow a checkpoint on disk or a model in memory.

The plan says how every tensor of the child follows from the parent's; this module reads, produces, writes and checks.
On disk a tensor is read, grown and handed to the writer before the next one is touched, so that memory does not depend
on the number of layers, and the folder appears whole or not at all. Every tensor draws its new entries from a
generator of its own, seeded by the seed and the tensor's name: the result depends on neither order nor sharding.
"""

import copy
import errno
import hashlib
import math
import os
import re
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel

import hf_progressive
from hf_progressive.growth.checkpoint import CheckpointReader, CheckpointWriter, TensorSpec, is_finite
from hf_progressive.growth.plan import GrowthPlan, TensorPlan, plan_growth
from hf_progressive.growth.source import CONFIG_NAME, GrowthSource, locate_source
from hf_progressive.growth.verify import GrowthCheck, verify_growth
from hf_progressive.storage import atomic_folder, sha256_file, write_json

RECORD_NAME = "growth.json"
"""Name of the record that a grown checkpoint carries."""

OPTIMIZER_NAME = "optimizer.pt"
"""Name of an optimizer's state, as Trainer writes it."""

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
_LAYER = re.compile(r"\d+(?=\.)")
_CHECK_LENGTH = 256  # tokens per sequence of the check that grow_checkpoint makes; verify_growth alone reads more


@dataclass(frozen=True, kw_only=True)
class GrowthReport:
    """What was grown, and how it turned out.

    Args:
        output: The folder written.
        source: The parent, as it was given.
        revision: Its commit, for a parent from the Hub.
        family: The `model_type` of both.
        method: The growth method.
        seed: Seed of the new entries.
        preserves_function: Whether the plan keeps the parent's function, by construction.
        verification: What was measured, unless the check was left out.
        parameters_source: Parameters of the parent, tied ones counted once.
        parameters_target: Parameters of the child, likewise.
        files: Names of the weight files.
        size: Their total size, in bytes.
        seconds: Duration of the whole, in seconds.
    """

    output: str
    source: str
    revision: str | None
    family: str
    method: str
    seed: int
    preserves_function: bool
    verification: GrowthCheck | None
    parameters_source: int
    parameters_target: int
    files: tuple[str, ...]
    size: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, for JSON."""
        verification = None if self.verification is None else self.verification.to_dict()
        return {**asdict(self), "files": list(self.files), "verification": verification}


def grow_checkpoint(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    target: Any | Mapping[str, Any],
    *,
    method: str = "exact",
    seed: int = 0,
    max_shard_size: int | str = "5GB",
    optimizer: str | os.PathLike[str] | None = None,
    dtype: str | torch.dtype | None = None,
    overwrite: bool = False,
    revision: str | None = None,
    verify: bool = True,
    progress: bool = True,
    **options: Any,
) -> GrowthReport:
    """Grow a checkpoint into a larger one of the same family, ready for `from_pretrained`.

    The output holds the weights as safetensors, config.json, the parent's generation config, tokenizer and chat
    template, growth.json (how it was made) and manifest.json (sizes and SHA-256). It appears when it is complete.

    Args:
        source: The parent: a local folder with safetensors weights, or a Hub id.
        output: The folder to create.
        target: The child's config, or a dict of config fields; what a dict does not name is kept or derived.
        method: A growth method; see `hf_progressive.growth.methods`.
        seed: Seed of the new entries. Same seed and inputs, same bytes.
        max_shard_size: Size beyond which a new weight file begins, in bytes or as `"5GB"`.
        optimizer: `optimizer.pt` of a Trainer checkpoint of the parent: the moments of Adam or AdamW grow along, into
            a file of the same name in the output.
        dtype: Dtype of the child's weights, such as `"bfloat16"`; None keeps that of each of the parent's tensors.
            Arithmetic is in float32 (float64 for float64), rounded once.
        overwrite: Replace an existing output, once the new one is complete.
        revision: Branch, tag or commit of a parent on the Hub.
        verify: Load both models and compare their logits. The result is reported and recorded, whatever it is.
        progress: Show a bar on stderr, if that is a terminal.
        **options: Further options of `plan_growth`.

    Returns:
        What was done and measured.

    Raises:
        FileExistsError: The output exists, and `overwrite` is not set.
        FileNotFoundError: The parent, or a part of it, is missing.
        ValueError: The parent is damaged, holds NaN, needs remote code or does not fit its config; the target is
            not one that it can grow into; or the optimizer's state is not Adam's for this parent.
        OSError: The disk is full or cannot be written.
    """
    started = time.monotonic()
    stored_in = _named_dtype(dtype)
    digests: dict[str, str] = {}
    with atomic_folder(output, overwrite=overwrite, sha256=digests) as folder:
        origin = locate_source(source, revision)
        if Path(output).exists() and Path(output).samefile(origin.folder):
            raise ValueError(f"{output}: is the source itself; choose another folder for the output")
        plan = plan_growth(origin.read_config(), target, method=method, **options)
        reader = CheckpointReader(origin.folder)
        parent = _ParentTensors(plan, reader)
        inputs = [CONFIG_NAME, *reader.files, *origin.companions()]
        origin.check_sizes(inputs)
        with ThreadPoolExecutor(1, thread_name_prefix="source-digest") as background:
            recorded = background.submit(origin.digest, inputs)
            writer = _write_weights(plan, parent, folder, seed, stored_in, max_shard_size, progress)
            files = recorded.result()
        digests.update(writer.sha256)
        config = _child_config(plan, writer.specs[plan.tensors[0].name].dtype)
        config.save_pretrained(folder)
        origin.copy_companions(folder)
        if optimizer is not None:
            files[OPTIMIZER_NAME] = _grow_optimizer(optimizer, plan, folder)
        check = _check(origin, folder, parent) if verify else None
        report = GrowthReport(
            output=os.fspath(output),
            source=origin.name,
            revision=origin.revision,
            family=plan.family.model_type,
            method=method,
            seed=seed,
            preserves_function=plan.preserves_function,
            verification=check,
            parameters_source=parent.parameters,
            parameters_target=sum(math.prod(spec.shape) for spec in writer.specs.values()),
            files=tuple(writer.sha256),
            size=writer.total_bytes,
            seconds=time.monotonic() - started,
        )
        write_json(folder / RECORD_NAME, _record(report, plan, config, files))
    return replace(report, seconds=time.monotonic() - started)


def grow_model(
    model: PreTrainedModel,
    target: Any | Mapping[str, Any],
    *,
    method: str = "exact",
    seed: int = 0,
    **options: Any,
) -> PreTrainedModel:
    """Grow a model in memory.

    Args:
        model: The parent, a causal language model of a known family; not changed.
        target: The child's config, or a dict of config fields; what a dict does not name is kept or derived.
        method: A growth method; see `hf_progressive.growth.methods`.
        seed: Seed of the new entries; the weights are those that `grow_checkpoint` writes.
        **options: Further options of `plan_growth`.

    Returns:
        The child, of the parent's class, dtype, device and mode; it shares no memory with the parent.

    Raises:
        ValueError: The target is not one that the parent can grow into, or the parent holds NaN.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_head=2, n_layer=1, n_positions=8, vocab_size=16))
    >>> grow_model(model, {"n_embd": 12, "n_head": 3}).transformer.wte.weight.shape
    torch.Size([16, 12])
    """
    plan = plan_growth(model.config, target, method=method, **options)
    parent = _ParentTensors(plan, _ModelTensors(model))
    grown = {
        tensor.name: _produce(tensor, parent, seed, parent.stored_dtype(tensor)).clone() for tensor in plan.tensors
    }
    config = _child_config(plan, model.dtype)
    child = type(model).from_pretrained(None, config=config, state_dict=grown, dtype=model.dtype)
    if model.generation_config is not None:
        child.generation_config = copy.deepcopy(model.generation_config)
    return child.to(model.device).train(model.training)


class _Tensors(Protocol):
    """Tensors by the names that a checkpoint or a model gives them."""

    @property
    def specs(self) -> Mapping[str, TensorSpec]: ...

    def read(self, name: str) -> Tensor: ...


class _ModelTensors:
    """The tensors of a model in memory, in the manner of `CheckpointReader`."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._state: dict[str, Tensor] = model.state_dict()
        self.specs = {name: TensorSpec(shape=tuple(t.shape), dtype=t.dtype) for name, t in self._state.items()}

    def read(self, name: str) -> Tensor:
        tensor = self._state[name].detach().cpu()
        if not is_finite(tensor):
            raise ValueError(f"tensor {name} holds NaN or infinite values; a sound model is needed")
        return tensor


class _ParentTensors:
    """The parent's tensors by canonical name, once it is certain that each is there exactly once."""

    def __init__(self, plan: GrowthPlan, tensors: _Tensors) -> None:
        plan.check_source_keys({key: spec.shape for key, spec in tensors.specs.items()})
        self._tensors = tensors
        names = {key: plan.family.canonical_name(key) for key in tensors.specs}
        self._keys = {name: key for key, name in names.items() if name not in plan.ignored_sources}
        self._rule_dtypes = {_LAYER.sub("", name): self._spec(name).dtype for name in self._keys}

    def _spec(self, name: str) -> TensorSpec:
        return self._tensors.specs[self._keys[name]]

    def read(self, name: str) -> Tensor:
        return self._tensors.read(self._keys[name])

    @property
    def parameters(self) -> int:
        return sum(math.prod(self._spec(name).shape) for name in self._keys)

    @property
    def dtypes(self) -> set[torch.dtype]:
        return {self._spec(name).dtype for name in self._keys}

    # That of the tensor it is made from; for a new one, that of the same tensor of any layer.
    def stored_dtype(self, tensor: TensorPlan) -> torch.dtype:
        if tensor.sources:
            return self._spec(tensor.sources[0]).dtype
        return self._rule_dtypes.get(_LAYER.sub("", tensor.name), next(iter(self._rule_dtypes.values())))


def _named_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    name = str(dtype).removeprefix("torch.")
    if dtype is not None and name not in _DTYPES:
        raise ValueError(f"dtype is {name!r}; weights are stored in one of {', '.join(_DTYPES)}")
    return None if dtype is None else _DTYPES[name]


# Seeded by the tensor's name, so that neither order nor sharding matters.
def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def _produce(tensor: TensorPlan, parent: _ParentTensors, seed: int, dtype: torch.dtype) -> Tensor:
    exact = tensor.produce(parent.read, _generator(seed, tensor.name))
    stored = exact.to(dtype)
    if dtype != exact.dtype and not is_finite(stored):
        raise ValueError(f"tensor {tensor.name} overflows {dtype}; choose dtype='bfloat16' or 'float32'")
    return stored


def _write_weights(
    plan: GrowthPlan,
    parent: _ParentTensors,
    folder: Path,
    seed: int,
    dtype: torch.dtype | None,
    max_shard_size: int | str,
    progress: bool,
) -> CheckpointWriter:
    tensors = {tensor.name: tensor for tensor in plan.tensors}
    specs = {
        name: TensorSpec(shape=tensor.shape, dtype=dtype or parent.stored_dtype(tensor))
        for name, tensor in tensors.items()
    }
    writer = CheckpointWriter(folder, specs, max_shard_size=max_shard_size)
    free = shutil.disk_usage(folder).free
    if free < writer.total_bytes:
        raise OSError(errno.ENOSPC, f"no space left: {writer.total_bytes:,} bytes are needed, {free:,} are free")
    bar = tqdm(total=writer.total_bytes, unit="B", unit_scale=True, desc="growing", disable=None if progress else True)
    with writer, bar:
        for name in writer.order:
            writer.write(name, _produce(tensors[name], parent, seed, specs[name].dtype))
            bar.update(specs[name].nbytes)
    return writer


# The record of the file read: size and SHA-256.
def _grow_optimizer(path: str | os.PathLike[str], plan: GrowthPlan, folder: Path) -> dict[str, Any]:
    from hf_progressive.growth.optimizer import grow_optimizer_state, read_optimizer_state  # loads Trainer

    state = grow_optimizer_state(read_optimizer_state(path), plan)
    with open(folder / OPTIMIZER_NAME, "wb") as file:  # given a path, torch.save writes that into the file
        try:
            torch.save(state, file)
        except RuntimeError as error:  # which is all that torch says of a full disk
            raise OSError(errno.ENOSPC, "no space left for the optimizer's state") from error
    return {"size": Path(path).stat().st_size, "sha256": sha256_file(path)}


def _child_config(plan: GrowthPlan, dtype: torch.dtype) -> Any:
    config = copy.deepcopy(plan.target_config)
    config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].__name__]
    config.dtype = dtype
    return config


def _check(origin: GrowthSource, folder: Path, parent: _ParentTensors) -> GrowthCheck:
    dtype = "float64" if torch.float64 in parent.dtypes else "float32"
    return verify_growth(origin.folder, folder, dtype=dtype, max_length=_CHECK_LENGTH)


def _record(report: GrowthReport, plan: GrowthPlan, config: Any, files: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "format": 1,
        "version": hf_progressive.__version__,
        "source": {"name": report.source, "revision": report.revision, "files": files},
        "target": config.to_dict(),
        "method": report.method,
        "options": asdict(plan.options),
        "seed": report.seed,
        "preserves_function": report.preserves_function,
        "plan": plan.summary(),
        "verification": None if report.verification is None else report.verification.to_dict(),
    }
