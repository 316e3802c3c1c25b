"""A run's checkpoints: resumed to the same bits, complete or ignored, and as many as wanted."""

import contextlib
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from trainer_fixtures import (
    RESUMABLE,
    Blocks,
    arguments,
    assert_same_weights,
    build_model,
    build_penalty,
    logged,
    resumable_trainer,
    weights,
)
from transformers import GPT2LMHeadModel

from hf_progressive.ladder.rung_penalty import load_penalty
from hf_progressive.penalty import InheritancePenalty, load_saved_penalty, save_penalty
from hf_progressive.penalty.lazy_tensors import LazyTensors
from hf_progressive.storage import is_complete, read_json
from hf_progressive.storage.temporary_names import temporary_sibling
from hf_progressive.training import trainer as trainer_module
from hf_progressive.training.callbacks import KeepWeights
from hf_progressive.training.checkpoints import (
    STAGING_NAME,
    newest_complete_checkpoint,
    require_own_engine,
    write_fresh,
)
from hf_progressive.training.trainer import ProgressiveTrainer


@pytest.mark.parametrize(("apply", "stops"), [("gradient", (4, 6)), ("proximal", (4,))])
def test_resuming_gives_the_same_bits(tmp_path, apply, stops):
    """9 steps of 8 sequences over 40: the second epoch begins within the run, and a log's steps span a checkpoint."""
    whole = resumable_trainer(tmp_path / "whole", apply=apply, logging_steps=3)
    mean = whole.train().training_loss
    for stop in stops:
        folder = tmp_path / f"stopped-{stop}"
        folder.mkdir()
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{stop}", folder / f"checkpoint-{stop}")
        resumed = resumable_trainer(folder, apply=apply, logging_steps=3)
        rest = resumed.train(resume_from_checkpoint=True).training_loss
        assert resumed.state.global_step == 9
        assert_same_weights(weights(resumed.model), weights(whole.model))
        for figure in ("loss", "phi/ewc", "phi/subspace", "phi/lambda"):
            assert logged(resumed, figure) == logged(whole, figure)
        before = json.loads((folder / f"checkpoint-{stop}" / "trainer_state.json").read_text())
        (done,) = before["stateful_callbacks"]["LogWindow"]["losses"]
        done += sum(3 * entry["loss"] for entry in before["log_history"])
        # The sum over its own steps, by their number (Transformers 5.23) or by that of all steps (5.17).
        own = 9 * mean - done
        assert rest == pytest.approx(own / (9 - stop)) or rest == pytest.approx(own / 9)


def test_a_model_with_fewer_rows_than_its_tokenizer_has_entries_is_refused(tmp_path):
    tokenizer = SimpleNamespace(get_vocab=lambda: {"a": 0, "b": 999})
    with pytest.raises(ValueError, match="vocab_size: 64 is below the 1000 entries of the tokenizer; raise it"):
        write_fresh(build_model().config, tokenizer, tmp_path / "init", seed=0)


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
    unfinished = temporary_sibling(tmp_path / "checkpoint-9" / "phi")
    unfinished.mkdir()
    others = tmp_path / "mine" / ".saving"  # of somebody who keeps more in this folder
    others.mkdir(parents=True)
    assert newest_complete_checkpoint(tmp_path).name == "checkpoint-6"
    again = resumable_trainer(tmp_path)
    again.train(resume_from_checkpoint=True)
    assert is_complete(tmp_path / "checkpoint-8")
    assert is_complete(tmp_path / "checkpoint-9")
    assert not (tmp_path / ".saving").exists()
    assert not unfinished.exists()
    assert others.is_dir()


def test_the_penalty_travels_with_the_checkpoint(tmp_path):
    """A run goes on from what its checkpoint holds, and not with another penalty."""
    whole = resumable_trainer(tmp_path)
    whole.train()
    shutil.rmtree(tmp_path / "checkpoint-9")
    shutil.rmtree(tmp_path / "checkpoint-8")
    stored = tmp_path / "checkpoint-6" / "phi"
    assert (stored / "penalty.json").samefile(tmp_path / "_phi" / "penalty.json")  # once on the disk
    model = build_model(dropout=0.1)
    others = {
        None: None,
        "fisher and subspace": build_penalty(model, seed=13),
        "apply and subspace_side": build_penalty(model, apply="proximal", subspace_side="inside"),
    }
    for kinds, penalty in others.items():
        message = f"the two differ in {kinds}; pass" if kinds else "was trained with a penalty; pass"
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


