"""What the stages of a trunk are worth as finished models: members by decay and by average."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from hf_progressive.planning.ladder_plan import LadderPlan
from hf_progressive.planning.trunk_plan import TrunkPart, trunk_parts
from hf_progressive.records.equivalent import equivalent_budget
from hf_progressive.records.stages import StageMember
from hf_progressive.study.models import AveragedModel, FinishedModel, TrainingSetup
from hf_progressive.study.points import Point, target_of


@dataclass(frozen=True, kw_only=True)
class Members:
    """A stage of a recipe's trunk, and its two members."""

    recipe: str
    """The recipe."""

    end: str
    """The rung in which the trunk ends."""

    stage: FinishedModel
    """The stage, at a constant rate."""

    decayed: FinishedModel
    """By a decay on a branch."""

    averaged: AveragedModel
    """By an average of the stage's last weights."""


def members_of(recipe: str, end: TrainingSetup, plan: LadderPlan) -> Iterator[Members]:
    """Yield the stages of a trunk that ends in a rung's training, with the members that its settings state."""
    by_decay, by_average = _parts(plan, "decay"), _parts(plan, "average")
    for stage, decay, average in zip(end.initial.lineage, by_decay, by_average, strict=False):
        steps = stage.steps_on_trunk + decay.decay_steps
        decayed = FinishedModel(setup=stage.setup, fraction=steps / stage.setup.cold_steps, decay=decay.decay_steps)
        taken = tuple(sorted({min(step, stage.steps) for step in average.averaged_steps}))
        yield Members(
            recipe=recipe,
            end=end.initial.rung.name,
            stage=stage,
            decayed=decayed,
            averaged=AveragedModel(stage=stage, steps=taken),
        )


def _parts(plan: LadderPlan, member: Literal["decay", "average"]) -> list[TrunkPart]:
    config = dataclasses.replace(plan.config, trunk=dataclasses.replace(plan.config.trunk, member=member))
    return trunk_parts(config, [rung.size for rung in plan.rungs])


def stage_member(
    members: Members,
    kind: Literal["decay", "average"],
    *,
    bits_per_byte: float,
    constant_bits_per_byte: float,
    baselines: list[Point] | None,
) -> StageMember:
    """Return a member for study.json, read on the curve of its size's own finished baselines where there are some."""
    stage = members.stage
    worth = equivalent_budget(baselines, bits_per_byte) if baselines and len(baselines) > 1 else None
    branch = members.decayed.decay_steps * stage.setup.training.batch_tokens * stage.initial.rung.size.flops_per_token
    return StageMember(
        stage=stage.initial.rung.name,
        until=stage.fraction,
        seed=stage.initial.seed,
        kind=kind,
        bits_per_byte=bits_per_byte,
        constant_bits_per_byte=constant_bits_per_byte,
        flops=float(branch) if kind == "decay" else 0.0,
        baseline_bits_per_byte=target_of(baselines).bits_per_byte if baselines else None,
        worth=None if worth is None or not baselines else worth.flops / target_of(baselines).flops,
        extrapolated=worth is not None and worth.extrapolated,
        end=members.end,
    )
