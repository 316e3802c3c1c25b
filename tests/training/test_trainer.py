"""The trainer against the stock one, and against itself killed, resumed and accumulated."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments, set_seed

from hf_progressive.distributed.stopping import StopVote
from hf_progressive.penalty import InheritancePenalty, load_saved_penalty
from hf_progressive.storage import is_complete
from hf_progressive.training.checkpoints import STAGING_NAME
from hf_progressive.training.stable_checkpoint import KeepStableCheckpoint
from hf_progressive.training.trainer import (
    NonFiniteLossError,
    ProgressiveTrainer,
    ProgressiveTrainingArguments,
    TrainingInterrupted,
    newest_complete_checkpoint,
)

VOCABULARY = 64


class Blocks(Dataset):
    """Packed blocks of a fixed random text."""

    def __init__(self, count=64, length=16):
        self.blocks = torch.randint(VOCABULARY, (count, length), generator=torch.Generator().manual_seed(5))

    def __len__(self):
        return len(self.blocks)

    def __getitem__(self, index):
        return {"input_ids": self.blocks[index], "labels": self.blocks[index]}


def build_model(dropout=0.0):
    set_seed(3)
    config = GPT2Config(
        n_layer=2, n_embd=16, n_head=2, vocab_size=VOCABULARY, n_positions=16,
        resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def build_penalty(model, ewc_lambda=0.6, gamma=0.06, seed=12):
    """Anchor a little beside the start, so that Φ pulls from the first step; λ and γ at which neither term rules."""
    generator = torch.Generator().manual_seed(11)
    anchor = {
        name: p.detach() + 0.05 * torch.randn(p.shape, generator=generator) for name, p in model.named_parameters()
    }
    generator = torch.Generator().manual_seed(seed)
    fisher = {name: torch.rand(p.shape, generator=generator) for name, p in model.named_parameters()}
    subspace = {}
    for name, p in model.named_parameters():
        if p.ndim == 2:
            subspace[name] = torch.linalg.qr(torch.randn(p.shape[1], 5, generator=generator)).Q  # Conv1D, Embedding
    return InheritancePenalty(anchor, fisher, subspace, ewc_lambda=ewc_lambda, gamma=gamma)


def arguments(folder, *, kind=ProgressiveTrainingArguments, **changes):
    settings = {
        "per_device_train_batch_size": 8, "learning_rate": 1e-2, "max_steps": 6, "logging_steps": 1, "use_cpu": True,
        "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "seed": 7,
    }  # fmt: skip
    return kind(output_dir=str(folder), **settings | changes)


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def logged(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def assert_same_weights(first, second):
    assert {n for n in first if not torch.equal(first[n], second[n])} == set()


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


RESUMABLE = {
    "max_steps": 9, "save_strategy": "steps", "save_steps": 2, "gradient_accumulation_steps": 2,
    "per_device_train_batch_size": 4, "phi_schedule": "cosine", "phi_until": 0.8,
    "lr_scheduler_type": "warmup_stable_decay", "warmup_steps": 2,
    "lr_scheduler_kwargs": {"num_decay_steps": 4, "decay_type": "linear"},
}  # fmt: skip


def resumable_trainer(folder, **changes):
    model = build_model(dropout=0.1)
    return ProgressiveTrainer(
        model, arguments(folder, **RESUMABLE | changes), train_dataset=Blocks(40), penalty=build_penalty(model)
    )


def test_resuming_gives_the_same_bits(tmp_path):
    """9 steps of 8 sequences over 40: the second epoch begins within the run."""
    whole = resumable_trainer(tmp_path / "whole")
    whole.train()
    for stop in (4, 6):
        folder = tmp_path / f"stopped-{stop}"
        folder.mkdir()
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{stop}", folder / f"checkpoint-{stop}")
        resumed = resumable_trainer(folder)
        resumed.train(resume_from_checkpoint=True)
        assert resumed.state.global_step == 9
        assert_same_weights(weights(resumed.model), weights(whole.model))
        assert logged(resumed, "loss") == logged(whole, "loss")


def test_a_checkpoint_is_complete_or_ignored(tmp_path):
    trainer = resumable_trainer(tmp_path)
    trainer.train()
    assert newest_complete_checkpoint(tmp_path).name == "checkpoint-9"
    assert json.loads((tmp_path / "checkpoint-9" / "manifest.json").read_text())["files"].keys() >= {
        "model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"
    }  # fmt: skip
    (tmp_path / "checkpoint-9" / "manifest.json").unlink()  # as if killed before the end
    with open(tmp_path / "checkpoint-8" / "optimizer.pt", "r+b") as file:
        file.truncate(100)
    (tmp_path / "checkpoint-100").mkdir()
    (tmp_path / ".saving" / "checkpoint-7").mkdir(parents=True)
    assert newest_complete_checkpoint(tmp_path).name == "checkpoint-6"
    again = resumable_trainer(tmp_path)
    again.train(resume_from_checkpoint=True)
    assert is_complete(tmp_path / "checkpoint-8")
    assert is_complete(tmp_path / "checkpoint-9")
    assert not (tmp_path / ".saving").exists()


def test_the_penalty_travels_with_the_checkpoint(tmp_path):
    """A run goes on from what its checkpoint holds, and not with another penalty."""
    whole = resumable_trainer(tmp_path)
    whole.train()
    shutil.rmtree(tmp_path / "checkpoint-9")
    shutil.rmtree(tmp_path / "checkpoint-8")
    stored = tmp_path / "checkpoint-6" / "phi"
    assert (stored / "penalty.json").samefile(tmp_path / "phi" / "penalty.json")  # once on the disk
    model = build_model(dropout=0.1)
    others = {None: None, "fisher and subspace": build_penalty(model, seed=13)}
    for kinds, penalty in others.items():
        message = f"its {kinds} differ; pass" if kinds else "was trained with a penalty; pass"
        trainer = ProgressiveTrainer(
            model, arguments(tmp_path, **RESUMABLE), train_dataset=Blocks(40), penalty=penalty
        )
        with pytest.raises(ValueError, match=rf"{message} penalty=load_penalty\('{stored}'\)"):
            trainer.train(resume_from_checkpoint=True)
    trainer = ProgressiveTrainer(
        model, arguments(tmp_path, **RESUMABLE), train_dataset=Blocks(40), penalty=load_saved_penalty(stored)
    )
    trainer.train(resume_from_checkpoint=True)
    assert_same_weights(weights(trainer.model), weights(whole.model))


def test_sigterm_saves_a_checkpoint_that_continues_to_the_same_bits(tmp_path):
    whole = resumable_trainer(tmp_path / "whole", save_strategy="no")
    whole.train()

    class Terminate(TrainerCallback):
        def on_substep_end(self, args, state, control, **kwargs):
            if state.global_step == 4:
                signal.raise_signal(signal.SIGTERM)

    handler = signal.getsignal(signal.SIGTERM)
    told = resumable_trainer(tmp_path / "told", save_steps=100)
    told.add_callback(Terminate())
    with pytest.raises(TrainingInterrupted) as caught:
        told.train()
    assert caught.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is handler
    assert newest_complete_checkpoint(tmp_path / "told").name == "checkpoint-5"  # the step under way was finished
    resumed = resumable_trainer(tmp_path / "told", save_steps=100)
    resumed.train(resume_from_checkpoint=True)
    assert_same_weights(weights(resumed.model), weights(whole.model))


def test_sigterm_while_waiting_for_the_others_at_the_end_is_not_lost(tmp_path, monkeypatch):
    """It comes after this process has said that it was not told."""

    def wait(vote, told):
        assert not told
        os.kill(os.getpid(), signal.SIGTERM)
        return False

    monkeypatch.setattr(StopVote, "at_the_end", wait)
    came = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        resumable_trainer(tmp_path, max_steps=2).train()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert came == [signal.SIGTERM]


def test_steps_of_several_micro_batches_are_voted_on_one_by_one(tmp_path):
    trainer = resumable_trainer(tmp_path)
    assert trainer.args.gradient_accumulation_steps > 1
    trainer._vote._accelerator = pair = PairOfProcesses()
    for step in range(3):
        trainer._vote.stops(step, told=False)
    assert pair.reductions == 3


def test_a_kill_while_an_old_checkpoint_is_deleted_leaves_nothing_for_good(tmp_path, monkeypatch):
    run = resumable_trainer(tmp_path, max_steps=7, save_steps=2, save_total_limit=2)
    delete = shutil.rmtree

    def killed(path, *args, **kwargs):
        weights = Path(path) / "model.safetensors"
        if "checkpoint-2" in str(path) and STAGING_NAME not in Path(path).parts and weights.exists():
            weights.unlink()
            raise KeyboardInterrupt
        delete(path, *args, **kwargs)

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    monkeypatch.undo()
    resumable_trainer(tmp_path, max_steps=7, save_steps=2, save_total_limit=2).train(resume_from_checkpoint=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-6", "checkpoint-7", "phi"]


def test_a_finished_run_that_is_resumed_trains_no_further(tmp_path):
    """6 steps end within the second epoch."""
    whole = resumable_trainer(tmp_path, max_steps=6)
    whole.train()
    again = resumable_trainer(tmp_path, max_steps=6)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 6
    assert_same_weights(weights(again.model), weights(whole.model))


def test_a_flipped_bit_is_found_on_resuming(tmp_path):
    resumable_trainer(tmp_path, max_steps=2).train()
    file = tmp_path / "checkpoint-2" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors: its SHA-256 differs"):
        resumable_trainer(tmp_path).train(resume_from_checkpoint=True)


def test_save_total_limit_spares_the_complete_ones(tmp_path):
    (tmp_path / "checkpoint-70").mkdir(parents=True)  # newer by its number, and incomplete
    resumable_trainer(tmp_path, save_total_limit=1).train()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-70", "checkpoint-9", "phi"]
    assert is_complete(tmp_path / "checkpoint-9")


def test_what_was_just_written_stays_beside_an_earlier_runs_higher_number(tmp_path):
    resumable_trainer(tmp_path, save_steps=9).train()
    resumable_trainer(tmp_path, save_total_limit=1, max_steps=2).train()
    assert newest_complete_checkpoint(tmp_path).name == "checkpoint-2"


def test_the_best_checkpoint_is_named_where_it_stands(tmp_path):
    model = build_model()
    args = arguments(
        tmp_path, save_strategy="steps", save_steps=2, eval_strategy="steps", eval_steps=2,
        load_best_model_at_end=True, metric_for_best_model="loss", save_total_limit=1,
    )  # fmt: skip
    trainer = ProgressiveTrainer(model, args, train_dataset=Blocks(8), eval_dataset=Blocks(8))
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert best == str(tmp_path / f"checkpoint-{trainer.state.best_global_step}")
    assert json.loads((tmp_path / best / "trainer_state.json").read_text())["best_model_checkpoint"] == best


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"logging_steps": 1}, "step 4"),
        ({"logging_steps": 100}, "steps 3 to 4"),  # before the checkpoint
        ({"logging_steps": 100, "save_steps": 100, "eval_strategy": "steps", "eval_steps": 5}, "steps 1 to 5"),
        ({"logging_steps": 100, "save_strategy": "no"}, "steps 1 to 6"),  # at the end
    ],
)
def test_a_loss_that_is_not_finite_ends_the_training_before_anything_is_kept(tmp_path, settings, found, bad):
    class Spoil(TrainerCallback):
        def on_step_begin(self, args, state, control, model, **kwargs):
            if state.global_step == 3:
                with torch.no_grad():
                    model.transformer.wpe.weight[0, 0] = bad

    args = arguments(tmp_path, **{"save_strategy": "steps", "save_steps": 2} | settings)
    trainer = ProgressiveTrainer(
        build_model(), args, train_dataset=Blocks(), eval_dataset=Blocks(8), callbacks=[Spoil()]
    )
    with pytest.raises(NonFiniteLossError) as caught:
        trainer.train()
    saves = args.save_strategy != "no" and args.save_steps == 2
    last_good = (
        f"the last good checkpoint is {tmp_path / 'checkpoint-2'}" if saves else "no checkpoint was written yet"
    )
    assert str(caught.value) == f"{found}: the loss is not finite; {last_good}"
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == (["checkpoint-2"] if saves else [])
    assert not any("eval_loss" in entry for entry in trainer.state.log_history)


def test_a_checkpoint_whose_validation_was_not_finite_is_not_kept(tmp_path):
    """The weights and the training loss are finite, the validation's documents overflow."""

    class Overflowing(ProgressiveTrainer):
        def prediction_step(self, *args, **kwargs):
            loss, logits, labels = super().prediction_step(*args, **kwargs)
            return (loss * float("nan") if self.state.global_step == 4 else loss), logits, labels

    args = arguments(tmp_path, save_strategy="steps", save_steps=2, eval_strategy="steps", eval_steps=2)
    trainer = Overflowing(build_model(), args, train_dataset=Blocks(), eval_dataset=Blocks(8))
    with pytest.raises(NonFiniteLossError) as caught:
        trainer.train()
    last = tmp_path / "checkpoint-2"
    assert str(caught.value) == f"step 4: the validation's eval_loss is not finite; the last good checkpoint is {last}"
    assert newest_complete_checkpoint(tmp_path) == last


