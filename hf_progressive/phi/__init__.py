"""Φ, the inheritance penalty: what holds a child near its parent, and how strongly at each point of a run."""

from hf_progressive.phi.fisher import estimate_fisher, fisher_flops
from hf_progressive.phi.penalty import InheritancePenalty, PenaltyStep
from hf_progressive.phi.records import (
    FisherRecord,
    SubspaceRecord,
    load_fisher,
    load_subspace,
    save_fisher,
    save_subspace,
)
from hf_progressive.phi.schedule import PHI_SCHEDULES, schedule_factor
from hf_progressive.phi.stored import load_penalty, save_penalty
from hf_progressive.phi.subspace import learn_subspace

__all__ = [
    "PHI_SCHEDULES",
    "FisherRecord",
    "InheritancePenalty",
    "PenaltyStep",
    "SubspaceRecord",
    "estimate_fisher",
    "fisher_flops",
    "learn_subspace",
    "load_fisher",
    "load_penalty",
    "load_subspace",
    "save_fisher",
    "save_penalty",
    "save_subspace",
    "schedule_factor",
]
