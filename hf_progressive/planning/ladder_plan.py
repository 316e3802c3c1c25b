"""What a ladder will train and what it costs, worked out before any compute.

Every rung is sized and every growth is planned from configurations alone; what is wrong with any of them is reported
at once.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import PretrainedConfig

from hf_progressive.config import LadderConfig, PhiConfig
from hf_progressive.growth import GrowthPlan, plan_growth
from hf_progressive.planning.family_change import upcycled_model_config
from hf_progressive.planning.preflight import find_origin, find_problems
from hf_progressive.planning.sizing import (
    ParameterCount,
    RungSize,
    differing_fields,
    embedding_rows,
    larger_model_config,
    rung_model_config,
    size_rung,
)
from hf_progressive.planning.trunk_plan import TrunkPart, trunk_parts
from hf_progressive.records.origin import Origin
from hf_progressive.training.trainable import trainable_names


@dataclass(frozen=True, kw_only=True)
class RungPlan:
    """One rung: its model, its budget and where in the corpus it reads."""

    index: int
    """Place on the ladder, from 0."""

    size: RungSize
    """The model and its full cold run."""

    parent: str | None
    """The rung that it grows from; None for the first."""

    target: dict[str, Any]
    """Configuration fields that differ from the parent's: what growth is asked for."""

    growth: GrowthPlan | None
    """The growth from the parent; None for the first."""

    steps: int
    """Optimizer steps it trains for: of a chain the cold run's on the first rung, a share of them on grown ones, and
    none where it was trained elsewhere; of a trunk its part and its branch."""

    learning_rate: float
    """Peak learning rate."""

    cold_learning_rate: float
    """Peak learning rate of its baseline."""

    first_block: int
    """The first block of the corpus that it reads."""

    trains_baseline: bool
    """Whether a baseline is trained beside it."""

    hands_on: Literal["final", "stable"] = "final"
    """The folder of the weights that the next rung grows from: after its decay, or from before it."""

    keeps_stable: bool = False
    """Whether the weights from before the decay are kept."""

    trunk: TrunkPart | None = None
    """Its part of the trunk; None in a chain."""

    origin: Origin | None = None
    """The model trained elsewhere that it is; None for a rung that is trained."""

    @property
    def name(self) -> str:
        """The rung's name."""
        return self.size.name

    @property
    def config(self) -> PretrainedConfig:
        """The configuration of the model as it trains: the grown one, where it is grown."""
        return self.size.config if self.growth is None else self.growth.target_config

    @property
    def parameters(self) -> ParameterCount:
        """The model's parameters."""
        return self.size.parameters

    @property
    def tokens(self) -> int:
        """Tokens it trains on."""
        return self.steps * self.size.batch_tokens

    @property
    def flops(self) -> float:
        """Training FLOPs it spends, without estimates for Φ."""
        return float(self.tokens * self.size.flops_per_token)

    @property
    def branch_tokens(self) -> int:
        """Of `tokens`, those that only finish this member of a trunk."""
        return 0 if self.trunk is None else self.trunk.branch_steps * self.size.batch_tokens

    @property
    def flops_handed_on(self) -> float:
        """Of `flops`, those that went into the weights which the next rung grows from."""
        return float((self.tokens - self.branch_tokens) * self.size.flops_per_token)

    @property
    def cold_flops(self) -> float | None:
        """FLOPs of its full cold budget; None for a model trained elsewhere whose budget is not recorded."""
        if self.origin is None:
            return float(self.size.flops)
        return None if self.origin.record is None else self.origin.record.cold_flops

    def to_dict(self) -> dict[str, Any]:
        return {
            "index": self.index,
            "name": self.name,
            "parent": self.parent,
            "target": self.target,
            "parameters": {
                **dataclasses.asdict(self.parameters),
                "active": self.parameters.active,
                "scaling": self.parameters.scaling,
            },
            "steps": self.steps,
            "learning_rate": self.learning_rate,
            "cold_learning_rate": self.cold_learning_rate,
            "trunk": None if self.trunk is None else dataclasses.asdict(self.trunk),
            "tokens": self.tokens,
            "flops_per_token": self.size.flops_per_token,
            "flops": self.flops,
            "cold_steps": self.size.steps,
            "cold_tokens": self.size.tokens,
            "cold_flops": self.size.flops,
            "trains_baseline": self.trains_baseline,
            "first_block": self.first_block,
            "origin": None if self.origin is None else self.origin.to_record().to_dict(),
            "growth": None if self.growth is None else self.growth.summary(),
        }