@pytest.mark.parametrize("what", ["the gradient", "a weight", "Φ"])
def test_weights_that_the_last_step_spoiled_are_not_saved(tmp_path, what):
    """The loss of the step was finite: the next one would tell, after the checkpoint."""

    class Spoil(TrainerCallback):
        def on_optimizer_step(self, args, state, control, model, **kwargs):
            if state.global_step == 3 and what == "a weight":
                with torch.no_grad():
                    model.lm_head.weight[0, 0] = float("nan")

    class Spoiled(ProgressiveTrainer):
        def training_step(self, model, *args, **kwargs):
            loss = super().training_step(model, *args, **kwargs)
            if self.state.global_step == 3 and what == "the gradient":
                model.lm_head.weight.grad[0, 0] = float("inf")
            return loss

    model = build_model()
    penalty = build_penalty(model)
    if what == "Φ":
        penalty.anchor["transformer.wte.weight"][0] = 1e30
    args = arguments(tmp_path, save_strategy="steps", save_steps=4, logging_steps=100)
    trainer = Spoiled(model, args, train_dataset=Blocks(), penalty=penalty, callbacks=[Spoil()])
    with pytest.raises(NonFiniteLossError, match=f"^steps 1 to 4: {what} is not finite; no checkpoint was written"):
        trainer.train()
    assert not list(tmp_path.glob("checkpoint-*"))
    if what != "Φ":  # whose infinite gradient is clipped to zero
        with pytest.raises(NonFiniteLossError, match="a weight is not finite"):
            trainer.save_pretrained_whole(tmp_path / "final")
        assert not (tmp_path / "final").exists()


