"""Training a part of a grown model: what is frozen keeps its bits, what is not is trained as it would be."""

import shutil

import pytest
import torch
from trainer_fixtures import VOCABULARY, Blocks, arguments, build_model, weights
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from hf_progressive import frozen_after_growth, grow_checkpoint
from hf_progressive.growth import new_entry_masks
from hf_progressive.training.trainable import TrainNewEntries, restrict_run
from hf_progressive.training.trainer import ProgressiveTrainer


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grown")
    build_model().save_pretrained(folder / "parent")
    target = {"n_layer": 3, "n_embd": 24, "n_head": 3, "vocab_size": VOCABULARY + 4}
    grow_checkpoint(folder / "parent", folder / "child", target, verify=False)
    return folder / "child"


def trained(grown, folder, trainable, *, muon=False, stock=True, **changes):
    model = AutoModelForCausalLM.from_pretrained(grown)
    callbacks = frozen_after_growth(model, grown / "growth.json", trainable=trainable)
    settings = {"weight_decay": 0.5, "max_steps": 3, "max_grad_norm": 0.1} | changes
    if muon:
        settings |= {"muon_learning_rate": 1e-2}
    kind = {"kind": TrainingArguments} if stock else {}
    trainer = (Trainer if stock else ProgressiveTrainer)(
        model=model, args=arguments(folder, **kind, **settings), train_dataset=Blocks(), callbacks=callbacks
    )
    before = weights(model)
    trainer.train()
    return before, weights(model), trainer


@pytest.mark.parametrize("trainable", ["new_layers", "new_entries", ["transformer.h.1.mlp.*", "transformer.ln_f.*"]])
@pytest.mark.parametrize("optimizer", ["stock", "adamw", "muon"])
def test_what_is_frozen_keeps_its_bits_and_the_rest_is_trained(grown, tmp_path, trainable, optimizer):
    before, after, trainer = trained(
        grown, tmp_path, trainable, muon=optimizer == "muon", stock=optimizer == "stock", gradient_accumulation_steps=2
    )
    masks = new_entry_masks(grown)
    for name, old in before.items():
        if trainable == "new_entries":
            free = masks[name]
        else:
            named = ("transformer.h.1.mlp.", "transformer.ln_f.")
            parts = ("transformer.h.2.",) if trainable == "new_layers" else named
            free = torch.full_like(masks[name], name.startswith(parts))
        assert torch.equal(after[name][~free], old[~free]), name
        assert (after[name] != old)[free].float().mean() > 0.5 or not free.any(), name
    optimized = sum(p.numel() for group in trainer.optimizer.param_groups for p in group["params"])
    whole = sum(value.numel() for value in before.values())
    assert optimized < whole or trainable == "new_entries"


def test_new_entries_learn_as_if_the_old_ones_were_constants(grown, tmp_path):
    # One step by hand: gradients, the clipping of their norm and the step of the new entries alone.
    before, after, _ = trained(
        grown, tmp_path, "new_entries", max_steps=1, lr_scheduler_type="constant", optim="sgd", learning_rate=1.0
    )
    masks = new_entry_masks(grown)
    model = AutoModelForCausalLM.from_pretrained(grown).double()
    rows = torch.stack([Blocks()[int(i)]["input_ids"] for i in order(tmp_path)])
    model(input_ids=rows, labels=rows).loss.backward()
    gradients = {name: p.grad * masks[name] for name, p in model.named_parameters()}
    norm = torch.stack([g.square().sum() for g in gradients.values()]).sum().sqrt()
    for name, gradient in gradients.items():
        clipped = gradient * min(1.0, 0.1 / (norm.item() + 1e-6))
        decay = 0.5 if gradient.ndim > 1 else 0.0
        expected = before[name].double() * (1 - decay) - clipped
        expected = torch.where(masks[name], expected, before[name].double())
        assert torch.allclose(after[name].double(), expected, atol=1e-6), name


def order(folder):
    # The first batch of a run with these arguments.
    seen = []

    class Noting(Blocks):
        def __getitem__(self, index):
            seen.append(index)
            return super().__getitem__(index)

    model = build_model()
    Trainer(model=model, args=arguments(folder, kind=TrainingArguments, max_steps=1), train_dataset=Noting()).train()
    return seen[:8]


def test_hooks_are_gone_after_training(grown, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(grown)
    (callback,) = frozen_after_growth(model, grown, trainable="new_entries")
    assert isinstance(callback, TrainNewEntries)
    Trainer(model=model, args=arguments(tmp_path, kind=TrainingArguments, max_steps=1), train_dataset=Blocks(),
            callbacks=[callback]).train()  # fmt: skip
    model.zero_grad()
    model(input_ids=Blocks().blocks[:2], labels=Blocks().blocks[:2]).loss.backward()
    assert (model.transformer.h[0].mlp.c_fc.weight.grad[:16, :64] != 0).all()


def test_what_cannot_be_is_refused(grown, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(grown)
    with pytest.raises(
        ValueError, match=r"^trainable: 'h.9' matches no parameter; their names are like transformer.wte.weight"
    ):
        frozen_after_growth(model, grown, trainable=["h.9"])
    with pytest.raises(ValueError, match="^trainable: the list is empty, which freezes the whole model; name"):
        frozen_after_growth(model, grown, trainable=[])
    assert all(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(ValueError, match="^trainable: 'new_layer' is not known; take all, new_layers or new_entries"):
        frozen_after_growth(model, grown, trainable="new_layer")
    with pytest.raises(ValueError, match=r"growth.json: is of a model with width 24, not 16"):
        frozen_after_growth(build_model(), grown)
    shutil.copytree(grown.parent / "parent", tmp_path / "parent")
    grow_checkpoint(tmp_path / "parent", tmp_path / "wide", {"n_embd": 24, "n_head": 3}, verify=False)
    with pytest.raises(
        ValueError, match=r'^trainable: new_layers, but no layer is new .*; take trainable="new_entries"$'
    ):
        frozen_after_growth(AutoModelForCausalLM.from_pretrained(tmp_path / "wide"), tmp_path / "wide")
    with pytest.raises(
        FileNotFoundError, match=r"parent/growth\.json: no such file; growth writes one beside the weights"
    ):
        frozen_after_growth(model, tmp_path / "parent")


def test_first_rungs_and_baselines_train_all(grown):
    model = build_model()
    assert restrict_run(model, grown.parent / "parent", "new_layers") == []
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("trainable", ["new_layers", "new_entries"])
def test_a_compiled_model_is_frozen_as_it_is_without(grown, trainable):
    plain, compiled = (AutoModelForCausalLM.from_pretrained(grown) for _ in range(2))
    wrapped = torch.compile(compiled)  # which compiles nothing before the first step
    for model in (plain, wrapped):
        frozen_after_growth(model, grown / "growth.json", trainable=trainable)
    assert {n for n, p in plain.named_parameters() if p.requires_grad} == {
        n.removeprefix("_orig_mod.") for n, p in wrapped.named_parameters() if p.requires_grad
    }
