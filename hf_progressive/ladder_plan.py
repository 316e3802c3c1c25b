"""What a ladder will train and what it costs, worked out before any compute.

Every rung is sized and every growth is planned from configurations alone; what is wrong with any of them is reported
at once.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from transformers import AutoTokenizer, PretrainedConfig

from hf_progressive.arm import check_arguments
from hf_progressive.config import LadderConfig
from hf_progressive.growth import GrowthPlan, plan_growth
from hf_progressive.sizing import ParameterCount, RungSize, rung_model_config, size_rung


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
    """Optimizer steps it trains for: the cold run's on the first rung, a share of them on grown ones."""

    first_block: int
    """The first block of the corpus that it reads."""

    trains_cold: bool
    """Whether a cold twin is trained beside it."""

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

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain values.

        Returns:
            Names, counts of parameters, tokens and FLOPs.
        """
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
            "trains_cold": self.trains_cold,
            "first_block": self.first_block,
            "growth": None if self.growth is None else self.growth.summary(),
        }


@dataclass(frozen=True, kw_only=True)
class LadderPlan:
    """All rungs of a ladder, from the smallest."""

    config: LadderConfig
    """The configuration that was planned."""

    rungs: tuple[RungPlan, ...]
    """The rungs."""

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain values.

        Returns:
            The rungs, and the family's FLOPs: all cold, all inherited as planned, and the last alone.
        """
        return {
            "name": self.config.name,
            "rungs": [rung.to_dict() for rung in self.rungs],
            "flops": {
                "all_cold": sum(rung.size.flops for rung in self.rungs),
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
            grown = rung.parent is not None
            rows.append(
                (
                    rung.name,
                    rung.parent or "–",
                    f"{rung.parameters.total:,}",
                    f"{rung.size.tokens:,}",
                    f"{rung.size.flops:.3g}",
                    f"{rung.tokens:,}" if grown else "–",
                    f"{rung.flops:.3g}" if grown else "–",
                    f"{before.size.flops / rung.size.flops:.2f}" if before else "–",
                )
            )
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]
        flops = self.to_dict()["flops"]
        return "\n".join(
            [
                *lines,
                "",
                f"all rungs cold       {flops['all_cold']:.3g} FLOPs",
                f"all rungs inherited  {flops['all_inherited']:.3g} FLOPs, as planned, not yet measured to match",
                f"last rung alone      {flops['last_alone']:.3g} FLOPs",
            ]
        )


def plan_ladder(config: LadderConfig) -> LadderPlan:
    """Size every rung and plan every growth.

    Args:
        config: The ladder.

    Returns:
        The plan.

    Raises:
        ValueError: Something is wrong with a rung or a growth; all of them are listed, in one line.
    """
    check_arguments(config.training.arguments)
    vocab_size = vocabulary_size(config)
    problems: list[str] = []
    sizes: list[RungSize] = []
    for rung in config.rungs:
        try:
            model_config = rung_model_config(config.model, rung, vocab_size=vocab_size)
            sizes.append(size_rung(rung.name, model_config, config.training))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("; ".join(problems))

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
        steps = max(1, math.ceil(share * size.steps))
        rungs.append(
            RungPlan(
                index=index,
                size=size,
                parent=parent.name if parent else None,
                target=target,
                growth=growth,
                steps=steps,
                first_block=first_block,
                trains_cold=config.trains_cold(size.name),
            )
        )
        first_block += steps * size.batch_tokens // config.model.context
    if problems:
        raise ValueError("; ".join(problems))
    return LadderPlan(config=config, rungs=tuple(rungs))


def vocabulary_size(config: LadderConfig) -> int:
    """Return the rows of the embedding: what `model.fields` say, or the tokenizer's entries.

    Args:
        config: The ladder.

    Returns:
        The number of tokens.
    """
    given = config.model.fields.get("vocab_size")
    if given is not None:
        return int(given)
    tokenizer = config.data.tokenizer
    return tokenizer.vocab_size if tokenizer.name is None else len(AutoTokenizer.from_pretrained(tokenizer.name))


def _differing_fields(before: PretrainedConfig, after: PretrainedConfig) -> dict[str, Any]:
    old, new = before.to_dict(), after.to_dict()
    return {name: value for name, value in new.items() if value != old.get(name)}
