"""Grow a checkpoint on disk or a model in memory.

The plan says how every tensor of the child follows from the parent's; this module reads, grows, writes and checks. On
disk a few tensors at a time are read, grown and handed to the writer, so that memory does not depend on the number of
layers, and the folder appears whole or not at all.
"""

import copy
import errno
import logging
import math
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel

import hf_progressive
from hf_progressive.growth.added_tokens import add_tokens as with_tokens
from hf_progressive.growth.added_tokens import holding, warn_of_missing_rows
from hf_progressive.growth.families import family_of
from hf_progressive.growth.given import (
    named_dtype,
    named_in,
    require_model,
    require_path,
    require_replaceable,
    require_seed,
)
from hf_progressive.growth.growth_plan import GrowthPlan, plan_growth
from hf_progressive.growth.low_logits import require_rows_to_lower, split_text, warn_of_no_gain, with_low_logits
from hf_progressive.growth.mixtures import warn_of_rows_for_kernels
from hf_progressive.growth.parent import ModelTensors, ParentTensors
from hf_progressive.growth.reader import CheckpointReader
from hf_progressive.growth.reused_memory import ReusedMemory
from hf_progressive.growth.source import locate_source
from hf_progressive.growth.target import warn_of_nothing_larger
from hf_progressive.growth.tensor_plan import TensorPlan
from hf_progressive.growth.verify import GrowthCheck, compare_logits, tokens_of
from hf_progressive.growth.writer import CheckpointWriter
from hf_progressive.hub.names import CONFIG_NAME
from hf_progressive.storage import atomic_folder, read_json, sha256_file, write_json

logger = logging.getLogger(__name__)

RECORD_NAME = "growth.json"
"""Name of the record that a grown checkpoint carries."""

OPTIMIZER_NAME = "optimizer.pt"
"""Name of an optimizer's state, as Trainer writes it."""

_GROWN_AT_ONCE = 2
_GROWN_BYTES = 1 << 26  # that wait for their turn to be written, or one tensor that is larger
_CHECK_SEQUENCES = 4  # of the check that grow_checkpoint makes
_CHECK_LENGTH = 256  # tokens in each; verify_growth alone reads more


