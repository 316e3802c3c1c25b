"""A training run's checkpoints: how they are written, which are complete, which may go, the penalty in each."""

import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.trainer import OPTIMIZER_NAME, TRAINER_STATE_NAME

from hf_progressive import storage
from hf_progressive.data.tokenizer import vocabulary_size
from hf_progressive.distributed.processes import main_process_first
from hf_progressive.penalty.lora import LoraPenalty
from hf_progressive.penalty.saved_penalty import DESCRIPTION_NAME, KEPT_PENALTY_NAME, save_penalty, storage_of
from hf_progressive.penalty.specification import InheritancePenalty
from hf_progressive.storage import MANIFEST_NAME, atomic_folder, check_manifest, is_complete, link_or_copy, read_json
from hf_progressive.storage.full_disk import FullDiskNamed

logger = logging.getLogger(__name__)

STAGING_NAME = ".saving"
"""Folder, beside the checkpoints, in which the next one is written."""
PENALTY_NAME = "phi"
"""Folder of the penalty inside each checkpoint."""

_DAMAGED_SHOWN = 3
_PLAIN = "plain PyTorch (one process or DDP)"
_ZERO_PATTERN = re.compile(r"zero_pp_rank_(\d+)_mp_rank_00_optim_states\.pt$")
_CHECKPOINT_PATTERN = re.compile(r"checkpoint-(\d+)")


def write_fresh(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, folder: Path, *, seed: int) -> None:
    """Write a stock checkpoint of fresh weights, in float32, with the tokenizer's special tokens; an old one goes."""
    if (needed := vocabulary_size(tokenizer)) > config.vocab_size:
        raise ValueError(f"vocab_size: {config.vocab_size} is below the {needed} entries of the tokenizer; raise it")
    config = type(config).from_dict(config.to_dict())
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, getattr(tokenizer, name))
    if config.pad_token_id == config.eos_token_id:
        config.pad_token_id = None  # or the embedding of the end-of-text token would be zero and stay so
    if config.model_type == "gpt2":
        config.n_ctx = config.n_positions  # no field of the class any more; llama.cpp's converter reads it
    set_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with atomic_folder(folder, overwrite=True) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


@contextmanager
def written_whole(target: Path, *, writes: bool) -> Iterator[tuple[Path, dict[str, str]]]:
    """Let all processes write a checkpoint into a folder aside, which one then moves into place with a manifest.

    What stood at the target is replaced. `writes` says whether this process is the one, or the one of its disk.

    Yields:
        The folder aside, and where to put SHA-256 digests that are known already, by file.
    """
    staged, state = target.parent / STAGING_NAME / target.name, PartialState()
    known: dict[str, str] = {}
    if writes:
        shutil.rmtree(staged, ignore_errors=True)
    state.wait_for_everyone()
    try:
        with FullDiskNamed(target):
            yield staged, known
    except OSError:
        shutil.rmtree(staged.parent, ignore_errors=True)  # what does not fit must not fill the disk
        raise
    state.wait_for_everyone()
    with main_process_first(state):  # reads all that was written, for its digests
        if writes:
            with atomic_folder(target, overwrite=True, sha256=known) as empty:
                for path in staged.iterdir():
                    os.replace(path, empty / path.name)
            shutil.rmtree(staged.parent)
    state.wait_for_everyone()


def newest_complete_checkpoint(folder: str | os.PathLike[str], *, until: int | None = None) -> Path | None:
    """Return the `checkpoint-N` of the highest step whose manifest is there and whose files have its sizes, if any.

    None is of a step beyond `until`.

    >>> import tempfile
    >>> from hf_progressive.storage import write_manifest
    >>> run = Path(tempfile.mkdtemp())
    >>> for step in (9, 10, 11):
    ...     (run / f"checkpoint-{step}").mkdir()
    >>> write_manifest(run / "checkpoint-9"), write_manifest(run / "checkpoint-10")
    (None, None)
    >>> newest_complete_checkpoint(run).name
    'checkpoint-10'
    """
    paths = (path for path in reversed(_checkpoints(Path(folder))) if until is None or step_of(path) <= until)
    return next((path for path in paths if is_complete(path)), None)