@dataclass(frozen=True, kw_only=True)
class LadderPlan:
    """All rungs of a ladder, from the smallest."""

    config: LadderConfig
    """The configuration that was planned."""

    rungs: tuple[RungPlan, ...]
    """The rungs."""

    def starting_at(self, block: int) -> "LadderPlan":
        """Return the same plan with the corpus read from another block on.

        Args:
            block: The first block that the first trained rung reads.

        Returns:
            A plan whose rungs read one after the other, as before.
        """
        moved = (dataclasses.replace(rung, first_block=rung.first_block + block) for rung in self.rungs)
        return dataclasses.replace(self, rungs=tuple(moved))

    def next_phi(self, rung: RungPlan) -> PhiConfig:
        """Return the penalty for which a rung's estimates are made: the next rung's, of the last one the ladder's."""
        after = self.rungs[rung.index + 1 : rung.index + 2]
        return self.config.phi_of(after[0].name) if after else self.config.phi

    @property
    def corpus_blocks(self) -> int:
        """Blocks from the start of the corpus to where the last of all runs ends, baselines included."""
        context = self.config.model.context
        return max(
            rung.first_block + max(rung.tokens, rung.size.tokens * rung.trains_baseline) // context
            for rung in self.rungs
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain values.

        Returns:
            The rungs, and the family's FLOPs: all cold, all inherited as planned, the last alone, and the last grown,
            which is what goes into its initial weights (its lineage) and its own training. A model trained elsewhere
            costs nothing any more, but in the last one's lineage, where what is recorded of it counts.
        """
        *before, last = self.rungs
        lineage = sum(rung.flops_handed_on for rung in before)
        lineage += 0.0 if self.rungs[0].origin is None else self.rungs[0].origin.flops
        return {
            "name": self.config.name,
            "rungs": [rung.to_dict() for rung in self.rungs],
            "flops": {
                "all_cold": sum(rung.size.flops for rung in self.rungs if rung.origin is None),
                "all_inherited": sum(rung.flops for rung in self.rungs),
                "last_alone": last.size.flops,
                "last_lineage": lineage,
                "last_grown": lineage + last.flops,
            },
        }

    def table(self) -> str:
        """Return the plan as a table of plain text.

        Returns:
            A line per rung, and the family's FLOPs.
        """
        flops = self.to_dict()["flops"]
        cost = flops["last_grown"] / flops["last_alone"]
        return "\n".join(
            [
                *aligned(list(self._trunk_rows() if self.config.schedule == "trunk" else self._chain_rows())),
                *(
                    f"{rung.name} is {rung.origin.describe(rung.name)}"
                    for rung in self.rungs
                    if rung.origin is not None
                ),
                "",
                f"all rungs cold       {flops['all_cold']:.3g} FLOPs{self._without_origin()}",
                f"all rungs inherited  {flops['all_inherited']:.3g} FLOPs, as planned, not yet measured to match",
                f"last rung alone      {flops['last_alone']:.3g} FLOPs",
                f"last rung grown      {flops['last_grown']:.3g} FLOPs, {cost:.2f} of it alone, as planned;"
                f" {flops['last_lineage']:.3g} of them before its growth",
            ]
        )

    __repr__ = table

    def _without_origin(self) -> str:
        first = self.rungs[0]
        return "" if first.origin is None else f", without {first.name}, which is there"

    def _chain_rows(self) -> Iterator[tuple[str, ...]]:
        yield "rung", "parent", "parameters", "tokens cold", "FLOPs cold", "tokens grown", "FLOPs grown", "parent/cold"
        for before, rung in zip((None, *self.rungs), self.rungs, strict=False):
            grown, taken = rung.parent is not None, rung.origin is not None
            yield (
                rung.name,
                rung.parent or "–",
                rung.parameters.describe(),
                "–" if taken else f"{rung.size.tokens:,}",
                "–" if taken else f"{rung.size.flops:.3g}",
                f"{rung.tokens:,}" if grown else "–",
                f"{rung.flops:.3g}" if grown else "–",
                f"{before.cold_flops / rung.size.flops:.2f}" if before and before.cold_flops else "–",
            )

    def _trunk_rows(self) -> Iterator[tuple[str, ...]]:
        yield (
            "rung", "until", "parameters", "tokens cold", "FLOPs cold", "tokens trunk", "FLOPs trunk", "tokens branch",
            "FLOPs branch", "peak rate",
        )  # fmt: skip
        for rung in self.rungs:
            assert rung.trunk is not None
            yield (
                rung.name,
                f"{rung.trunk.until:g}",
                rung.parameters.describe(),
                f"{rung.size.tokens:,}",
                f"{rung.size.flops:.3g}",
                f"{rung.tokens - rung.branch_tokens:,}",
                f"{rung.flops_handed_on:.3g}",
                f"{rung.branch_tokens:,}" if rung.branch_tokens else "–",
                f"{rung.flops - rung.flops_handed_on:.3g}" if rung.branch_tokens else "–",
                f"{rung.learning_rate:.3g}",
            )


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of cells as lines of text whose columns are flush right.

    >>> aligned([("rung", "tokens"), ("d10", "9")])
    ['rung  tokens', ' d10       9']
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]


def plan_ladder(config: LadderConfig, taken: Path | None = None, *, processes: int | None = None) -> LadderPlan:
    """Check all settings, size every rung and plan every growth.

    Args:
        config: The ladder.
        taken: Where a first rung that was trained elsewhere is at hand; None looks where the configuration says.
        processes: Processes that will train together; None does not ask whether a step divides among them.

    Returns:
        The plan.

    Raises:
        FileNotFoundError: There is no such model as the first rung is to be.
        ValueError: Something is wrong with a setting, a rung or a growth; all of it is listed, in one line.
        OSError: The Hub refused or failed.
    """
    problems = find_problems(config, processes)
    try:
        origin = find_origin(config.rungs[0], config.model, config.data.tokenizer, taken)
        sizes = list(_sizes(config, origin, problems))
    except ValueError as error:
        problems.append(str(error))
    _raise_all(problems)
    parts = trunk_parts(config, sizes) if config.schedule == "trunk" else [None] * len(sizes)
    rungs: list[RungPlan] = []
    first_block = 0
    for index, (size, part) in enumerate(zip(sizes, parts, strict=True)):
        parent = rungs[-1] if rungs else None
        growth, target, training = None, {}, config.training_of(size.name)
        if parent is not None:
            target, asked = differing_fields(parent.size.config, size.config), config.growth_of(size.name)
            try:
                growth = plan_growth(parent.config, target, method=asked.method, **asked.options)
                entries = growth.new_entries()
                trainable_names(list(entries), entries, training.trainable)
            except ValueError as error:
                problems.append(f"rung {size.name}, grown from {parent.name}: {error}")
        is_origin = origin is not None and index == 0
        rate, cold_rate = _learning_rates(config, size, sizes[-1], grown=parent is not None)
        hands_on = _hands_on(config, index)
        rungs.append(
            RungPlan(
                index=index,
                size=size,
                parent=parent.name if parent else None,
                target=target,
                growth=growth,
                steps=0 if is_origin else _steps(size, part, 1.0 if parent is None else training.inherited_fraction),
                learning_rate=rate,
                cold_learning_rate=cold_rate,
                first_block=first_block,
                trains_baseline=config.trains_baseline(size.name),
                hands_on=hands_on,
                keeps_stable=training.keep_stable or hands_on == "stable",
                trunk=part,
                origin=origin if is_origin else None,
            )
        )
        first_block += (rungs[-1].tokens - rungs[-1].branch_tokens) // config.model.context
    _raise_all(problems)
    return LadderPlan(config=config, rungs=tuple(rungs))


def _steps(size: RungSize, part: TrunkPart | None, share: float) -> int:
    return max(1, math.ceil(share * size.steps)) if part is None else part.steps + part.branch_steps


def _learning_rates(config: LadderConfig, size: RungSize, last: RungSize, *, grown: bool) -> tuple[float, float]:
    # The peak rates of a rung and of its baseline.
    training = config.training_of(size.name)
    factor = (size.config.hidden_size / last.config.hidden_size) ** training.learning_rate_by_width
    inherited = training.inherited_learning_rate if grown else None
    return (inherited or training.learning_rate) * factor, training.learning_rate * factor


def _hands_on(config: LadderConfig, index: int) -> Literal["final", "stable"]:
    # A trunk goes on from before any decay; in a chain the child says, or the ladder for a child that may come.
    is_last = index == len(config.rungs) - 1
    if config.schedule == "trunk":
        return "final" if is_last else "stable"
    return (config.growth if is_last else config.growth_of(config.rungs[index + 1].name)).parent


def _raise_all(problems: list[str]) -> None:
    if problems:
        raise ValueError("; ".join(dict.fromkeys(problems)))  # rungs share what `model` says


def _sizes(config: LadderConfig, origin: Origin | None, problems: list[str]) -> Iterator[RungSize]:
    # Every rung's size; what is wrong is added to the problems, once of rungs that share it (by `model.fields`).
    model, continued = config.model, origin is not None
    vocab_size = embedding_rows(model, config.data.tokenizer) if origin is None else 0
    before: PretrainedConfig | None = None
    faults: dict[str, list[str]] = {}
    for rung in config.rungs:
        try:
            if before is not None and rung.family not in (None, model.family):
                before = upcycled_model_config(rung, before, method=config.growth_of(rung.name).method)
                model, continued = dataclasses.replace(model, family=before.model_type), True
            elif not continued:
                before = rung_model_config(model, rung, vocab_size=vocab_size)
            elif before is None and origin is not None:
                before = origin.read_config()
            elif before is not None:
                before = larger_model_config(model, rung, before)
            assert before is not None
            yield size_rung(rung.name, before, config.training_of(rung.name), model.context)
        except ValueError as error:
            fault = str(error).removeprefix(f"rung {rung.name}: ")
            faults.setdefault(fault, []).extend([] if fault == str(error) else [rung.name])
    for fault, names in faults.items():
        where = f"rung{'s' * (len(names) > 1)} {', '.join(names)}: " if names else ""
        problems.append(f"{where}{fault}")
