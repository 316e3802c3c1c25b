"""Reading a run folder: `ladder.json` and each `final/rung.json`, with every value checked."""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hf_progressive.records.rung import Baseline, CoreScore, DataUse, Evaluation, Run, Rung, TakenFrom, Throughput
from hf_progressive.storage import read_json

FORMAT = 1
"""The format of both records that this version reads."""

T = TypeVar("T")

_LAYER_FIELDS = ("n_layer", "num_hidden_layers")  # what the families call them
_WIDTH_FIELDS = ("n_embd", "hidden_size")


def read_run(run_dir: str | os.PathLike[str]) -> Run:
    """Read the records of a run, finished or not.

    Args:
        run_dir: The run folder.

    Returns:
        The run with the rungs that have a record.

    Raises:
        FileNotFoundError: The folder has no `ladder.json`.
        ValueError: A record is damaged, of another format, or lacks a value; the message names file and value.
    """
    folder = Path(run_dir)
    path = folder / "ladder.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: holds no ladder.json; give a folder that `hf-progressive ladder` wrote")
    record = _Record.read(path)
    rungs = sorted((read_rung(file) for file in folder.glob("*/final/rung.json")), key=lambda rung: rung.index)
    return Run(
        name=record.get("name", _text),
        family=record.get("family", _text),
        created=record.get("created", _text) if "created" in record.content else None,
        seed=record.get("seed", _whole),
        planned=tuple(_text(name) for name in record.get("rungs", _list)),
        rungs=tuple(rungs),
        config=record.get("config", _mapping),
        environment=record.get("environment", _mapping),
    )


def read_rung(path: str | os.PathLike[str]) -> Rung:
    """Read one `rung.json`.

    Args:
        path: The file.

    Returns:
        The rung.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The record is damaged, of another format, or lacks a value; the message names file and value.
    """
    record = _Record.read(Path(path))
    config = record.get("config", _mapping)
    return Rung(
        index=record.get("index", _whole),
        name=record.get("name", _text),
        parent=record.optional("parent", _text),
        origin=record.optional("origin", _taken_from) if "origin" in record.content else None,
        lineage_complete=bool(record.content.get("lineage_complete", True)),
        layers=next((config[name] for name in _LAYER_FIELDS if name in config), None),
        width=next((config[name] for name in _WIDTH_FIELDS if name in config), None),
        parameters=record.get("parameters.total", _whole),
        tokens=record.get("tokens", _whole),
        tokens_per_parameter=record.get("tokens_per_parameter", _number),
        cold_tokens=record.get("cold_tokens", _whole),
        flops_per_token=record.get("flops.per_token", _number),
        train_flops=record.get("flops.train", _number),
        fisher_flops=record.get("flops.fisher", _number),
        subspace_flops=record.get("flops.subspace", _number),
        bits_per_byte=record.get("bits_per_byte", _number),
        curve=record.get("curve", _curve),
        training_log=tuple(_numbers(entry) for entry in record.get("training_log", _list)),
        cold=record.optional("cold", _baseline),
        flops_to_match=record.optional("flops_to_match", _number),
        gap=record.optional("gap_bits_per_byte", _number),
        saving=record.optional("saving", _number),
        eta=record.optional("eta", _number),
        parent_share=record.optional("c_parent_over_c_cold", _number),
        max_abs_logit_diff=record.optional("max_abs_logit_diff", _number),
        max_abs_logit=record.optional("max_abs_logit", _number),
        phi=record.optional("phi", _mapping),
        data=DataUse(
            source=record.get("data.source", _text),
            first_epoch=record.get("data.first_epoch", _whole),
            repeats_from_token=record.optional("data.repeats_from_token", _whole),
        ),
        core=record.optional("core", _core_score) if "core" in record.content else None,
        evaluation_flops=_known(record.get("flops", _mapping).get("evaluation")),
        throughput=record.optional("throughput", _throughput) if "throughput" in record.content else None,
        seconds=_numbers(record.get("seconds", _mapping)),
    )


@dataclass(frozen=True)
class _Record:
    """A JSON object whose values are fetched by dotted path, with errors that name the file and the path."""

    content: Mapping[str, Any]
    where: Path

    @classmethod
    def read(cls, path: Path) -> "_Record":
        record = cls(read_json(path), path)
        found = record.get("format", _whole)
        if found != FORMAT:
            raise ValueError(
                f"{path}: format: {found} is not {FORMAT}, which this version reads; update hf_progressive"
            )
        return record

    def get(self, path: str, convert: Callable[[Any], T]) -> T:
        value: Any = self.content
        for key in path.split("."):
            if not isinstance(value, Mapping) or key not in value:
                raise ValueError(f"{self.where}: {path} is missing; the record is damaged, finish the run again")
            value = value[key]
        try:
            return convert(value)
        except ValueError as error:
            raise ValueError(f"{self.where}: {path}: {error}; the record is damaged") from None

    def optional(self, path: str, convert: Callable[[Any], T]) -> T | None:
        return self.get(path, lambda value: None if value is None else convert(value))


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"expected a finite number, got {value!r}")
    return value


def _known(value: Any) -> float | None:
    return None if value is None else _number(value)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"expected a whole number, got {value!r}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected text, got {value!r}")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"expected a list, got {value!r}")
    return value


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, got {value!r}")
    return value


def _numbers(value: Any) -> dict[str, float]:
    return {key: item for key, item in _mapping(value).items() if isinstance(item, int | float)}


def _entry(value: Any, key: str) -> Any:
    if key not in _mapping(value):
        raise ValueError(f"{key} is missing")
    return value[key]


def _curve(value: Any) -> tuple[Evaluation, ...]:
    points = [
        Evaluation(flops=_number(_entry(point, "flops")), bits_per_byte=_number(_entry(point, "bits_per_byte")))
        for point in _list(value)
    ]
    if not points:
        raise ValueError("expected at least one evaluation, got none")
    for before, after in zip(points, points[1:], strict=False):
        if after.flops < before.flops:
            raise ValueError(f"FLOPs fall from {before.flops:g} to {after.flops:g}")
    return tuple(points)


def _taken_from(value: Any) -> TakenFrom:
    commit = _entry(value, "commit")
    return TakenFrom(
        name=_text(_entry(value, "name")),
        commit=None if commit is None else _text(commit),
        flops=_number(_entry(value, "flops")),
        is_complete=bool(_entry(value, "is_complete")),
    )


def _core_score(value: Any) -> CoreScore:
    tasks = {
        _text(_entry(task, "label")): (
            _number(_entry(task, "centred")),
            _number(_entry(task, "centred_standard_error")),
        )
        for task in _list(_entry(value, "tasks"))
    }
    return CoreScore(
        name=_text(_entry(value, "name")),
        score=_number(_entry(value, "score")),
        standard_error=_number(_entry(value, "standard_error")),
        tasks=tasks,
    )


def _throughput(value: Any) -> Throughput | None:
    rate, mfu = _entry(value, "tokens_per_second"), _entry(value, "mfu")
    if rate is None:  # continued after its last step
        return None
    return Throughput(
        tokens_per_second=_number(rate),
        mfu=None if mfu is None else _number(mfu),
        device=_text(_entry(value, "device")),
        processes=_whole(_entry(value, "processes")),
        seconds=_numbers(_entry(value, "seconds")),
    )


def _baseline(value: Any) -> Baseline:
    return Baseline(
        bits_per_byte=_number(_entry(value, "bits_per_byte")),
        flops=_number(_entry(value, "flops")),
        curve=_curve(_entry(value, "curve")),
        evaluation_flops=_known(_mapping(value).get("evaluation_flops")),
    )
