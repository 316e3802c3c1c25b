"""Grow language models: every model of a family inherits from the one before it.

The names below are the public API. They are loaded when first used, so that `import hf_progressive` and the command
line's `--help` answer without importing torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_progressive.config import LadderConfig, StudyConfig, load_ladder_config, load_study_config
    from hf_progressive.estimation import estimate_fisher, learn_subspace
    from hf_progressive.evaluation.bits_per_byte import bits_per_byte, text_bits_per_byte
    from hf_progressive.evaluation.core import evaluate_core
    from hf_progressive.growth import (
        GrowthCheck,
        GrowthPlan,
        GrowthReport,
        grow_checkpoint,
        grow_model,
        plan_growth,
        register_family,
        register_method,
        verify_growth,
    )
    from hf_progressive.ladder.rung_loop import RungResult, run_ladder
    from hf_progressive.ladder.rung_penalty import load_penalty
    from hf_progressive.penalty import InheritancePenalty, LoraPenalty, ProximalSteps
    from hf_progressive.planning.ladder_plan import LadderPlan, plan_ladder
    from hf_progressive.publishing.publish import publish_rung
    from hf_progressive.report.report import write_report
    from hf_progressive.study.run import run_study
    from hf_progressive.training.fisher_from_optimizer import fisher_from_optimizer
    from hf_progressive.training.parent_divergence import ParentDivergence, generated_blocks
    from hf_progressive.training.trainable import frozen_after_growth
    from hf_progressive.training.trainer import ProgressiveMixin, ProgressiveTrainer, ProgressiveTrainingArguments

__version__ = "0.2.0"

__all__ = [
    # growth: checkpoint to checkpoint
    "grow_checkpoint",
    "grow_model",
    "plan_growth",
    "verify_growth",
    "register_method",
    "register_family",
    "GrowthPlan",
    "GrowthReport",
    "GrowthCheck",
    # phi: the inheritance penalty
    "InheritancePenalty",
    "LoraPenalty",
    "ProximalSteps",
    "estimate_fisher",
    "fisher_from_optimizer",
    "learn_subspace",
    "load_penalty",
    # training
    "ProgressiveMixin",
    "ProgressiveTrainer",
    "ProgressiveTrainingArguments",
    "ParentDivergence",
    "generated_blocks",
    "frozen_after_growth",
    # the ladder
    "LadderConfig",
    "LadderPlan",
    "RungResult",
    "load_ladder_config",
    "plan_ladder",
    "run_ladder",
    # studies
    "StudyConfig",
    "load_study_config",
    "run_study",
    # measuring, reporting, publishing
    "bits_per_byte",
    "text_bits_per_byte",
    "evaluate_core",
    "write_report",
    "publish_rung",
]

_MODULES = {
    "config": ("LadderConfig", "StudyConfig", "load_ladder_config", "load_study_config"),
    "growth": (
        "grow_checkpoint",
        "grow_model",
        "plan_growth",
        "verify_growth",
        "register_method",
        "register_family",
        "GrowthPlan",
        "GrowthReport",
        "GrowthCheck",
    ),
    "penalty": ("InheritancePenalty", "LoraPenalty", "ProximalSteps"),
    "estimation": ("estimate_fisher", "learn_subspace"),
    "training.fisher_from_optimizer": ("fisher_from_optimizer",),
    "training.parent_divergence": ("ParentDivergence", "generated_blocks"),
    "training.trainer": ("ProgressiveMixin", "ProgressiveTrainer", "ProgressiveTrainingArguments"),
    "training.trainable": ("frozen_after_growth",),
    "evaluation.bits_per_byte": ("bits_per_byte", "text_bits_per_byte"),
    "evaluation.core": ("evaluate_core",),
    "planning.ladder_plan": ("LadderPlan", "plan_ladder"),
    "ladder": ("RungResult", "run_ladder"),
    "ladder.rung_penalty": ("load_penalty",),
    "study.run": ("run_study",),
    "report.report": ("write_report",),
    "publishing.publish": ("publish_rung",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
