"""Φ, the inheritance penalty: what holds a child near its parent, and how strongly at each point of a run."""

from hf_progressive.phi.penalty import InheritancePenalty, PenaltyStep
from hf_progressive.phi.schedule import PHI_SCHEDULES, schedule_factor

__all__ = ["PHI_SCHEDULES", "InheritancePenalty", "PenaltyStep", "schedule_factor"]
