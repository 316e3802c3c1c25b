"""A study of very small rungs on made-up arithmetic."""

from pathlib import Path
from typing import Any

from ladder_fixtures import RUNGS, ladder_mapping

from hf_progressive.config import StudyConfig, strict_yaml


def study_mapping(corpus: Path, **changes: Any) -> dict[str, Any]:
    """Return the configuration as plain values: two rungs, one seed, a few dozen steps."""
    ladder = ladder_mapping(corpus, cold="none", rungs=RUNGS[:2])
    ladder["phi"] = {**ladder["phi"], "ewc_lambda": 0.0, "gamma": 0.0}
    ladder["training"] = {
        **ladder["training"],
        "tokens_per_parameter": 0.5,
        "evaluations": 1,
        "checkpoints": 1,
        "warmup_fraction": 0.1,
    }
    mapping: dict[str, Any] = {
        "name": "sums",
        "ladder": ladder,
        "seeds": [0],
        "cold_fractions": [0.5, 1.0],
        "child_fractions": [0.25, 0.5, 0.8],
        "recipes": [{"name": "exact"}],
    }
    return {**mapping, **changes}


def study_config(corpus: Path, **changes: Any) -> StudyConfig:
    """Return the checked configuration."""
    return strict_yaml.build(StudyConfig, study_mapping(corpus, **changes))
