"""A run that branches off a longer one ends with the weights that it would have had by itself."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from study_fixtures import study_config

from hf_progressive.data import prepare_corpus
from hf_progressive.distributed.processes import current_processes
from hf_progressive.study import work
from hf_progressive.study.model_tasks import model_tasks
from hf_progressive.study.models import FinishedModel
from hf_progressive.study.plan import plan_study
from hf_progressive.study.runner import TaskFolder, run_tasks
from hf_progressive.study.tasks import Task, connected
from hf_progressive.study.work import Worker
from hf_progressive.training.trainer import ProgressiveTrainer
from hf_progressive.training.training_run import TrainingResult, TrainingRun, train_run

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
    validations: list[int] = []

    def validate(trainer: ProgressiveTrainer, *args: Any, **kwargs: Any) -> dict[str, float]:
        validations.append(trainer.state.global_step)
        return evaluate(trainer, *args, **kwargs)

    def train(run: TrainingRun, *args: Any) -> tuple[TrainingResult, ProgressiveTrainer]:
        validations.clear()
        result, trainer = train_run(run, *args)
        assert result.evaluation_tokens == len(validations) * len(corpus.validation) * corpus.context
        return result, trainer

    evaluate = ProgressiveTrainer.evaluate
    monkeypatch.setattr(ProgressiveTrainer, "evaluate", validate)
    monkeypatch.setattr(work, "train_run", train)
    config = study_config(corpus_file, recipes=[{"name": "recipe", "set": options}])
    corpus = prepare_corpus(config.ladder.data, config.ladder.model.context, tmp_path / "data")
    plan = plan_study(config, corpus.fingerprint)
    models = plan.children["recipe", "l2w16", 0]
    assert len(models) == 3

    def trained(root: Path, asked: list[FinishedModel]) -> dict[str, tuple[dict[str, Any], dict[str, torch.Tensor]]]:
        # Every model keeps its final weights, as if something were grown from it.
        grow_all = Task(name="all", needs=tuple(model.final for model in asked))
        folder = TaskFolder(root, connected([*model_tasks(asked, lambda model: model.name), grow_all]))
        worker = Worker(folder=folder, corpus=corpus, state=current_processes())

        def carry_out(task: Task) -> dict[str, Any]:
            if task.name == "all":
                weights.update(
                    {model.name: load_file(folder.path(f"{model.final}/model.safetensors")) for model in asked}
                )
                return {}
            return worker.carry_out(task, task.title)

        weights: dict[str, dict[str, torch.Tensor]] = {}
        run_tasks(folder, carry_out)
        return {model.name: (folder.result(model.name) or {}, weights[model.name]) for model in asked}

    together = trained(tmp_path / "together", models)
    for model in models[:-1]:
        result, weights = together[model.name]
        assert result["branched_at"] == model.decay_begins > 0
        plain, expected = trained(tmp_path / model.name, [model])[model.name]
        assert plain["branched_at"] == 0
        assert plain["bits_per_byte"] == result["bits_per_byte"]
        assert plain["flops"]["train"] == result["flops"]["train"]
        assert all(torch.equal(weights[name], expected[name]) for name in expected)
