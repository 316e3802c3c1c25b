"""The trainer against the stock one, and against itself accumulated; what it refuses."""

import re

import pytest
import torch
from trainer_fixtures import Blocks, arguments, assert_same_weights, build_model, build_penalty, logged, weights
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_progressive.penalty import InheritancePenalty
from hf_progressive.storage import write_manifest
from hf_progressive.training.trainer import ProgressiveTrainer, ProgressiveTrainingArguments


def test_without_a_penalty_it_is_the_stock_trainer_to_the_bit(tmp_path):
    stock = Trainer(build_model(0.1), arguments(tmp_path, kind=TrainingArguments), train_dataset=Blocks())
    stock.train()
    ours = ProgressiveTrainer(build_model(0.1), arguments(tmp_path), train_dataset=Blocks())
    ours.train()
    assert logged(ours, "loss") == logged(stock, "loss")
    assert logged(ours, "grad_norm") == logged(stock, "grad_norm")
    assert_same_weights(weights(ours.model), weights(stock.model))


def test_the_step_is_that_of_a_loss_with_the_penalty_in_it(tmp_path):
    """The oracle adds Φ to the loss through plain autograd, as anyone would write it."""
    model = build_model()
    penalty = build_penalty(model)

    class NaiveTrainer(Trainer):
        def compute_loss(self, model, inputs, **kwargs):
            loss = super().compute_loss(model, inputs, **kwargs)
            value = 0.0
            for name, p in model.named_parameters():
                delta = p - penalty.anchor[name]
                value = value + 0.5 * penalty.ewc_lambda * (penalty.fisher[name] * delta**2).sum()
                if name in penalty.subspace:
                    basis = penalty.subspace[name]
                    value = value + penalty.gamma * (delta - delta @ basis @ basis.T).square().sum()
            return loss + value

    naive = NaiveTrainer(build_model(), arguments(tmp_path, kind=TrainingArguments), train_dataset=Blocks())
    naive.train()
    ours = ProgressiveTrainer(model, arguments(tmp_path), train_dataset=Blocks(), penalty=penalty)
    ours.train()
    assert logged(ours, "loss") == pytest.approx(logged(naive, "loss"), rel=1e-5)
    assert logged(ours, "grad_norm") == pytest.approx(logged(naive, "grad_norm"), rel=1e-5)
    torch.testing.assert_close(weights(ours.model), weights(naive.model), rtol=1e-4, atol=1e-5)


