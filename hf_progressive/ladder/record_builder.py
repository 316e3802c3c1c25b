"""What a ladder records of itself and of its rungs, put together from what its steps measured."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from accelerate import PartialState

from hf_progressive.config import LadderConfig
from hf_progressive.data import Corpus
from hf_progressive.planning.ladder_plan import RungPlan
from hf_progressive.records.environment import environment
from hf_progressive.records.ladder import LadderRecord
from hf_progressive.records.origin import Origin
from hf_progressive.records.rung import (
    Baseline,
    CoreScore,
    CurvePoint,
    DataUse,
    Estimates,
    GrowthRecord,
    PenaltyRecord,
    RungFlops,
    RungParameters,
    RungRecord,
    Throughput,
)
from hf_progressive.training.flops import FORWARD_SHARE
from hf_progressive.training.training_run import TrainingResult


def ladder_record(config: LadderConfig, *, finished: list[str], state: PartialState) -> LadderRecord:
    """Return what `ladder.json` holds once the rungs of some names are trained."""
    names = tuple(rung.name for rung in config.rungs)
    return LadderRecord(
        name=config.name,
        family=config.model.family,
        seed=config.seed,
        rungs=names,
        finished=tuple(finished),
        complete=tuple(finished) == names,
        config=config.to_dict(),
        environment=environment(state),
    )


def rung_record(
    config: LadderConfig,
    rung: RungPlan,
    result: TrainingResult,
    corpus: Corpus,
    *,
    model_config: Mapping[str, Any],
    growth: GrowthRecord | None,
    estimates: Estimates,
    core: CoreScore | None,
    parent: RungRecord | None,
    seconds: Mapping[str, float],
    state: PartialState,
) -> RungRecord:
    """Return what `rung.json` holds before the rung's baseline is trained.

    Args:
        config: The ladder.
        rung: The rung's plan.
        result: What its training measured.
        corpus: What it was trained on.
        model_config: The trained model's configuration.
        growth: How it was grown, with the check; None on the first rung.
        estimates: What was estimated of the trained model for its successor.
        core: The result on CORE, where it was evaluated.
        parent: The parent's record; None on the first rung.
        seconds: Wall-clock seconds by step.
        state: The processes.
    """
    before = parent.estimates if parent else Estimates()
    check = growth.verification if growth else None
    parent_flops = parent.cold_flops if parent else None
    return RungRecord(
        **_frame(config, rung, model_config, result.tokens, state),
        cold_tokens=rung.size.tokens,
        data=DataUse.from_dict(corpus.span(rung.first_block, result.tokens // config.model.context)),
        flops=RungFlops(
            per_token=rung.size.flops_per_token,
            train=result.flops,
            fisher=before.fisher.flops if before.fisher else 0.0,
            subspace=before.subspace.flops if before.subspace else 0.0,
            inherited=parent.flops.lineage if parent else 0.0,
            evaluation=result.evaluation_flops,
        ),
        lineage_complete=parent is None or parent.lineage_complete,
        bits_per_byte=result.bits_per_byte,
        loss=result.loss,
        core=core,
        curve=tuple(map(CurvePoint.from_dict, result.curve)),
        training_log=tuple(result.training_log),
        computed_in=result.computed_in,
        c_parent_over_c_cold=None if parent_flops is None else parent_flops / rung.size.flops,
        cold_flops=float(rung.size.flops),
        max_abs_logit_diff=None if check is None else check.max_abs_logit_diff,
        max_abs_logit=None if check is None else check.max_abs_logit,
        growth=growth,
        estimates=estimates,
        phi=_penalty(config, parent) if parent else None,
        throughput=Throughput.from_dict(result.throughput) if result.throughput else None,
        seconds=dict(seconds),
    )


def origin_record(
    config: LadderConfig,
    rung: RungPlan,
    origin: Origin,
    *,
    data: DataUse,
    measured: Mapping[str, float],
    model_config: Mapping[str, Any],
    estimates: Estimates,
    core: CoreScore | None,
    seconds: Mapping[str, float],
    state: PartialState,
) -> RungRecord:
    """Return what `rung.json` holds of a first rung that was trained elsewhere.

    All FLOPs that went into it, its ancestors' among them, count as its training, since the ladder begins with it.
    They are 0 where nothing is recorded, and `lineage_complete` says so there and on every rung grown from it.

    Args:
        config: The ladder.
        rung: The rung's plan.
        origin: The model.
        data: What it was trained on.
        measured: Its `loss` and `bits_per_byte` on this ladder's validation documents.
        model_config: The model's configuration.
        estimates: What was estimated of it for its successor, here or before.
        core: The result on CORE, where it was evaluated.
        seconds: Wall-clock seconds by step.
        state: The processes.
    """
    known, per_token = origin.record, rung.size.flops_per_token
    loss, bits_per_byte = measured["loss"], measured["bits_per_byte"]
    return RungRecord(
        **_frame(config, rung, model_config, known.tokens if known else 0, state),
        origin=origin.to_record(),
        cold_tokens=known.cold_tokens if known else 0,
        data=data,
        flops=RungFlops(
            per_token=per_token,
            train=origin.flops,
            fisher=0.0,
            subspace=0.0,
            evaluation=measured.get("tokens", 0) * per_token * FORWARD_SHARE,
        ),
        lineage_complete=origin.is_complete,
        bits_per_byte=bits_per_byte,
        loss=loss,
        core=core,
        curve=(CurvePoint(step=0, tokens=0, flops=origin.flops, loss=loss, bits_per_byte=bits_per_byte),),
        c_parent_over_c_cold=None,
        cold_flops=known.cold_flops if known else None,
        max_abs_logit_diff=None,
        max_abs_logit=None,
        estimates=estimates,
        phi=None,
        seconds=dict(seconds),
    )


def _frame(
    config: LadderConfig, rung: RungPlan, model_config: Mapping[str, Any], tokens: int, state: PartialState
) -> dict[str, Any]:
    # What every record holds, before there is a baseline.
    counts = rung.parameters
    return {
        "index": rung.index,
        "name": rung.name,
        "parent": rung.parent,
        "family": config.model.family,
        "config": dict(model_config),
        "parameters": RungParameters(total=counts.total, non_embedding=counts.non_embedding, scaling=counts.scaling),
        "tokens": tokens,
        "tokens_per_parameter": tokens / getattr(counts, config.training.budget_parameters),
        **dict.fromkeys(("cold", "flops_to_match", "gap_bits_per_byte", "saving", "eta")),
        "environment": environment(state),
    }


def _penalty(config: LadderConfig, parent: RungRecord) -> PenaltyRecord | None:
    phi = config.phi
    if phi.ewc_lambda == 0 and phi.gamma == 0:
        return None
    return PenaltyRecord(
        ewc_lambda=phi.ewc_lambda,
        gamma=phi.gamma,
        schedule=phi.schedule,
        until=phi.until,
        fisher=parent.estimates.fisher,
        subspace=parent.estimates.subspace,
    )


def baseline_record(result: TrainingResult) -> Baseline:
    """Return what training a baseline measured, for the record of its rung."""
    return Baseline.from_dict(dataclasses.asdict(result))