def require_newest(folder: str | os.PathLike[str]) -> Path:
    """Return the newest complete checkpoint, and warn of newer ones that are not.

    Raises:
        ValueError: There is none; it says what is wrong with those that are there, the newest first.
    """
    damaged = []
    for path in reversed(_checkpoints(Path(folder))):
        try:
            check_manifest(path, contents=False)
        except (ValueError, OSError) as error:
            wrong = str(error).removeprefix(f"{path}: ").removeprefix(f"{path}/").partition("; ")[0]
            if not (path / MANIFEST_NAME).exists():
                wrong = "has no manifest, as a plain Trainer's; name it if it is whole"
            damaged.append(f"{path.name}: {wrong}")
        else:
            if damaged and PartialState().is_main_process:
                logger.warning("%s: resuming from %s, not from %s", folder, path.name, _few(damaged))
            return path
    if not damaged:
        raise ValueError(f"{folder}: holds no complete checkpoint to resume from; train without resuming")
    raise ValueError(
        f"{folder}: holds no complete checkpoint to resume from ({_few(damaged)}); train without resuming"
    )


def _few(damaged: list[str]) -> str:
    more = f"; {len(damaged) - _DAMAGED_SHOWN} more" if len(damaged) > _DAMAGED_SHOWN else ""
    return "; ".join(damaged[:_DAMAGED_SHOWN]) + more


def step_of(checkpoint: Path) -> int:
    """Return the N of a `checkpoint-N`; 0 of any other name."""
    match = _CHECKPOINT_PATTERN.fullmatch(checkpoint.name)
    return int(match[1]) if match else 0


def check_checkpoint(
    checkpoint: Path,
    penalty: InheritancePenalty | LoraPenalty | None,
    *,
    weighted: InheritancePenalty | LoraPenalty | None = None,
    branches: bool = False,
    reads: bool = True,
) -> None:
    """Raise unless a checkpoint is undamaged and was trained with the penalty that training is to go on with.

    Every process of a launch must call it. The others wait for the first outside of any collective.

    Args:
        checkpoint: A checkpoint. One that a plain Trainer wrote has no manifest, and passes with a warning.
        penalty: The penalty to go on with; None for none.
        weighted: The same, with the weights to go on with; other ones are warned of. None where they are not known.
        branches: The checkpoint is another run's, whose penalty may have been any.
        reads: Whether this process reads the files, for their digests; otherwise it compares their sizes. One process
            for each disk is enough.

    Raises:
        ValueError: The folder or a file is missing or damaged, or the penalty is another.
    """
    if not checkpoint.is_dir():
        raise ValueError(f"{checkpoint}: no such folder; give a checkpoint's, or True for the newest of the output's")
    has_manifest = (checkpoint / MANIFEST_NAME).exists()
    with main_process_first(PartialState()):
        if has_manifest:
            try:
                check_manifest(checkpoint, contents=reads)
            except ValueError as error:
                raise ValueError(f"{error}{_or_an_older(checkpoint)}") from None
    if not has_manifest:
        logger.warning("%s has no manifest, so nothing tells whether it is complete; resuming from it", checkpoint)
        return
    if branches:
        return
    folder = checkpoint / PENALTY_NAME
    if (folder / DESCRIPTION_NAME).exists():
        _check_penalty(folder, penalty, weighted)
    elif penalty is not None:
        logger.warning("%s holds no penalty; the run goes on with one", checkpoint)


