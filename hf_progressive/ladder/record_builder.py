"""What `rung.json` holds of a rung, put together from what its steps have made."""

import dataclasses
from typing import Any

from hf_progressive import storage
from hf_progressive.ladder.rung_work import RungWork
from hf_progressive.planning.ladder_plan import RungPlan
from hf_progressive.planning.trunk_plan import TrunkPart
from hf_progressive.records.environment import environment
from hf_progressive.records.from_parent import Estimates, PenaltyRecord
from hf_progressive.records.measurements import CurvePoint, Throughput
from hf_progressive.records.rung import DataUse, RungFlops, RungParameters, RungRecord
from hf_progressive.records.stages import TrunkRecord
from hf_progressive.training.flops import FORWARD_SHARE


def rung_record(work: RungWork) -> RungRecord:
    """Return what `rung.json` holds of a rung that was trained here, before its baseline is trained."""
    rung, corpus, result, growth, parent = work.rung, work.run.corpus, work.result, work.growth, work.parent_record
    assert result is not None
    before = parent.estimates if parent else Estimates()
    check = growth.verification if growth else None
    parent_flops = parent.cold_flops if parent else None
    loss, bits_per_byte, curve, validation = result.loss, result.bits_per_byte, result.curve, result.evaluation_flops
    if work.measured:  # an average, which took no step beyond the trunk's last
        loss, bits_per_byte = work.measured["loss"], work.measured["bits_per_byte"]
        curve = [*curve, {**curve[-1], "loss": loss, "bits_per_byte": bits_per_byte}]
        validation += work.measured["tokens"] * rung.size.flops_per_token * FORWARD_SHARE
    return RungRecord(
        **_frame(work, result.tokens),
        cold_tokens=rung.size.tokens,
        learning_rate=rung.learning_rate,
        data=DataUse.from_dict(corpus.span(rung.first_block, result.tokens // corpus.context)),
        flops=RungFlops(
            per_token=rung.size.flops_per_token,
            train=result.flops,
            fisher=before.fisher.flops if before.fisher else 0.0,
            subspace=before.subspace.flops if before.subspace else 0.0,
            inherited=parent.flops.passed_on if parent else 0.0,
            evaluation=validation,
            branch=float(rung.branch_tokens * rung.size.flops_per_token),
        ),
        lineage_complete=parent is None or parent.lineage_complete,
        bits_per_byte=bits_per_byte,
        loss=loss,
        curve=tuple(map(CurvePoint.from_dict, curve)),
        training_log=tuple(result.training_log),
        computed_in=result.computed_in,
        c_parent_over_c_cold=None if parent_flops is None else parent_flops / rung.size.flops,
        cold_flops=float(rung.size.flops),
        max_abs_logit_diff=None if check is None else check.max_abs_logit_diff,
        max_abs_logit=None if check is None else check.max_abs_logit,
        growth=growth,
        phi=_penalty(work, parent.estimates) if parent else None,
        trunk=None if rung.trunk is None else _trunk_record(rung, rung.trunk),
        throughput=Throughput.from_dict(result.throughput) if result.throughput else None,
    )


def _trunk_record(rung: RungPlan, part: TrunkPart) -> TrunkRecord:
    tokens = rung.tokens - rung.branch_tokens
    return TrunkRecord(**dataclasses.asdict(part), tokens=tokens, flops=rung.flops_handed_on)


def origin_record(work: RungWork, data: DataUse) -> RungRecord:
    """Return what `rung.json` holds of a first rung that was trained elsewhere, and on what.

    All FLOPs that went into it, its ancestors' among them, count as its training, since the ladder begins with it.
    They are 0 where nothing is recorded, and `lineage_complete` says so there and on every rung grown from it.
    """
    origin, per_token = work.origin, work.rung.size.flops_per_token
    assert origin is not None
    known = origin.record
    loss, bits_per_byte = work.measured["loss"], work.measured["bits_per_byte"]
    return RungRecord(
        **_frame(work, known.tokens if known else 0),
        origin=origin.to_record(),
        cold_tokens=known.cold_tokens if known else 0,
        data=data,
        flops=RungFlops(
            per_token=per_token,
            train=origin.flops,
            fisher=0.0,
            subspace=0.0,
            evaluation=work.measured.get("tokens", 0) * per_token * FORWARD_SHARE,
        ),
        lineage_complete=origin.is_complete,
        bits_per_byte=bits_per_byte,
        loss=loss,
        curve=(CurvePoint(step=0, tokens=0, flops=origin.flops, loss=loss, bits_per_byte=bits_per_byte),),
        c_parent_over_c_cold=None,
        cold_flops=known.cold_flops if known else None,
        max_abs_logit_diff=None,
        max_abs_logit=None,
        phi=None,
    )


def _frame(work: RungWork, tokens: int) -> dict[str, Any]:
    # What every record holds, before there is a baseline.
    config, rung, counts = work.run.config, work.rung, work.rung.parameters
    return {
        "index": rung.index,
        "name": rung.name,
        "parent": rung.parent,
        "family": config.model.family,
        "config": storage.read_json(work.trained / "config.json"),
        "parameters": RungParameters(total=counts.total, non_embedding=counts.non_embedding, scaling=counts.scaling),
        "tokens": tokens,
        "tokens_per_parameter": tokens / getattr(counts, work.training.budget_parameters),
        "core": work.core,
        "estimates": work.estimates,
        "seconds": dict(work.seconds),
        **dict.fromkeys(("cold", "flops_to_match", "gap_bits_per_byte", "saving", "eta")),
        "environment": environment(work.run.state),
    }


def _penalty(work: RungWork, estimates: Estimates) -> PenaltyRecord | None:
    phi = work.phi
    if phi.is_off:
        return None
    return PenaltyRecord(
        ewc_lambda=phi.ewc_lambda,
        gamma=phi.gamma,
        schedule=phi.schedule,
        until=phi.until,
        apply=None if phi.apply == "gradient" else phi.apply,
        subspace_side=None if phi.gamma == 0 or phi.subspace.side == "outside" else phi.subspace.side,
        fisher_kind="ones" if phi.ewc_lambda > 0 and not phi.estimates_fisher else None,
        fisher=estimates.fisher if phi.estimates_fisher else None,
        subspace=estimates.subspace,
    )