def test_the_others_wait_outside_of_a_collective_while_a_penalty_is_kept(tmp_path, monkeypatch):
    # The whole of W₀, Ω and U is read and written then; the collective in which all bind comes after it.
    events = []

    @contextlib.contextmanager
    def first(state):
        events.append("first")
        yield
        events.append("all")

    def noted(name, do):
        return lambda *args: events.append(name) or do(*args)

    monkeypatch.setattr(trainer_module, "main_process_first", first)
    monkeypatch.setattr(trainer_module, "keep_penalty", noted("keep", trainer_module.keep_penalty))
    monkeypatch.setattr(InheritancePenalty, "bind", noted("bind", InheritancePenalty.bind))
    resumable_trainer(tmp_path).train()
    assert events == ["first", "keep", "all", "bind"]


def test_training_again_lets_the_earlier_shards_go_before_it_binds(tmp_path, monkeypatch):
    model, held = build_model(), []
    trainer = ProgressiveTrainer(model, arguments(tmp_path), train_dataset=Blocks(), penalty=build_penalty(model))
    bind = InheritancePenalty.bind
    monkeypatch.setattr(InheritancePenalty, "bind", lambda *args: held.append(trainer.bound_penalty) or bind(*args))
    for _ in range(2):
        trainer.train()
        assert trainer.bound_penalty is not None
    assert held == [None, None]


def test_saving_a_penalty_makes_each_of_its_tensors_once(tmp_path):
    penalty, made = build_penalty(build_model()), []
    lazy = {
        kind: LazyTensors(each, lambda name, each=each: made.append(name) or each[name])
        for kind, each in penalty.tensors.items()
    }
    save_penalty(InheritancePenalty(**lazy, ewc_lambda=0.6), tmp_path / "phi")
    assert sorted(made) == sorted(name for each in penalty.tensors.values() for name in each)
    assert read_json(tmp_path / "phi/penalty.json")["fingerprint"] == penalty.fingerprint()


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
    assert sorted(path.name for path in tmp_path.iterdir()) == ["_phi", "checkpoint-6", "checkpoint-7"]


def test_a_finished_run_that_is_resumed_trains_no_further(tmp_path):
    """6 steps end within the second epoch."""
    whole = resumable_trainer(tmp_path, max_steps=6)
    whole.train()
    again = resumable_trainer(tmp_path, max_steps=6)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 6
    assert_same_weights(weights(again.model), weights(whole.model))


def test_a_flipped_bit_in_the_kept_penalty_goes_into_no_checkpoint(tmp_path):
    resumable_trainer(tmp_path, save_steps=9).train()
    path = tmp_path / "_phi" / "fisher-00001.safetensors"
    contents = bytearray(path.read_bytes())
    contents[-1] ^= 1
    path.unlink()  # what is linked into the checkpoint stays
    path.write_bytes(contents)
    resumable_trainer(tmp_path, max_steps=4).train()
    resumable_trainer(tmp_path / "other").train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


@pytest.mark.parametrize(
    ("saved", "now", "theirs", "ours"),
    [
        ("global_step4/states.pt", {}, "DeepSpeed", "plain PyTorch (one process or DDP)"),
        ("global_step4/states.pt", {"fsdp": True}, "DeepSpeed", "FSDP"),
        ("optimizer_0/0.distcp", {}, "FSDP", "plain PyTorch (one process or DDP)"),
        ("optimizer.bin", {"deepspeed": True}, "FSDP", "DeepSpeed"),
        ("optimizer.pt", {"deepspeed": True}, "plain PyTorch (one process or DDP)", "DeepSpeed"),
        ("optimizer.pt", {"fsdp": True}, "plain PyTorch (one process or DDP)", "FSDP"),
    ],
)
def test_an_optimizers_state_in_another_engines_form_is_refused(tmp_path, saved, now, theirs, ours):
    (tmp_path / saved).parent.mkdir(exist_ok=True)
    (tmp_path / saved).touch()
    told = re.escape(
        f"{tmp_path}: was saved under {theirs}, and {ours} cannot read its optimizer's state; go on under"
    )
    with pytest.raises(ValueError, match=told):
        require_own_engine(tmp_path, **{"deepspeed": False, "fsdp": False} | now)


