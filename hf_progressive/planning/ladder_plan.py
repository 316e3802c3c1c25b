"""What a ladder will train and what it costs, worked out before any compute.

Every rung is sized and every growth is planned from configurations alone; what is wrong with any of them is reported
at once.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PretrainedConfig

from hf_progressive.config import LadderConfig, ModelConfig, TokenizerConfig
from hf_progressive.growth import GrowthPlan, plan_growth
from hf_progressive.growth.families import family_of
from hf_progressive.planning.preflight import find_origin, find_problems
from hf_progressive.planning.sizing import ParameterCount, RungSize, larger_model_config, rung_model_config, size_rung
from hf_progressive.records.origin import Origin


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
    """Optimizer steps it trains for: the cold run's on the first rung, a share of them on grown ones, and none where
    it was trained elsewhere."""

    first_block: int
    """The first block of the corpus that it reads."""

    trains_baseline: bool
    """Whether a baseline is trained beside it."""

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
            "parameters": {**dataclasses.asdict(self.parameters), "scaling": self.parameters.scaling},
            "steps": self.steps,
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
            The rungs, and the family's FLOPs: all cold, all inherited as planned, and the last alone. A model trained
            elsewhere costs nothing any more.
        """
        return {
            "name": self.config.name,
            "rungs": [rung.to_dict() for rung in self.rungs],
            "flops": {
                "all_cold": sum(rung.size.flops for rung in self.rungs if rung.origin is None),
                "all_inherited": sum(rung.flops for rung in self.rungs),
                "last_alone": self.rungs[-1].size.flops,
            },
        }

    def table(self) -> str:
        """Return the plan as a table of plain text.

        Returns:
            A line per rung, and the family's FLOPs.
        """
        rows = [
            ("rung", "parent", "parameters", "tokens cold", "FLOPs cold", "tokens grown", "FLOPs grown", "parent/cold")
        ]
        for before, rung in zip((None, *self.rungs), self.rungs, strict=False):
            grown, taken = rung.parent is not None, rung.origin is not None
            rows.append(
                (
                    rung.name,
                    rung.parent or "–",
                    f"{rung.parameters.total:,}",
                    "–" if taken else f"{rung.size.tokens:,}",
                    "–" if taken else f"{rung.size.flops:.3g}",
                    f"{rung.tokens:,}" if grown else "–",
                    f"{rung.flops:.3g}" if grown else "–",
                    f"{before.cold_flops / rung.size.flops:.2f}" if before and before.cold_flops else "–",
                )
            )
        flops = self.to_dict()["flops"]
        return "\n".join(
            [
                *aligned(rows),
                *(f"{rung.name} is {rung.origin.describe()}" for rung in self.rungs if rung.origin is not None),
                "",
                f"all rungs cold       {flops['all_cold']:.3g} FLOPs",
                f"all rungs inherited  {flops['all_inherited']:.3g} FLOPs, as planned, not yet measured to match",
                f"last rung alone      {flops['last_alone']:.3g} FLOPs",
            ]
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
    rungs: list[RungPlan] = []
    first_block = 0
    for index, size in enumerate(sizes):
        parent = rungs[-1] if rungs else None
        growth, target = None, {}
        if parent is not None:
            target = _differing_fields(parent.size.config, size.config)
            try:
                growth = plan_growth(parent.config, target, method=config.growth.method, **config.growth.options)
            except ValueError as error:
                problems.append(f"rung {size.name}, grown from {parent.name}: {error}")
        share = 1.0 if parent is None else config.training.inherited_fraction
        is_origin = origin is not None and index == 0
        steps = 0 if is_origin else max(1, math.ceil(share * size.steps))
        rungs.append(
            RungPlan(
                index=index,
                size=size,
                parent=parent.name if parent else None,
                target=target,
                growth=growth,
                steps=steps,
                first_block=first_block,
                trains_baseline=config.trains_baseline(size.name),
                origin=origin if is_origin else None,
            )
        )
        first_block += steps * size.batch_tokens // config.model.context
    _raise_all(problems)
    return LadderPlan(config=config, rungs=tuple(rungs))


def _raise_all(problems: list[str]) -> None:
    if problems:
        raise ValueError("; ".join(dict.fromkeys(problems)))  # rungs share what `model` says


def _sizes(config: LadderConfig, origin: Origin | None, problems: list[str]) -> Iterator[RungSize]:
    # Every rung's size; what is wrong with a rung is added to the problems.
    model = config.model
    vocab_size = _vocabulary_size(model, config.data.tokenizer) if origin is None else 0
    before: PretrainedConfig | None = None
    for rung in config.rungs:
        try:
            if origin is None:
                before = rung_model_config(model, rung, vocab_size=vocab_size)
            elif before is None:
                before = origin.checkpoint.read_config()
            else:
                before = larger_model_config(model, rung, before)
            yield size_rung(rung.name, before, config.training, model.context)
        except ValueError as error:
            problems.append(str(error))


def _vocabulary_size(model: ModelConfig, tokenizer: TokenizerConfig) -> int:
    # The rows of the embedding: what `model.fields` say, or the tokenizer's entries.
    given = model.fields.get("vocab_size")
    if given is not None:
        return int(given)
    if tokenizer.name is None:
        return tokenizer.vocab_size
    return len(AutoTokenizer.from_pretrained(tokenizer.name, revision=tokenizer.revision))


def _differing_fields(before: PretrainedConfig, after: PretrainedConfig) -> dict[str, Any]:
    old, new = before.to_dict(), after.to_dict()
    follows = family_of(before).layer_fields  # lists with an entry per layer, which growth makes itself
    return {name: value for name, value in new.items() if value != old.get(name) and name not in follows}
