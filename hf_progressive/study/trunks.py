"""A trunk as training setups: one constant rate through its stages, each grown into the next, up to the rung measured.

Schedules, data and seeds are those of the end's baseline: step n of the trunk reads what step n of the baseline reads,
at the same share of the same peak, but for what growing changes. A trunk that grows into its own size is the baseline.
"""

import math

from transformers import PretrainedConfig

from hf_progressive.config import LadderConfig
from hf_progressive.planning.ladder_plan import LadderPlan
from hf_progressive.study.models import FinishedModel, InitialModel, TrainingSetup, TrunkPlace

_STAGE_STRIDE = 100  # between the draws of two growths of one trunk


def peak_learning_rate(
    ladder: LadderConfig, rung: str, config: PretrainedConfig, reference_width: int, *, grown: bool = False
) -> float:
    """Return a rung's peak learning rate, by its own or the ladder's, and by its width over a reference's."""
    training = ladder.training_of(rung)
    rate = (training.inherited_learning_rate if grown else None) or training.learning_rate
    if training.learning_rate_by_width == 0:
        return rate
    return float(rate * (config.hidden_size / reference_width) ** training.learning_rate_by_width)


def trunk_end(
    plan: LadderPlan, *, seed: int, draw: int, fingerprint: str, first_block: int, order: int | None, width: int
) -> TrainingSetup:
    """Return how the rung trains in which a trunk ends, with all stages before it as its lineage.

    The trunk reads from `first_block` on, in the order of the seed `order`, as the baseline does, which begins from
    fresh weights of the same seed, `draw`. `learning_rate_by_width` relates a stage's width to `width`.
    """
    ladder, steps = plan.config, plan.rungs[-1].size.steps
    blocks_per_step = plan.rungs[-1].size.batch_tokens // ladder.model.context
    parent: FinishedModel | None = None
    for index, (rung, stage) in enumerate(zip(plan.rungs, ladder.rungs, strict=True)):
        before = 0 if parent is None else parent.steps_on_trunk
        initial = InitialModel(
            rung=rung,
            seed=seed,
            draw=draw + _STAGE_STRIDE * index,
            fingerprint=fingerprint,
            ladder=ladder,
            parent=parent,
            carry_moments=parent is not None and ladder.trunk.moments == "grown",
        )
        rewarm = None if parent is None else math.ceil(ladder.trunk.rewarm_fraction * steps)
        setup = TrainingSetup(
            initial=initial,
            training=ladder.training_of(rung.name),
            phi=initial.phi if initial.estimates_inheritance else None,
            learning_rate=peak_learning_rate(ladder, rung.name, rung.size.config, width, grown=parent is not None),
            cold_steps=steps,
            first_block=first_block + before * blocks_per_step,
            order=order,
            trunk=TrunkPlace(steps_before=before, rewarm_steps=rewarm, rewarm=ladder.trunk.rewarm),
        )
        if stage.until is None:
            return setup
        parent = setup.stage(stage.until)
    raise AssertionError("the last rung of a trunk has no `until`")