class PairOfProcesses:
    """The other process of two votes as it is told."""

    num_processes, device = 2, torch.device("cpu")

    def __init__(self):
        self.other, self.reductions = 0.0, 0

    def reduce(self, wish, reduction):
        self.reductions += 1
        return wish + self.other


def test_processes_agree_to_stop_at_the_same_step_and_reduce_every_fourth():
    """Two processes, of which only one is told in step 5, both stop in step 9, one after the vote."""
    pairs = PairOfProcesses(), PairOfProcesses()
    votes = [StopVote(pair) for pair in pairs]
    for step in range(10):
        told = step >= 5
        pairs[1].other = float(told)  # process 0 is told, process 1 learns of it
        assert [vote.stops(step, told and index == 0) for index, vote in enumerate(votes)] == [step == 9] * 2
    assert [pair.reductions for pair in pairs] == [3, 3]


def test_the_stable_checkpoint_is_the_model_where_the_decay_begins(tmp_path):
    trainer = resumable_trainer(tmp_path, save_steps=5)
    trainer.add_callback(KeepStableCheckpoint(trainer, tmp_path / "stable", 5))
    trainer.train()
    assert is_complete(tmp_path / "stable")
    assert not (tmp_path / "stable" / "training_args.bin").exists()
    stable = GPT2LMHeadModel.from_pretrained(tmp_path / "stable")
    at_step = GPT2LMHeadModel.from_pretrained(tmp_path / "checkpoint-5")
    assert_same_weights(weights(stable), weights(at_step))


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


def test_a_penalty_needs_its_arguments_and_a_resume_needs_a_checkpoint(tmp_path):
    model = build_model()
    with pytest.raises(ValueError, match="needs args of class ProgressiveTrainingArguments, got TrainingArguments"):
        ProgressiveTrainer(model, arguments(tmp_path, kind=TrainingArguments), penalty=build_penalty(model))
    with pytest.raises(ValueError, match="holds no complete checkpoint to resume from"):
        ProgressiveTrainer(model, arguments(tmp_path), train_dataset=Blocks()).train(resume_from_checkpoint=True)
