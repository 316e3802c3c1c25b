"""What surrounds a trainer: a search over hyperparameters, uploads to the Hub, compiled, wrapped and frozen models."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file
from trainer_fixtures import Blocks, arguments, build_model, build_penalty, logged
from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel, TrainerCallback
from transformers.trainer_utils import HPSearchBackend

from hf_progressive.penalty import InheritancePenalty
from hf_progressive.penalty.parameter_names import own_names
from hf_progressive.training.checkpoints import check_checkpoint, newest_complete_checkpoint
from hf_progressive.training.trainer import ProgressiveTrainer


def searching_trainer(folder, **changes):
    changes = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2} | changes
    return ProgressiveTrainer(
        model_init=lambda: build_model(), args=arguments(folder, **changes), train_dataset=Blocks(),
        eval_dataset=Blocks(8), penalty=build_penalty(build_model()),
    )  # fmt: skip


def weights_in(checkpoint):
    description = json.loads((checkpoint / "phi" / "penalty.json").read_text())
    return description["ewc_lambda"], description["gamma"]


def test_a_search_keeps_a_penalty_in_every_trials_checkpoints(tmp_path, monkeypatch):
    """Each trial builds its model anew, below a folder of its own, and may try other weights and another schedule."""
    trainer = searching_trainer(tmp_path)
    # What a search does, with a trial of our own.
    monkeypatch.setattr("transformers.integrations.hp_params", lambda trial: trial.params)
    trainer.hp_search_backend, trainer.hp_name = HPSearchBackend.OPTUNA, None
    trainer.hp_space = lambda trial: trial.params
    for number, (until, strength) in enumerate(((1.0, None), (0.5, None), (1.0, 0.9))):
        params = {"phi_until": until, "phi_lambda": strength, "phi_gamma": strength and 0.0}
        trainer.train(trial=SimpleNamespace(number=number, params=params))
        trainer.evaluate()
        last = newest_complete_checkpoint(tmp_path / f"run-{number}")
        tensors = "anchor-00001.safetensors"
        assert (last / "phi" / tensors).samefile(tmp_path / "_phi" / tensors)
        assert weights_in(last) == ((0.6, 0.06) if strength is None else (0.9, 0.0))
        check_checkpoint(last, trainer.penalty)  # digests and all
        assert logged(trainer, "phi/lambda")[-1] == (0.0 if until == 0.5 else strength or 0.6)
    assert weights_in(tmp_path / "run-0" / "checkpoint-2") == (0.6, 0.06)  # which shares files with the others


def test_optuna_searches_weights_and_a_trial_goes_on(tmp_path):
    optuna = pytest.importorskip("optuna", reason="optuna is not installed")
    grid = optuna.samplers.GridSampler({"phi_lambda": [0.2, 0.9], "phi_gamma": [0.03]}, seed=0)
    saves = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 4}
    trainer, steps = searching_trainer(tmp_path, **saves), []
    trainer.add_callback(KeptLambda(steps))
    best = trainer.hyperparameter_search(
        lambda trial: {
            "phi_lambda": trial.suggest_float("phi_lambda", 0.0, 1.0),
            "phi_gamma": trial.suggest_float("phi_gamma", 0.0, 1.0),
        },
        n_trials=2, backend="optuna", sampler=grid,
    )  # fmt: skip
    assert {value for value in steps} == {0.2, 0.9}
    run = tmp_path / f"run-{best.run_id}"
    assert weights_in(run / "checkpoint-2") == (best.hyperparameters["phi_lambda"], 0.03)
    again = searching_trainer(tmp_path / "again", **saves)
    for name, value in best.hyperparameters.items():
        setattr(again.args, name, value)
    again.train(resume_from_checkpoint=str(run / "checkpoint-2"))
    whole = load_file(run / "checkpoint-4" / "model.safetensors")
    assert all(torch.equal(parameter, whole[name]) for name, parameter in again.model.named_parameters())


class KeptLambda(TrainerCallback):
    def __init__(self, seen):
        self.seen = seen

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.seen += [logs["phi/lambda"]] if "phi/lambda" in logs else []


def test_weights_that_nothing_has_are_refused(tmp_path):
    def refused(message, penalty, **weights):
        with pytest.raises(ValueError, match=message):
            ProgressiveTrainer(build_model(), arguments(tmp_path, **weights), train_dataset=Blocks(), penalty=penalty)

    whole = build_penalty(build_model())
    refused("phi_lambda: there is no penalty to weigh", None, phi_lambda=0.1)
    refused("phi_gamma: a sum of penalties has a weight for each", InheritancePenalty.sum([whole] * 2), phi_gamma=0.1)
    refused("ewc_lambda is -1.0", whole, phi_lambda=-1.0)
    refused("gamma is 0.1 but there is nothing", InheritancePenalty(whole.anchor), phi_gamma=0.1)


@pytest.mark.parametrize("strategy", ["every_save", "end", "checkpoint"])
def test_no_anchor_and_fisher_in_the_root_of_a_repository(tmp_path, monkeypatch, strategy):
    uploads = {}

    class Hub:
        def create_repo(self, *args, **kwargs):
            return SimpleNamespace(repo_id="someone/held")

        def upload_folder(self, *, folder_path, path_in_repo="", ignore_patterns=None, **kwargs):
            found = [str(path.relative_to(folder_path)) for path in Path(folder_path).rglob("*") if path.is_file()]
            uploads.setdefault(path_in_repo, []).extend(filter_repo_objects(found, ignore_patterns=ignore_patterns))
            return SimpleNamespace(done=lambda: True, is_done=lambda: True)

    monkeypatch.setattr("transformers.trainer.hf_api", Hub)
    model = build_model()
    trainer = ProgressiveTrainer(
        model,
        arguments(
            tmp_path,
            max_steps=1,
            save_strategy="steps",
            save_steps=1,
            push_to_hub=True,
            hub_strategy=strategy,
            hub_model_id="someone/held",
        ),  # fmt: skip
        train_dataset=Blocks(),
        penalty=build_penalty(model),
    )
    trainer.train()
    trainer.push_to_hub()
    assert "model.safetensors" in uploads[""]
    assert not [name for name in uploads[""] if "phi" in name]
    # Whoever wants to resume from a checkpoint on the Hub asks for it, with all that resuming needs.
    assert ("phi/penalty.json" in uploads.get("last-checkpoint", [])) == (strategy == "checkpoint")


def test_names_fit_a_compiled_model_and_one_whose_layers_are(tmp_path):
    plain = build_model()
    penalty = build_penalty(plain)
    whole, by_layer = torch.compile(build_model()), build_model()
    by_layer.transformer.h[1] = torch.compile(by_layer.transformer.h[1])
    for model in (whole, by_layer):
        assert penalty.terms(model)["ewc"] == penalty.terms(plain)["ewc"] > 0
    of_the_compiled = {name: p.detach() + 0.1 for name, p in whole.named_parameters()}
    assert all(name.startswith("_orig_mod.") for name in of_the_compiled)
    fisher = {name: torch.ones_like(p) for name, p in of_the_compiled.items()}
    other = InheritancePenalty(of_the_compiled, fisher, ewc_lambda=2.0)
    entries = sum(p.numel() for p in plain.parameters())
    assert float(other.terms(plain)["ewc"]) == pytest.approx(0.1**2 * entries, rel=1e-4)
    with pytest.raises(ValueError, match=r"does not have: lm_hea.weight \(nearest"):
        InheritancePenalty({"lm_hea.weight": plain.lm_head.weight.detach()}).validate(whole)


def test_a_copy_that_peft_trains_is_meant_by_the_plain_name():
    frozen, trained = torch.nn.Parameter(torch.ones(1), requires_grad=False), torch.nn.Parameter(torch.ones(1))
    parameters = {
        "base_model.model.head.original_module.weight": frozen,
        "base_model.model.head.modules_to_save.default.weight": trained,
        "base_model.model.h.q.base_layer.weight": frozen,
        "base_model.model.h.q.lora_A.default.weight": trained,
    }
    assert own_names(parameters, ["head.weight", "h.q.weight", "h.v.weight", "h.q.lora_A.default.weight"]) == {
        "head.weight": "base_model.model.head.modules_to_save.default.weight",
        "h.q.weight": "base_model.model.h.q.base_layer.weight",
        "h.q.lora_A.default.weight": "base_model.model.h.q.lora_A.default.weight",
    }


def test_a_penalty_on_frozen_weights_is_refused_and_on_some_named(tmp_path, caplog):
    model = build_model()
    penalty = build_penalty(model, gamma=0.0)
    model.transformer.wte.weight.requires_grad_(False)
    with caplog.at_level(logging.WARNING):
        ProgressiveTrainer(model, arguments(tmp_path), train_dataset=Blocks(), penalty=penalty)
    told = "Φ has no effect on frozen parameters, 1 of the 28 it restrains: transformer.wte.weight"
    assert [record.getMessage() for record in caplog.records if "Φ" in record.getMessage()] == [told]
    only = InheritancePenalty(penalty.anchor, {"transformer.wte.weight": torch.ones(64, 16)}, ewc_lambda=1.0)
    with pytest.raises(ValueError, match=r"every parameter it restrains is frozen \(transformer\.wte\.weight\); rest"):
        ProgressiveTrainer(model, arguments(tmp_path), train_dataset=Blocks(), penalty=only)


@pytest.mark.parametrize(("kind", "parts", "told"), [
    (GPT2ForSequenceClassification, 2, True), (GPT2ForSequenceClassification, 1, False), (GPT2LMHeadModel, 2, False),
])  # fmt: skip
def test_a_loss_that_trainer_adds_up_is_named(tmp_path, caplog, kind, parts, told):
    """Its gradient under accumulation is the multiple that the warning says."""
    config = build_model().config
    config.pad_token_id, config.num_labels = 0, 3
    rows = [{"input_ids": ids, "labels": ids if kind is GPT2LMHeadModel else ids[0] % 3} for ids in Blocks(8).blocks]
    norms = []
    for accumulation in (1, parts):
        torch.manual_seed(0)
        model = kind(config)
        anchor = {name: p.detach().clone() for name, p in model.named_parameters()}
        penalty = InheritancePenalty(anchor, {n: torch.ones_like(p) for n, p in anchor.items()}, ewc_lambda=1e-9)
        split = {"gradient_accumulation_steps": accumulation, "per_device_train_batch_size": 8 // accumulation}
        settings = arguments(tmp_path, max_steps=1, **split)
        trainer = ProgressiveTrainer(model, settings, train_dataset=rows, penalty=penalty)
        caplog.clear()
        trainer.train()
        norms += logged(trainer, "grad_norm")
    assert ("adds up that of 2 micro-batches: λ and γ weigh 1/2 of what they do" in caplog.text) == told
    assert norms[1] == pytest.approx(norms[0] * (2 if told else 1), rel=1e-4)


class MeanLoss(ProgressiveTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        logits = model(input_ids=inputs["input_ids"]).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), inputs["labels"][:, 1:].flatten())


class SummedLoss(ProgressiveTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        logits = model(input_ids=inputs["input_ids"]).logits[:, :-1].flatten(0, 1)
        total = torch.nn.functional.cross_entropy(logits, inputs["labels"][:, 1:].flatten(), reduction="sum")
        return total / num_items_in_batch


class DividedLoss(MeanLoss):
    def compute_loss(self, *args, **kwargs):
        return super().compute_loss(*args) / self.args.gradient_accumulation_steps


def of_one_part(loss, trainer):
    return loss / trainer.current_gradient_accumulation_steps


class HelpedLoss(ProgressiveTrainer):
    """Divides in a function of a method, as GRPOTrainer does in a method."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return self._divided(MeanLoss.compute_loss(self, model, inputs))

    def _divided(self, loss):
        return of_one_part(loss, self)


class PassedLoss(MeanLoss):
    compute_loss = ProgressiveTrainer.compute_loss


@pytest.mark.parametrize(("kind", "parts", "told"), [
    (MeanLoss, 2, True), (MeanLoss, 1, False), (SummedLoss, 2, False), (DividedLoss, 2, False), (PassedLoss, 2, False),
    (HelpedLoss, 2, False),
])  # fmt: skip
def test_a_loss_of_ones_own_that_trainer_adds_up_is_named(tmp_path, caplog, kind, parts, told):
    norms = []
    for accumulation in (1, parts):
        model = build_model()
        split = {"gradient_accumulation_steps": accumulation, "per_device_train_batch_size": 8 // accumulation}
        settings = arguments(tmp_path, max_steps=1, **split)
        caplog.clear()
        trainer = kind(model, settings, train_dataset=Blocks(8), penalty=build_penalty(model, 1e-9, 1e-9))
        trainer.train()
        norms += logged(trainer, "grad_norm")
    said = f"{kind.__name__}.compute_loss does not divide its loss by num_items_in_batch, and Trainer adds up"
    assert (said in caplog.text) == told
    assert norms[1] == pytest.approx(norms[0] * (2 if told else 1), rel=1e-3)