def test_the_proximal_step_follows_the_optimizer_s_at_its_rate(tmp_path):
    """The oracle is a stock Trainer whose callback moves each weight by the formula, before the rate changes."""
    model = build_model()
    penalty = build_penalty(model, ewc_lambda=20.0, gamma=5.0, apply="proximal")
    mean = torch.cat([omega.flatten() for omega in penalty.fisher.values()]).mean()

    class Naive(TrainerCallback):
        @torch.no_grad()
        def on_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
            factor = 1 - state.global_step / state.max_steps
            rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
            for name, p in model.named_parameters():
                rate = rates[id(p)] * factor
                delta = (p - penalty.anchor[name]) / (1 + rate * penalty.ewc_lambda * penalty.fisher[name] / mean)
                if name in penalty.subspace:
                    inside = delta @ penalty.subspace[name] @ penalty.subspace[name].T
                    delta = inside + (delta - inside) / (1 + 2 * rate * penalty.gamma)
                p.copy_(penalty.anchor[name] + delta)

    same = {"weight_decay": 0.1, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
    naive = Trainer(
        build_model(), arguments(tmp_path, kind=TrainingArguments, **same), train_dataset=Blocks(), callbacks=[Naive()]
    )
    naive.train()
    ours = ProgressiveTrainer(
        model, arguments(tmp_path, phi_schedule="linear", **same), train_dataset=Blocks(), penalty=penalty
    )
    ours.train()
    assert logged(ours, "loss") == pytest.approx(logged(naive, "loss"), rel=1e-5)
    assert logged(ours, "phi/moved_ratio")[0] > 0.1
    torch.testing.assert_close(weights(ours.model), weights(naive.model), rtol=1e-4, atol=1e-5)


def test_accumulation_does_not_change_the_trajectory(tmp_path):
    runs = []
    for batch, accumulation in ((8, 1), (2, 4)):
        model = build_model()
        args = arguments(tmp_path, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation)
        runs.append(ProgressiveTrainer(model, args, train_dataset=Blocks(), penalty=build_penalty(model)))
        runs[-1].train()
    for key in ("loss", "grad_norm", "phi/ewc", "phi/subspace", "phi/grad_ratio"):
        assert logged(runs[1], key) == pytest.approx(logged(runs[0], key), rel=1e-4), key
    torch.testing.assert_close(weights(runs[1].model), weights(runs[0].model), rtol=1e-4, atol=1e-5)


def test_logs_average_the_terms_since_the_last_log_and_evaluation_has_none(tmp_path):
    every = {}
    for steps in (1, 3):
        model = build_model()
        trainer = ProgressiveTrainer(
            model,
            arguments(tmp_path, logging_steps=steps, phi_schedule="linear", phi_until=0.5, eval_strategy="steps"),
            train_dataset=Blocks(),
            eval_dataset=Blocks(8),
            penalty=build_penalty(model),
        )
        trainer.train()
        every[steps] = trainer
    assert logged(every[1], "phi/lambda") == pytest.approx([0.6, 0.4, 0.2, 0.0, 0.0, 0.0])
    assert logged(every[1], "phi/gamma") == pytest.approx([0.06, 0.04, 0.02, 0.0, 0.0, 0.0])
    for key in ("phi/ewc", "phi/subspace", "phi/grad_ratio", "loss"):
        singles = logged(every[1], key)
        thirds = [sum(singles[:3]) / 3, sum(singles[3:]) / 3]
        assert logged(every[3], key) == pytest.approx(thirds, rel=1e-5, abs=1e-6), key
    evaluations = [entry for entry in every[1].state.log_history if "eval_loss" in entry]
    assert not any(key.startswith("phi/") for entry in evaluations for key in entry)
    trained = every[1]
    plain = Trainer(trained.model, arguments(tmp_path, kind=TrainingArguments), eval_dataset=Blocks(8))
    assert trained.evaluate()["eval_loss"] == plain.evaluate()["eval_loss"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"phi_schedule": "exponential"}, "phi_schedule is 'exponential'; it must be one of constant, linear, cosine"),
        ({"phi_until": 0.0}, r"phi_until is 0.0; it must be a fraction of the run above 0"),
        ({"hub_token": "secret"}, "set the HF_TOKEN environment variable instead"),
    ],
)
def test_bad_arguments_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        arguments(tmp_path, **changes)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("kind", [TrainingArguments, ProgressiveTrainingArguments])
def test_the_schedule_may_stand_beside_any_arguments(tmp_path, kind):
    """What the constructor is told goes before what the arguments say."""
    model = build_model()
    trainer = ProgressiveTrainer(
        model, arguments(tmp_path, kind=kind), train_dataset=Blocks(), penalty=build_penalty(model),
        phi_schedule="linear", phi_until=0.5,
    )  # fmt: skip
    trainer.train()
    assert logged(trainer, "phi/lambda") == pytest.approx([0.6, 0.4, 0.2, 0.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="phi_schedule is 'quadratic'"):
        ProgressiveTrainer(model, arguments(tmp_path, kind=kind), phi_schedule="quadratic")
    plain = ProgressiveTrainer(model, arguments(tmp_path, kind=kind))
    assert (plain.phi_schedule, plain.phi_until) == ("constant", 1.0)


def test_an_estimate_alone_is_no_penalty(tmp_path):
    fisher = dict(build_model().named_parameters())
    with pytest.raises(ValueError, match="penalty is a dict; pass an InheritancePenalty or a LoraPenalty"):
        ProgressiveTrainer(build_model(), arguments(tmp_path), penalty=fisher)


def ones_like(model):
    return {name: torch.ones_like(p) for name, p in model.named_parameters()}


def of_a_subspace(anchor):
    basis = {"transformer.wte.weight": torch.eye(16)[:, :2]}
    return InheritancePenalty(anchor, subspace=basis, gamma=0.1)


IDLE_PENALTIES = {
    "unweighted": (lambda w0: InheritancePenalty(w0, w0), "Φ's fisher .* ewc_lambda is 0; give .* ewc_lambda=..."),
    "anchor alone": (
        InheritancePenalty,
        r"Φ .* an anchor alone; use InheritancePenalty.l2_sp\(anchor, ewc_lambda=...\)",
    ),
    "weighted": (lambda w0: InheritancePenalty(w0, w0, ewc_lambda=1.0), None),
    "L2-SP": (lambda w0: InheritancePenalty.l2_sp(w0, ewc_lambda=1.0), None),
    "sum of subspaces": (lambda w0: InheritancePenalty.sum([of_a_subspace(w0)] * 2), None),
}


@pytest.mark.parametrize(("build", "warning"), IDLE_PENALTIES.values(), ids=IDLE_PENALTIES)
def test_a_penalty_that_restrains_nothing_is_warned_of(tmp_path, caplog, build, warning):
    model = build_model()
    settings = arguments(tmp_path, max_steps=1)
    ProgressiveTrainer(model, settings, train_dataset=Blocks(), penalty=build(ones_like(model))).train()
    warned = [message for message in caplog.messages if "has no effect" in message]
    assert len(warned) == (warning is not None)
    assert warning is None or re.search(warning, warned[0])


def test_a_resume_needs_a_checkpoint(tmp_path, caplog):
    with pytest.raises(ValueError, match=r"checkpoint-9: no such folder; give a checkpoint's, or True for the newest"):
        ProgressiveTrainer(build_model(), arguments(tmp_path), train_dataset=Blocks()).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-9")
        )
    assert "manifest" not in caplog.text
    with pytest.raises(ValueError, match="holds no complete checkpoint to resume from; train without resuming"):
        ProgressiveTrainer(build_model(), arguments(tmp_path), train_dataset=Blocks()).train(
            resume_from_checkpoint=True
        )


def test_a_resume_from_damaged_checkpoints_alone_says_what_is_wrong_with_each(tmp_path):
    for step in (1, 2, 3):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "model.safetensors").write_bytes(bytes(8))
    write_manifest(tmp_path / "checkpoint-2")
    write_manifest(tmp_path / "checkpoint-3")
    (tmp_path / "checkpoint-2" / "model.safetensors").write_bytes(bytes(5))
    (tmp_path / "checkpoint-3" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="holds no complete") as caught:
        ProgressiveTrainer(build_model(), arguments(tmp_path), train_dataset=Blocks()).train(
            resume_from_checkpoint=True
        )
    (told,) = str(caught.value).splitlines()
    places = [told.index(f"checkpoint-{step}: ") for step in (3, 2, 1)]
    assert places == sorted(places)
    lost, cut, unlisted = (told[start:end] for start, end in zip(places, [*places[1:], None], strict=True))
    assert "model.safetensors is missing" in lost
    assert "model.safetensors: 5 bytes, the manifest says 8" in cut
    assert "no manifest" in unlisted
