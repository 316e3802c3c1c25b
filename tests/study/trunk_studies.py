"""Studies of trunks, of very small models."""

from pathlib import Path
from typing import Any

from study_fixtures import study_config, study_mapping

from hf_progressive.config import StudyConfig

END = {"name": "l2w16", "n_layer": 2, "n_embd": 16, "n_head": 2}
THIN = {"name": "thin", "n_layer": 1, "n_embd": 16, "n_head": 2}
SAME = {**END, "name": "same"}


def trunk_mapping(corpus: Path, **changes: Any) -> dict[str, Any]:
    """Return the configuration as plain values: one rung, a trunk of one stage, one seed."""
    ladder = {**study_mapping(corpus)["ladder"], "rungs": [END]}
    ladder["training"] = {**ladder["training"], "decay_fraction": 0.4}
    mapping = study_mapping(
        corpus,
        ladder=ladder,
        cold_fractions=[0.5, 0.7, 1.0],
        child_fractions=[0.7, 1.0],
        recipes=[{"name": "one step", "trunk": [{**THIN, "until": 0.4}]}],
    )
    return {**mapping, **changes}


def trunk_study(corpus: Path, **changes: Any) -> StudyConfig:
    """Return the checked configuration."""
    mapping = trunk_mapping(corpus, **changes)
    return study_config(corpus, **mapping)