def require_own_engine(checkpoint: Path, *, deepspeed: bool, fsdp: bool) -> None:
    """Raise unless a checkpoint holds the optimizer's state in a form that the engine which is to go on can read.

    Trainer (Transformers 5.23) passes over a state in another engine's form, and trains on with an optimizer and a
    schedule that begin anew. DeepSpeed's ZeRO reads only what as many processes wrote.

    Raises:
        ValueError: It was saved under another engine or by another number of processes, or holds weights alone.
    """
    forms = {
        "DeepSpeed": any(checkpoint.glob("global_step*")),
        "FSDP": (checkpoint / "optimizer.bin").is_file() or (checkpoint / "optimizer_0").is_dir(),
        _PLAIN: (checkpoint / OPTIMIZER_NAME).is_file(),
    }
    now = "DeepSpeed" if deepspeed else "FSDP" if fsdp else _PLAIN
    theirs = " and ".join(form for form, is_there in forms.items() if is_there)
    if not theirs:
        raise ValueError(
            f"{checkpoint}: holds no optimizer's state to go on with, as save_only_model leaves it out; begin anew "
            "from its weights, without resume_from_checkpoint"
        )
    if not forms[now]:
        raise ValueError(
            f"{checkpoint}: was saved under {theirs}, and {now} cannot read its optimizer's state; go on under "
            f"{theirs}, or begin anew from its weights"
        )
    if deepspeed and not (checkpoint / "latest_universal").is_file():
        _require_as_many(checkpoint)


def _require_as_many(checkpoint: Path) -> None:
    # Each process of ZeRO writes a file of its own; where nodes share no disk those of the others are not here.
    names = (_ZERO_PATTERN.search(path.name) for path in checkpoint.glob("global_step*/*"))
    ranks, state = {int(match[1]) for match in names if match}, PartialState()
    if not ranks or (max(ranks) < state.num_processes and state.process_index in ranks):
        return
    raise ValueError(
        f"{checkpoint}: was saved under DeepSpeed's ZeRO, whose states another number of processes cannot read: "
        f"{max(ranks) + 1} then, {state.num_processes} now; go on with as many as then"
    )


def _or_an_older(checkpoint: Path) -> str:
    older = newest_complete_checkpoint(checkpoint.parent, until=step_of(checkpoint) - 1)
    return "" if older is None else f"; {older} is complete, so resume from that"


def rotate(written: Path, limit: int | None, best: str | None) -> None:
    """Delete the oldest complete checkpoints beyond a limit, None or 0 being none.

    Only complete ones count, and only they are deleted: those of a plain Trainer have no manifest, and stay. So do the
    one just written, whatever else an earlier run left there, and the best.
    """
    if limit is None or limit <= 0:
        return
    others = [path for path in _checkpoints(written.parent) if path != written and is_complete(path)]
    kept = None if best is None else Path(best).name  # its folder may have had another path
    older = [path for path in others if path.name != kept]
    for path in older[: max(0, len(others) - (limit - 1))]:
        storage.remove_folder(path)


def finish_rotation(resumed: Path, limit: int | None, *, of: Path) -> None:
    """Delete what `rotate` would have, had the process that wrote a run's newest checkpoint not been killed before.

    Nothing is deleted where the checkpoint stands elsewhere than in the folder `of` the run: it is another run's.
    """
    if resumed.parent.resolve() != of.resolve() or resumed != newest_complete_checkpoint(resumed.parent):
        return
    rotate(resumed, limit, read_json(resumed / TRAINER_STATE_NAME).get("best_model_checkpoint"))


def remove_leftovers(folder: Path) -> None:
    """Delete what killed processes were writing, anywhere in a rung's folder, in which no other process trains."""
    storage.remove_leftovers(folder)
    for place, folders, _ in os.walk(folder):
        if STAGING_NAME in folders:
            folders.remove(STAGING_NAME)
            shutil.rmtree(Path(place, STAGING_NAME), ignore_errors=True)


