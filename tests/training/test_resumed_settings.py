"""What a resumed run is told when it is not held as the run was that it goes on from."""

import json

import pytest
import torch
from trainer_fixtures import RESUMABLE, Blocks, arguments, assert_same_weights, build_model, build_penalty, weights

from hf_progressive.training.parent_divergence import ParentDivergence
from hf_progressive.training.trainer import ProgressiveTrainer

REPLAYED = torch.randint(64, (6, 16), generator=torch.Generator().manual_seed(8))


def held(**changes):
    with torch.random.fork_rng():
        return ParentDivergence(**{"parent": build_model(), "blocks": REPLAYED, "weight": 0.5} | changes)


def trainer_of(folder, *, penalty=False, divergence=None, **options):
    model = build_model(dropout=0.1)
    return ProgressiveTrainer(
        model,
        arguments(folder, **RESUMABLE),
        train_dataset=Blocks(40),
        penalty=build_penalty(model) if penalty else None,
        divergence=divergence,
        **options,
    )


def test_a_divergence_that_is_gone_is_refused_unless_the_run_branches_off(tmp_path):
    whole = trainer_of(tmp_path, divergence=held())
    whole.train()
    checkpoint = tmp_path / "checkpoint-6"
    wanted = rf"{checkpoint} was trained with a ParentDivergence; pass divergence=, or branches=True"
    with pytest.raises(ValueError, match=wanted):
        trainer_of(tmp_path).train(resume_from_checkpoint=str(checkpoint))
    resumed = trainer_of(tmp_path, divergence=held())
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert_same_weights(weights(resumed.model), weights(whole.model))
    trainer_of(tmp_path / "other").train(resume_from_checkpoint=str(checkpoint), branches=True)


def test_other_blocks_and_numbers_are_told_and_the_same_ones_are_not(tmp_path, caplog):
    trainer_of(tmp_path, divergence=held()).train()
    checkpoint = str(tmp_path / "checkpoint-6")
    trainer_of(tmp_path / "same", divergence=held(blocks=REPLAYED.clone())).train(resume_from_checkpoint=checkpoint)
    assert "was trained with" not in caplog.text
    changed = held(blocks=REPLAYED.flip(0), weight=0.25, every=2, batch_size=4)
    trainer_of(tmp_path / "changed", divergence=changed).train(resume_from_checkpoint=checkpoint)
    for said in ("weight=0.5; the run goes on with 0.25", "every=1; the run goes on with 2", "batch_size=8"):
        assert f"{checkpoint} was trained with {said}" in caplog.text
    assert f"{checkpoint} was held to its parent on other blocks" in caplog.text


def test_another_schedule_is_told(tmp_path, caplog):
    trainer_of(tmp_path, penalty=True, phi_schedule="linear", phi_until=0.75).train()
    checkpoint = str(tmp_path / "checkpoint-6")
    again = trainer_of(tmp_path / "same", penalty=True, phi_schedule="linear", phi_until=0.75)
    again.train(resume_from_checkpoint=checkpoint)
    assert "was trained with" not in caplog.text
    trainer_of(tmp_path / "changed", penalty=True, divergence=held()).train(resume_from_checkpoint=checkpoint)
    assert f"{checkpoint} was trained with phi_schedule=linear; the run goes on with cosine" in caplog.text
    assert f"{checkpoint} was trained with phi_until=0.75; the run goes on with 0.8" in caplog.text
    assert f"{checkpoint} was trained without a divergence; the run goes on with one" in caplog.text


def test_a_run_that_nothing_holds_writes_no_settings(tmp_path):
    trainer_of(tmp_path).train()
    assert not list(tmp_path.rglob("phi_settings.json"))
    trainer_of(tmp_path / "held", penalty=True).train()
    (path, *_) = (tmp_path / "held").rglob("phi_settings.json")
    assert json.loads(path.read_text()) == {"phi_schedule": "cosine", "phi_until": 0.8}
