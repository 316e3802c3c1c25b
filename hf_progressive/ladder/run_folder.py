"""A run folder as one run's own: held against a second process, and against another configuration."""

import contextlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState

from hf_progressive import storage
from hf_progressive.config import LadderConfig, strict_yaml
from hf_progressive.distributed.processes import main_process_first
from hf_progressive.records.environment import environment
from hf_progressive.records.family import FamilyCost
from hf_progressive.records.ladder import LadderRecord
from hf_progressive.records.rung import RungRecord
from hf_progressive.storage.locks import try_lock
from hf_progressive.training.checkpoints import remove_leftovers

logger = logging.getLogger(__name__)

_MOST_NAMED = 6
"""Differences between configurations that a message names."""

_RECORDS = {"a ladder's run": ("ladder.json",), "a study": ("study.yaml", "study.json")}
"""By what a folder's owner is known."""

_OTHER_NUMBER = (
    "%s: was begun with %d processes and goes on with %d; every step reads the same tokens, but sums are rounded in "
    "another order, so the last digits differ from those of a run that was not interrupted"
)


@contextlib.contextmanager
def exclusive(folder: Path, rungs: Iterable[str], state: PartialState) -> Iterator[None]:
    """Keep a second run out of the same folder; the lock goes with the first process, however it ends.

    What killed runs left there goes: beside the records, in the rungs' folders and in the report's, no further.
    """
    with contextlib.ExitStack() as stack:
        with main_process_first(state):
            if state.is_main_process:
                make_run_folder(folder)
                require_own_kind(folder, "a ladder's run")
                if not stack.enter_context(try_lock(folder / ".lock")):
                    raise ValueError(f"{folder}: another run is working in this folder; wait for it or choose another")
                storage.remove_leftovers(folder, within=("plots",))
                for name in rungs:
                    remove_leftovers(folder / name)
        yield


def make_run_folder(folder: Path) -> None:
    """Make a folder to run in, or say in one line why there can be none."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "it is a file" if folder.is_file() else error.strerror
        message = f"{folder}: cannot be a run folder ({reason}); choose a folder that you may write to"
        raise type(error)(error.errno, message) from error


def require_own_kind(folder: Path, kind: str) -> None:
    """Refuse a folder that holds the other kind of work, whose report, pictures and corpus have the same names.

    Raises:
        ValueError: A study's folder is to hold a ladder's run, or the other way round.
    """
    for other, names in _RECORDS.items():
        if other != kind and (found := [name for name in names if (folder / name).exists()]):
            raise ValueError(f"{folder}: holds {other} ({found[0]}); {kind} needs another folder, choose one")


def claim(folder: Path, config: LadderConfig, state: PartialState) -> None:
    """Write the configuration into a new run folder, or refuse one that differs from what is there, and say where.

    A folder in which a run came to nothing, not even to a corpus, takes any.
    """
    path = folder / "ladder.json"
    with main_process_first(state):
        if path.exists() and any(entry.is_dir() and not entry.name.startswith(".") for entry in folder.iterdir()):
            try:
                record = LadderRecord.read(path)
            except ValueError as error:
                remedy = "delete it and start again with ladder.yaml beside it, and it is written anew"
                raise ValueError(f"{error}; {remedy}") from None
            there, here = _completed(record.config), config.to_dict()
            for run in (there, here):
                # Where the rungs go, and where the corpus lies, does not change what they are.
                run.pop("publish", None)
                run["data"].pop("prepared", None)
            if differences := list(_differences(there, here)):
                more = f"; and {len(differences) - _MOST_NAMED} more" if len(differences) > _MOST_NAMED else ""
                raise ValueError(
                    f"{folder}: holds a run of another configuration ({'; '.join(differences[:_MOST_NAMED])}{more}); "
                    f"go back to that configuration or choose another output folder"
                )
            before = record.environment.get("processes", state.num_processes)
            if not record.complete and before != state.num_processes and state.is_main_process:
                logger.warning(_OTHER_NUMBER, folder, before, state.num_processes)
        elif state.is_main_process:
            text = yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True)
            with storage.atomic_file(folder / "ladder.yaml") as temporary:
                temporary.write_text(text, encoding="utf-8")
            write_ladder_record(folder, config, [], state)


def write_ladder_record(folder: Path, config: LadderConfig, rungs: Sequence[RungRecord], state: PartialState) -> None:
    """Write `ladder.json`, once some rungs are trained."""
    names, finished = tuple(rung.name for rung in config.rungs), tuple(rung.name for rung in rungs)
    record = LadderRecord(
        name=config.name,
        family=config.model.family,
        seed=config.seed,
        rungs=names,
        finished=finished,
        complete=finished == names,
        totals=FamilyCost(rungs=tuple(rungs)).totals() if rungs else None,
        config=config.to_dict(),
        environment=environment(state),
    )
    storage.write_json(folder / "ladder.json", record.to_dict())


def _completed(configuration: dict[str, Any]) -> dict[str, Any]:
    # A key that has come since the run was begun has its default there, with which the run went on as before.
    try:
        return strict_yaml.build(LadderConfig, configuration).to_dict()
    except ValueError:  # of a version that knew other keys or accepted other values: compared as it is
        return configuration


def _differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, pair in enumerate(zip(old, new, strict=True)):
            yield from _differences(*pair, f"{path}.{index}")
    elif old != new:
        yield f"{path}: {old!r} there, {new!r} here"
