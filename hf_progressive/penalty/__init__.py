"""Φ, the inheritance penalty: what holds a child near its parent, and how strongly at each point of a run."""

from hf_progressive.penalty.bound import BoundPenalty
from hf_progressive.penalty.lora import LoraPenalty
from hf_progressive.penalty.proximal import ProximalSteps
from hf_progressive.penalty.saved_penalty import load_saved_penalty, save_penalty
from hf_progressive.penalty.schedule import PHI_SCHEDULES, schedule_factor
from hf_progressive.penalty.specification import InheritancePenalty
from hf_progressive.penalty.step import PenaltyStep, ProximalStep

__all__ = [
    "PHI_SCHEDULES",
    "BoundPenalty",
    "InheritancePenalty",
    "LoraPenalty",
    "PenaltyStep",
    "ProximalStep",
    "ProximalSteps",
    "load_saved_penalty",
    "save_penalty",
    "schedule_factor",
]
