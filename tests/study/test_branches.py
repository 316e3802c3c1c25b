"""A run that branches off a longer one ends with the weights that it would have had by itself."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from study_fixtures import study_config

from hf_progressive import storage
from hf_progressive.data import prepare_corpus
from hf_progressive.distributed.processes import current_processes
from hf_progressive.study import folder as folders
from hf_progressive.study.folder import StudyFolder
from hf_progressive.study.plan import plan_study
from hf_progressive.study.tasks import Run
from hf_progressive.study.work import Worker

OPTIONS: dict[str, dict[str, Any]] = {
    "warm-up, constant, decay": {},
    "no constant phase": {"training.decay_fraction": 0.9},
    "Φ that ends between the lengths": {"phi.ewc_lambda": 0.1, "phi.gamma": 1e-3, "phi.until": 0.6},
    "a rate that does not fall to zero": {"training.final_lr_ratio": 0.1, "training.inherited_learning_rate": 1e-3},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_branch_equals_a_run_by_itself(
    options: dict[str, Any], corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = study_config(corpus_file, recipes=[{"name": "recipe", "set": options}])
    corpus = prepare_corpus(config.ladder.data, config.ladder.model.context, tmp_path / "data")
    plan = plan_study(config, corpus.fingerprint)
    group = plan.children["recipe", "l2w16", 0][0].group
    # Every run keeps its final weights, as if something were grown from it.
    monkeypatch.setattr(folders.StudyFolder, "heirs", lambda self, run: [group.start])

    def trained(run: Run, root: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        result = worker.train_run(run, run.name)
        return result, load_file(root / "weights" / run.name / "final" / "model.safetensors")

    shared = tmp_path / "shared"
    worker = Worker(folder=StudyFolder(shared, plan), corpus=corpus, state=current_processes())
    cold = group.start.parent
    assert cold is not None
    for start in (cold.start, group.start):
        if start is group.start:
            trained(cold, shared)
        storage.write_json(worker.folder.result_path(start), worker.make_start(start))
    trained(group.trunk, shared)
    assert len(group.runs) == 3
    for run in group.runs:
        if run.is_trunk:
            continue
        branched, weights = trained(run, shared)
        assert branched["branched_at"] == run.branch_step > 0

        alone = dataclasses.replace(group, runs=[])
        only = dataclasses.replace(run, group=alone)
        alone.runs.append(only)
        root = tmp_path / run.name
        (root / "weights").mkdir(parents=True)
        for part in ("weights", "results"):
            (root / part).mkdir(exist_ok=True)
        (root / "weights" / group.start.name).symlink_to(shared / "weights" / group.start.name)
        (root / "results" / f"{group.start.name}.json").symlink_to(shared / "results" / f"{group.start.name}.json")
        worker = Worker(folder=StudyFolder(root, plan), corpus=corpus, state=current_processes())
        plain, expected = trained(only, root)
        worker = Worker(folder=StudyFolder(shared, plan), corpus=corpus, state=current_processes())

        assert plain["branched_at"] == 0
        assert plain["bits_per_byte"] == branched["bits_per_byte"]
        assert plain["flops"]["train"] == branched["flops"]["train"]
        assert all(torch.equal(weights[name], expected[name]) for name in expected)
