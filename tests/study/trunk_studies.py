"""Studies of trunks, of very small models."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from study_fixtures import study_config, study_mapping

from hf_progressive.config import StudyConfig
from hf_progressive.data import prepare_corpus
from hf_progressive.distributed.processes import current_processes
from hf_progressive.study.model_tasks import model_tasks
from hf_progressive.study.models import AveragedModel, FinishedModel
from hf_progressive.study.runner import TaskFolder, run_tasks
from hf_progressive.study.tasks import Task, connected
from hf_progressive.study.work import Worker

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


def weights_of(
    root: Path, models: list[FinishedModel], config: StudyConfig, averages: Sequence[AveragedModel] = ()
) -> dict[str, dict[str, torch.Tensor]]:
    """Train models for real, and return the weights of each by its name, and those of averages."""
    corpus = prepare_corpus(config.ladder.data, config.ladder.model.context, root / "data")
    kept = [*models, *averages]
    grow_all = Task(name="all", needs=tuple(model.final for model in kept))
    folder = TaskFolder(root, connected([*model_tasks(models, lambda model: model.name, averages), grow_all]))
    worker = Worker(folder=folder, corpus=corpus, state=current_processes())
    weights: dict[str, dict[str, torch.Tensor]] = {}

    def carry_out(task: Task) -> dict[str, Any]:
        if task.name != "all":
            return worker.carry_out(task, task.title)
        weights.update({m.name: load_file(folder.path(f"{m.final}/model.safetensors")) for m in kept})
        return {}

    run_tasks(folder, carry_out)
    for model in kept:
        assert "failed" not in (folder.result(model.name) or {"failed": "missing"})
    return weights