def remove_checkpoint_leftovers(folder: Path) -> None:
    """Delete what killed processes were writing of a Trainer's checkpoints, which never stands under their own names.

    What else lies in its folder, an `output_dir` or a trial's, is not looked into.
    """
    checkpoints = [path.name for path in folder.glob("checkpoint-*")]
    storage.remove_leftovers(folder, within=(*checkpoints, KEPT_PENALTY_NAME, PENALTY_NAME))
    shutil.rmtree(folder / STAGING_NAME, ignore_errors=True)


def keep_penalty(penalty: InheritancePenalty | LoraPenalty, folder: Path) -> None:
    """Write a run's penalty once beside its checkpoints, to be linked into each."""
    kept, before = folder / KEPT_PENALTY_NAME, folder / PENALTY_NAME
    if not kept.exists() and (before / DESCRIPTION_NAME).exists():  # of a run that began when it had that name
        os.replace(before, kept)
    if not is_complete(kept, contents=True) or _differences(read_json(kept / DESCRIPTION_NAME), penalty):
        save_penalty(penalty, kept)


def link_penalty(
    folder: Path, checkpoint: Path, weighted: InheritancePenalty | LoraPenalty | None = None
) -> dict[str, str]:
    """Put the penalty kept beside the checkpoints into one, by hard links if possible; return the files' SHA-256.

    The weights that stand there are those of `weighted`, if given: trials of a search share the tensors alone.
    """
    kept, target = folder / KEPT_PENALTY_NAME, checkpoint / PENALTY_NAME
    shutil.copytree(kept, target, copy_function=link_or_copy)
    files = read_json(kept / MANIFEST_NAME)["files"]
    digests: dict[str, str] = {name: entry["sha256"] for name, entry in files.items()}
    description = read_json(kept / DESCRIPTION_NAME)
    weights: dict[str, Any] = {}
    if weighted is not None:
        weights = {"ewc_lambda": weighted.ewc_lambda, "gamma": weighted.gamma, **storage_of(weighted)}
    if any(description.get(name) != value for name, value in weights.items()):
        storage.write_json(target / DESCRIPTION_NAME, {**description, **weights})
        digests[DESCRIPTION_NAME] = storage.sha256_file(target / DESCRIPTION_NAME)
        storage.write_manifest(target, sha256=digests)
    return {f"{PENALTY_NAME}/{name}": digest for name, digest in digests.items()}


def _check_penalty(
    folder: Path, penalty: InheritancePenalty | LoraPenalty | None, weighted: InheritancePenalty | LoraPenalty | None
) -> None:
    if penalty is None:
        raise ValueError(f"{folder.parent} was trained with a penalty; pass penalty=load_penalty({str(folder)!r})")
    description = read_json(folder / DESCRIPTION_NAME)
    different = _differences(description, penalty)
    if different:
        raise ValueError(
            f"{folder.parent} was trained with another penalty: the two differ in {' and '.join(different)}; "
            f"pass penalty=load_penalty({str(folder)!r})"
        )
    for symbol in ("ewc_lambda", "gamma") if weighted is not None else ():
        before, now = description[symbol], getattr(weighted, symbol)
        if before != now:
            logger.warning("%s was trained with %s=%s; the run goes on with %s", folder.parent, symbol, before, now)


def _differences(description: dict[str, Any], penalty: InheritancePenalty | LoraPenalty) -> list[str]:
    theirs, ours = description["fingerprint"], penalty.fingerprint()
    different = [kind for kind in {**theirs, **ours} if theirs.get(kind) != ours.get(kind)]
    # Files of a time when there was no other way say nothing.
    ways = {"apply": "gradient", "subspace_side": "outside"}
    return [*different, *(way for way, old in ways.items() if description.get(way, old) != getattr(penalty, way))]


def _checkpoints(folder: Path) -> list[Path]:
    # checkpoint-N folders, whole or not, in the order of their steps
    if not folder.is_dir():
        return []
    steps = ((_CHECKPOINT_PATTERN.fullmatch(path.name), path) for path in folder.iterdir() if path.is_dir())
    return [path for _, path in sorted((int(match[1]), path) for match, path in steps if match)]
