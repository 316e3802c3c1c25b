"""What surrounds a trainer: a search over hyperparameters, uploads to the Hub, compiled, wrapped and frozen models."""

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from trainer_fixtures import Blocks, arguments, build_model, build_penalty, logged
from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel
from transformers.trainer_utils import HPSearchBackend

from hf_progressive.penalty import InheritancePenalty
from hf_progressive.penalty.parameter_names import own_names
from hf_progressive.training.checkpoints import newest_complete_checkpoint
from hf_progressive.training.trainer import ProgressiveTrainer


def test_a_search_keeps_a_penalty_in_every_trials_checkpoints(tmp_path, monkeypatch):
    """Each trial builds its model anew, below a folder of its own, and may try another schedule."""
    trainer = ProgressiveTrainer(
        model_init=lambda: build_model(), args=arguments(tmp_path, max_steps=2, save_strategy="steps", save_steps=2),
        train_dataset=Blocks(), eval_dataset=Blocks(8), penalty=build_penalty(build_model()),
    )  # fmt: skip
    # What a search does, with a trial of our own: no backend is installed.
    monkeypatch.setattr("transformers.integrations.hp_params", lambda trial: trial.params)
    trainer.hp_search_backend, trainer.hp_name = HPSearchBackend.OPTUNA, None
    trainer.hp_space = lambda trial: trial.params
    for number, until in enumerate((1.0, 0.5)):
        trainer.train(trial=SimpleNamespace(number=number, params={"phi_until": until}))
        trainer.evaluate()
        last = newest_complete_checkpoint(tmp_path / f"run-{number}")
        assert (last / "phi" / "penalty.json").samefile(tmp_path / "_phi" / "penalty.json")
        assert logged(trainer, "phi/lambda")[-1] == (0.6 if until == 1.0 else 0.0)


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
    told = "Φ has no effect on 1 of the parameters it restrains: transformer.wte.weight are frozen"
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
