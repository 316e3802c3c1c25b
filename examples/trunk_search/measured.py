"""Measured models: the lines that a search writes, and the one file that is kept of them."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from trunks import Trunk

from hf_progressive import storage


class Model(NamedTuple):
    """A finished model."""

    seed: int
    rate: float
    """The peak rate."""

    fraction: float
    """Share of the budget at which it is finished."""

    bits_per_byte: float | None
    """None if it diverged."""

    cost: float
    """FLOPs of it and its lineage, over the last size's full budget from scratch."""

    growths: tuple[tuple[float, float], ...] = ()
    """Bits per byte before and after each growth, on the first validation blocks."""

    search: int = 0
    """Which search measured it: the place of its machine in the list."""


@dataclass(kw_only=True)
class Measured:
    """What searches have measured."""

    machines: list[dict[str, Any]] = field(default_factory=list)
    """Where, once for each search."""

    models: dict[Trunk, list[Model]] = field(default_factory=dict)
    """By trunk."""

    def add(self, trunk: Trunk, models: Iterable[Model]) -> None:
        self.models.setdefault(trunk, []).extend(models)


def machine_line(machine: dict[str, Any]) -> str:
    """Return the first line of a search's results."""
    return json.dumps({"machine": machine})


def models_line(trunk: Trunk, models: Sequence[Model]) -> str:
    """Return the line of models of a trunk that were finished together."""
    return json.dumps({"trunk": trunk.to_dict(), "models": models})


def collect(paths: Sequence[Path]) -> Measured:
    """Read the lines of searches; one that was cut off in the middle is a ValueError."""
    measured = Measured()
    for path in paths:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}: line {number} is no JSON ({error}); remove it") from error
            if "machine" in record:
                measured.machines.append(record["machine"])
            else:
                search = len(measured.machines) - 1
                models = (_model(row)._replace(search=search) for row in record["models"])
                measured.add(Trunk.from_dict(record["trunk"]), models)
    return measured


def write(measured: Measured, path: Path) -> None:
    """Write everything into one file, a model a line."""
    groups = []
    for trunk, models in measured.models.items():
        rows = ",\n   ".join(
            json.dumps(model)
            for model in sorted(models, key=lambda model: (model.search, model.fraction, model.rate, model.seed))
        )
        groups.append(f'  {{"trunk": {json.dumps(trunk.to_dict())},\n   "models": [\n   {rows}]}}')
    columns = json.dumps(Model._fields)
    machines = json.dumps(measured.machines)
    text = f'{{"machines": {machines},\n "columns": {columns},\n "groups": [\n' + ",\n".join(groups) + "\n ]}\n"
    with storage.atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read(path: Path) -> Measured:
    """Read what `write` wrote."""
    record = storage.read_json(path)
    if record["columns"] != list(Model._fields):
        raise ValueError(f"{path}: columns {record['columns']} are not {list(Model._fields)}")
    measured = Measured(machines=record["machines"])
    for group in record["groups"]:
        measured.add(Trunk.from_dict(group["trunk"]), map(_model, group["models"]))
    return measured


def _model(row: list[Any]) -> Model:
    growths = row[Model._fields.index("growths")]
    return Model(*row)._replace(growths=tuple((before, after) for before, after in growths))