@pytest.mark.parametrize("ranks", [[0, 1], [1]], ids=["fewer now", "more now, without a shared disk"])
def test_another_number_of_zeros_processes_is_refused(tmp_path, ranks):
    (tmp_path / "global_step4").mkdir()
    for rank in ranks:
        (tmp_path / "global_step4" / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").touch()
    with pytest.raises(ValueError, match="another number of processes cannot read: 2 then, 1 now; go on with"):
        require_own_engine(tmp_path, deepspeed=True, fsdp=False)


def test_one_process_reads_what_one_wrote_under_zero(tmp_path):
    (tmp_path / "global_step4").mkdir()
    (tmp_path / "global_step4" / "zero_pp_rank_0_mp_rank_00_optim_states.pt").touch()
    require_own_engine(tmp_path, deepspeed=True, fsdp=False)


def test_newer_checkpoints_that_are_damaged_are_named(tmp_path, caplog):
    resumable_trainer(tmp_path).train()
    (tmp_path / "checkpoint-9" / "optimizer.pt").write_bytes(b"short")
    (tmp_path / "checkpoint-8" / "manifest.json").unlink()
    resumable_trainer(tmp_path).train(resume_from_checkpoint=True)
    told = f"{tmp_path}: resuming from checkpoint-6, not from checkpoint-9: optimizer.pt"
    assert [message for message in caplog.messages if message.startswith(told) and "checkpoint-8: has no" in message]


def test_a_checkpoint_of_weights_alone_is_not_gone_on_from(tmp_path):
    trainer = ProgressiveTrainer(
        build_model(), arguments(tmp_path, **RESUMABLE, save_only_model=True), train_dataset=Blocks(40)
    )
    trainer.train()
    with pytest.raises(
        ValueError, match=r"checkpoint-9: holds no optimizer's state to go on with, as save_only_model"
    ):
        trainer.train(resume_from_checkpoint=True)


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
    assert sorted(path.name for path in tmp_path.iterdir()) == ["_phi", "checkpoint-70", "checkpoint-9"]
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


def test_the_stable_checkpoint_is_the_model_where_the_decay_begins(tmp_path):
    trainer = resumable_trainer(tmp_path, save_steps=5)
    trainer.add_callback(KeepWeights(trainer.save_pretrained_whole, tmp_path / "stable", 5))
    trainer.train()
    assert is_complete(tmp_path / "stable")
    assert not (tmp_path / "stable" / "training_args.bin").exists()
    stable = GPT2LMHeadModel.from_pretrained(tmp_path / "stable")
    at_step = GPT2LMHeadModel.from_pretrained(tmp_path / "checkpoint-5")
    assert_same_weights(weights(stable), weights(at_step))


def test_a_penalty_comes_back_as_it_was_kept_and_outlives_its_checkpoint(tmp_path, monkeypatch):
    model = build_model()
    penalty = build_penalty(model, storage_dtype=torch.bfloat16, storage_device="cpu")

    def trainer(steps, penalty):
        args = arguments(tmp_path, max_steps=steps, save_strategy="steps", save_steps=2, save_total_limit=1)
        return ProgressiveTrainer(build_model(), args, train_dataset=Blocks(), penalty=penalty)

    trainer(2, penalty).train()
    monkeypatch.chdir(tmp_path)
    loaded = load_penalty("checkpoint-2")
    assert (loaded.storage_dtype, loaded.storage_device) == (torch.bfloat16, "cpu")
    monkeypatch.chdir("/")
    before = loaded.value(model)
    assert before == penalty.value(model)
    trainer(4, loaded).train(resume_from_checkpoint=True)
    assert not (tmp_path / "checkpoint-2").exists()
    assert loaded.value(model) == before


def test_what_penalties_are_kept_in_is_checked():
    model = build_model()
    for options, message in (
        ({"storage_dtype": "bfloat16"}, "storage_dtype is 'bfloat16'; give a floating dtype"),
        ({"storage_device": "gpu"}, "storage_device is 'gpu'; give a device"),
    ):
        with pytest.raises(ValueError, match=message):
            build_penalty(model, **options)


def test_a_damaged_checkpoint_names_an_older_one_that_is_whole(tmp_path):
    args = arguments(tmp_path, max_steps=4, save_strategy="steps", save_steps=2)
    trainer = ProgressiveTrainer(build_model(), args, train_dataset=Blocks())
    trainer.train()
    weight_file = tmp_path / "checkpoint-4" / "model.safetensors"
    data = bytearray(weight_file.read_bytes())
    data[-1] ^= 1
    weight_file.write_bytes(data)
    with pytest.raises(ValueError, match=r"SHA-256 differs.*; .*checkpoint-2 is complete, so resume from that"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