@dataclass(frozen=True, kw_only=True)
class GrowthReport:
    """What was grown, and how it turned out.

    Args:
        output: The folder written.
        source: The parent, as it was given.
        revision: Its commit, for a parent from the Hub.
        family: The `model_type` of the child, which is the parent's but under the method `upcycle`.
        method: The growth method.
        seed: Seed of the new entries.
        preserves_function: Whether the plan keeps the parent's function, by construction.
        verification: What was measured, unless the check was left out.
        parameters_source: Parameters of the parent, tied ones counted once.
        parameters_target: Parameters of the child, likewise.
        files: Names of the weight files.
        size: Their total size, in bytes.
        seconds: Duration of the whole, in seconds.
        changes: What changes the function, by construction, a line each.
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
    changes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, for JSON."""
        verification = None if self.verification is None else self.verification.to_dict()
        lists = {"files": list(self.files), "changes": list(self.changes)}
        return {**asdict(self), **lists, "verification": verification}


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
    checksums: bool = True,
    progress: bool = True,
    add_tokens: Sequence[str] = (),
    text: str | None = None,
    low_logits: float = 0.0,
    **options: Any,
) -> GrowthReport:
    """Grow a checkpoint into a larger one, ready for `from_pretrained`; of the same family, but under `upcycle`.

    The output holds the weights as safetensors, config.json, the parent's generation config, tokenizer and chat
    template, growth.json (how it was made) and manifest.json (sizes and SHA-256). It appears when it is complete.

    Args:
        source: The parent: a local folder with safetensors weights, or a Hub id.
        output: The folder to create.
        target: The child's config, or a dict of config fields; what a dict does not name is kept or derived.
        method: A growth method; see `hf_progressive.growth.methods`.
        seed: Seed of the new entries. Same seed and inputs, same bytes.
        max_shard_size: Size beyond which a new weight file begins, in bytes or as `"5GB"`.
        optimizer: `optimizer.pt` of a Trainer checkpoint of the parent: the moments of Adam or AdamW, and Muon's
            momentum, grow along, into a file of the same name in the output.
        dtype: Dtype of the child's weights, such as `"bfloat16"`; None keeps that of each of the parent's tensors.
            Arithmetic is in float32 (float64 for float64), rounded once.
        overwrite: Replace an existing output, once the new one is complete.
        revision: Branch, tag or commit of a parent on the Hub.
        verify: Compare the logits of both models, which takes the memory to load each of them, one after the other in
            general. The result is reported and recorded, whatever it is.
        checksums: Compute the SHA-256 of the weights read and written, check the former against what is known of them,
            and record both. Without, sizes stand alone: on a processor without instructions for SHA, that is twice
            as fast.
        progress: Show a bar on stderr, if that is a terminal.
        add_tokens: Tokens to add to the parent's tokenizer. Rows that the parent has beyond its tokenizer's tokens are
            used first, as they are; new ones start near the mean of the old. The vocabulary grows to hold the tokens,
            unless the target names one. Old logits stay; what the predictions of old
            tokens lose to the new is reported as the check's `new_token_loss`.
        text: A text that the parent knows, on which `new_token_loss` is measured instead of on random tokens.
        low_logits: By how many nat the logits of new tokens start lower, in the mean over `text`, than those of rows
            near the mean: each nat divides `new_token_loss` by up to e. The direction is taken from hidden states of
            tokens of `text` that nothing is measured on (`hf_progressive.growth.low_logits`, equation 1), or the bias
            of the output head is lowered where it has one, without a text. With tied embeddings the new rows are the
            new tokens' inputs too. Old rows, and old logits, are those of growth without this.
        **options: Options of the method, as `plan_growth` takes them.

    Returns:
        What was done and measured.

    Raises:
        FileExistsError: The output exists, and `overwrite` is not set, or it is no checkpoint.
        FileNotFoundError: The parent, or a part of it, is missing.
        ValueError: The parent is damaged, holds NaN, needs remote code or does not fit its config; the target is
            not one that it can grow into; the optimizer's state is not Adam's or Muon's for this parent; or there are
            no logits to be lowered, or no text to do so by.
        MemoryError: The CPU's memory does not suffice to compare the models; leave the check out.
        OSError: The disk is full or cannot be written.
    """
    started = time.monotonic()
    require_path(source, "source", "a folder or a Hub id, or use grow_model")
    require_path(output, "output", "the folder to create")
    if optimizer is not None:
        require_path(optimizer, "optimizer", "the path of Trainer's optimizer.pt")
    require_seed(seed)
    if text is not None and not verify and not low_logits:
        raise ValueError("text: is read where growth is verified; leave it out, or verify")
    stored_in = named_dtype(dtype)
    digests: dict[str, str | None] = {}
    with atomic_folder(output, overwrite=overwrite, sha256=digests) as folder:
        origin = locate_source(source, revision)
        require_replaceable(Path(output), origin.folder)
        stamps = origin.stamps()
        config, tokenizer = origin.read_config(), None
        with named_in(origin.folder / CONFIG_NAME):
            family = family_of(config)
        if add_tokens:
            tokenizer = with_tokens(origin.folder, add_tokens, rows=family.sizes(config).vocab)
            target = holding(tokenizer, family, config, target)
        plan = plain = plan_growth(config, target, method=method, **options)
        warn_of_nothing_larger(plan.family, config, plan.target_config, target)
        if tokenizer is None:
            warn_of_missing_rows(origin.folder, plan.family.sizes(plan.target_config).vocab)
        if low_logits:
            require_rows_to_lower(plan, low_logits, has_text=text is not None)
        reader = CheckpointReader(origin.folder)
        parent = ParentTensors(plan, reader)
        inputs = [CONFIG_NAME, *reader.files, *origin.companions()]
        files: dict[str, dict[str, Any]] = {name: {"size": size} for name, size in origin.sizes(inputs).items()}
        specs = parent.child_specs(stored_in)
        warn_of_rows_for_kernels(plan.family, plan.target_config, specs[plan.stored[0].name].dtype)
        exact = any(spec.dtype == torch.float64 for spec in parent.specs.values())
        read = None if text is None else tokens_of(origin.folder, text)
        if low_logits:
            length = min(_CHECK_LENGTH, plan.source_family.sizes(config).positions)
            read, fitted = (None, None) if read is None else split_text(read, _CHECK_SEQUENCES, length)
            computed_in = torch.float64 if exact else torch.float32
            plan = with_low_logits(plan, low_logits, origin.folder, fitted, length=length, dtype=computed_in)
        memory = ReusedMemory(2 * _GROWN_BYTES)
        writer = CheckpointWriter(
            folder, specs, max_shard_size=max_shard_size, checksums=checksums, then=memory.give_back
        )
        with ThreadPoolExecutor(1) as background:
            hashing = background.submit(origin.digest, inputs if checksums else ())
            _write_weights(writer, plan, partial(parent.grow, seed=seed, memory=memory), progress)
            for name, digest in hashing.result().items():
                files[name]["sha256"] = digest
        digests.update(writer.sha256)
        _child_config(plan, writer.specs[plan.stored[0].name].dtype).save_pretrained(folder)
        origin.copy_companions(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        before, after = plan.source_family.sizes(config), plan.family.sizes(plan.target_config)
        origin.follow_context(folder, before.positions, after.positions)
        if optimizer is not None:
            files[OPTIMIZER_NAME] = _grow_optimizer(optimizer, plan, folder)
        compare = partial(
            compare_logits,
            origin.folder,
            folder,
            dtype="float64" if exact else "float32",
            sequences=_CHECK_SEQUENCES,
            max_length=_CHECK_LENGTH,
            read=read,
            put_back=partial(_put_back, plain, plan, partial(parent.grow, seed=seed)) if low_logits else None,
        )
        check = compare() if verify else None
        if check is not None:
            warn_of_no_gain(check, low_logits)
        origin.require_unchanged(stamps)
        if plan.preserves_function and check is not None and not check.preserved:
            logger.warning("%s: %s, though method %r keeps it in exact arithmetic", output, check.describe(), method)
        report = GrowthReport(
            output=os.fspath(output),
            source=origin.name,
            revision=origin.revision,
            family=plan.family.model_type,
            method=plan.method,
            seed=seed,
            preserves_function=plan.preserves_function,
            verification=check,
            parameters_source=parent.parameters,
            parameters_target=sum(math.prod(spec.shape) for spec in writer.specs.values()),
            files=tuple(writer.sha256),
            size=writer.total_bytes,
            seconds=time.monotonic() - started,
            changes=plan.changes,
        )
        record = _record(report, plan, read_json(folder / CONFIG_NAME), files)
        write_json(folder / RECORD_NAME, record | ({"low_logits": low_logits} if low_logits else {}))
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
        **options: Options of the method, as `plan_growth` takes them.

    Returns:
        The child, of the parent's class (under `upcycle` that of a mixture), dtype, device, mode and kind of
        attention; it shares no memory with the parent.

    Raises:
        ValueError: The target is not one that the parent can grow into, or the parent holds NaN.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_head=2, n_layer=1, n_positions=8, vocab_size=16))
    >>> grow_model(model, {"n_embd": 12, "n_head": 3}).transformer.wte.weight.shape
    torch.Size([16, 12])
    """
    require_model(model)
    require_seed(seed)
    plan = plan_growth(model.config, target, method=method, **options)
    warn_of_nothing_larger(plan.family, model.config, plan.target_config, target)
    parent = ParentTensors(plan, ModelTensors(model))
    specs = parent.child_specs()
    grown = {t.name: parent.grow(t, seed=seed, dtype=specs[t.name].dtype).clone() for t in plan.stored}
    config = _child_config(plan, model.dtype)
    attention = model.config._attn_implementation
    stays = plan.family is plan.source_family
    child_class: Any = type(model) if stays else MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    child = child_class.from_pretrained(
        None, config=config, state_dict=grown, dtype=model.dtype, attn_implementation=attention
    )
    if getattr(model, "generation_config", None) is not None:  # a model without its head has none
        child.generation_config = copy.deepcopy(model.generation_config)
    return child.to(model.device).train(model.training)


def _write_weights(writer: CheckpointWriter, plan: GrowthPlan, grow: Callable[..., Tensor], progress: bool) -> None:
    free = shutil.disk_usage(writer.folder).free
    if free < writer.total_bytes:
        raise OSError(errno.ENOSPC, f"no space left: {writer.total_bytes:,} bytes are needed, {free:,} are free")
    bar = tqdm(total=writer.total_bytes, unit="B", unit_scale=True, desc="growing", disable=None if progress else True)
    tensors = {tensor.name: tensor for tensor in plan.stored}
    with writer, bar:
        for name, tensor in _grown(writer, tensors, grow):
            writer.write(name, tensor)
            bar.update(writer.specs[name].nbytes)


# The tensors in the writer's order, two of them grown at a time as long as they are small.
def _grown(
    writer: CheckpointWriter, tensors: Mapping[str, TensorPlan], grow: Callable[..., Tensor]
) -> Iterator[tuple[str, Tensor]]:
    waiting: deque[tuple[str, Future[Tensor]]] = deque()
    with ThreadPoolExecutor(_GROWN_AT_ONCE) as growers:
        try:
            for name in writer.order:
                size = writer.specs[name].nbytes
                while waiting and size + sum(writer.specs[other].nbytes for other, _ in waiting) > _GROWN_BYTES:
                    first, grown = waiting.popleft()
                    yield first, grown.result()
                dtype = writer.specs[name].dtype
                waiting.append((name, growers.submit(grow, tensors[name], dtype=dtype)))
            while waiting:
                first, grown = waiting.popleft()
                yield first, grown.result()
        finally:
            growers.shutdown(cancel_futures=True)


# Give a child the tensors of one plan where another's are its own.
def _put_back(plan: GrowthPlan, instead_of: GrowthPlan, grow: Callable[..., Tensor], child: PreTrainedModel) -> None:
    for tensor, other in zip(plan.tensors, instead_of.tensors, strict=True):
        if other.lowered is not None:
            parameter = child.get_parameter(tensor.name)
            (stored,) = tensor.stored
            parameter.data.copy_(grow(stored, dtype=parameter.dtype))


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


def _record(
    report: GrowthReport, plan: GrowthPlan, target: Mapping[str, Any], files: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "format": 1,
        "version": hf_progressive.__version__,
        "source": {"name": report.source, "revision": report.revision, "files": files},
        "target": target,
        "method": report.method,
        "options": asdict(plan.options),
        "seed": report.seed,
        "preserves_function": report.preserves_function,
        "plan": plan.summary(),
        "verification": None if report.verification is None else report.verification.to_dict(),
    }
