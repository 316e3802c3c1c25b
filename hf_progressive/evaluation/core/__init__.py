"""CORE, the DCLM paper's aggregate of in-context learning tasks."""

from hf_progressive.evaluation.core.evaluate import evaluate_core

__all__ = ["evaluate_core"]
