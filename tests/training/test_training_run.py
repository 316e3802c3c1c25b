"""One training run: how a step's tokens are split, when it evaluates, and what it hands to Trainer."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_progressive.config import TrainingConfig
from hf_progressive.training import training_run
from hf_progressive.training.callbacks import evenly_spaced
from hf_progressive.training.training_run import (
    TrainingRun,
    keep_to_one_gpu,
    micro_batches,
    schedule_steps,
    training_arguments,
)


@given(steps=st.integers(1, 500), count=st.integers(1, 80))
def test_milestones_are_as_many_as_asked_and_end_with_the_last_step(steps: int, count: int) -> None:
    chosen = sorted(evenly_spaced(steps, count))
    assert len(chosen) == min(steps, count)
    assert chosen[-1] == steps
    gaps = [b - a for a, b in zip([0, *chosen], chosen, strict=False)]
    assert max(gaps) - min(gaps) <= 1


@given(
    blocks=st.integers(1, 64), largest=st.integers(1, 40), processes=st.sampled_from([1, 2, 4]), context=st.just(16)
)
def test_micro_batches_make_up_the_step(blocks: int, largest: int, processes: int, context: int) -> None:
    training = TrainingConfig(batch_tokens=blocks * processes * context, micro_batch_size=largest)
    size, accumulation = micro_batches(training, context, processes)
    assert size * accumulation == blocks
    assert size <= largest
    # No larger micro-batch within the limit would divide the step.
    assert all(blocks % larger for larger in range(size + 1, min(largest, blocks) + 1))


def test_a_step_that_does_not_divide_among_processes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"batch_tokens: 48 is 3 blocks of 16, .* use a multiple of 32"):
        micro_batches(TrainingConfig(batch_tokens=48), 16, 2)


@given(steps=st.integers(1, 400), warmup=st.floats(0, 0.5), decay=st.floats(0, 0.5))
def test_warm_up_and_decay_fit_into_the_run(steps: int, warmup: float, decay: float) -> None:
    training = TrainingConfig(warmup_fraction=warmup, decay_fraction=decay)
    first, last = schedule_steps(training, steps)
    assert 0 <= first <= steps
    assert 0 <= last <= steps - first


def test_the_learning_rate_rises_stays_and_falls_to_its_end(tmp_path: Path) -> None:
    import torch
    from transformers import get_scheduler

    training = TrainingConfig(
        batch_tokens=64, warmup_fraction=0.1, decay_fraction=0.4, final_lr_ratio=0.1, learning_rate=1.0
    )
    run = TrainingRun(
        title="x", init=tmp_path, folder=tmp_path, training=training, learning_rate=1.0, steps=50, first_block=0,
        flops_per_token=1.0,
    )  # fmt: skip
    arguments = training_arguments(run, 16)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=arguments.learning_rate)
    scheduler = get_scheduler(
        arguments.lr_scheduler_type,
        optimizer,
        num_warmup_steps=arguments.get_warmup_steps(50),
        num_training_steps=50,
        scheduler_specific_kwargs=arguments.lr_scheduler_kwargs,
    )
    rates = []
    for _ in range(50):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    # Warm-up over 5 steps, which the stock scheduler starts at the final ratio; constant; a line from step 30 to 50.
    expected = [
        0.1 + 0.9 * step / 5 if step < 5 else 1.0 if step < 30 else 1.0 - 0.9 * (step - 30) / 20 for step in range(50)
    ]
    assert rates == pytest.approx(expected)


def test_a_process_that_sees_several_gpus_uses_one_and_keeps_its_batch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    training = TrainingConfig(batch_tokens=256, micro_batch_size=4)
    run = TrainingRun(
        title="x", init=tmp_path, folder=tmp_path, training=training, learning_rate=1.0, steps=5, first_block=0,
        flops_per_token=1.0,
    )  # fmt: skip
    arguments = training_arguments(run, 16)
    arguments._n_gpu = 8
    assert arguments.train_batch_size == 32
    keep_to_one_gpu(arguments)
    assert arguments.train_batch_size == 4
    assert "one of 8 GPUs is used; start with accelerate launch" in caplog.text


@pytest.mark.parametrize("there", [True, False])
def test_any_accelerator_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    def given_arguments(**given: Any) -> SimpleNamespace:
        return SimpleNamespace(n_gpu=1, mixed_precision="no", **given)

    monkeypatch.setattr("torch.accelerator.is_available", lambda: there)
    monkeypatch.setattr(training_run, "ProgressiveTrainingArguments", given_arguments)
    training = TrainingConfig(batch_tokens=64)
    run = TrainingRun(
        title="x", init=tmp_path, folder=tmp_path, training=training, learning_rate=1.0, steps=5, first_block=0,
        flops_per_token=1.0,
    )  # fmt: skip
    assert training_arguments(run, 16).use_cpu is not there


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rat": 1}, "unknown argument; did you mean 'learning_rate'"),
        ({"max_steps": 3}, "the ladder sets it"),
    ],
)
def test_trainer_arguments_are_checked(tmp_path: Path, arguments: dict[str, int], message: str) -> None:
    training = TrainingConfig(batch_tokens=64, arguments=arguments)
    run = TrainingRun(
        title="x", init=tmp_path, folder=tmp_path, training=training, learning_rate=1.0, steps=5, first_block=0,
        flops_per_token=1.0,
    )  # fmt: skip
    with pytest.raises(ValueError, match=message):
        training_arguments(run, 16)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_end_of_text_token_pads_for_others_and_trains_all_the_same(tmp_path: Path, family: str) -> None:
    import torch
    from trainer_fixtures import Blocks
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from hf_progressive.config import ModelConfig, RungConfig
    from hf_progressive.data import train_tokenizer
    from hf_progressive.planning.sizing import rung_model_config
    from hf_progressive.training.checkpoints import write_fresh
    from hf_progressive.training.training_run import block_trainer

    tokenizer = train_tokenizer(["to be or not to be"], vocab_size=260, training_bytes=1000)
    config = rung_model_config(
        ModelConfig(family=family, context=16, head_dim=8, aspect_ratio=8),
        RungConfig(name="d1", depth=1),
        vocab_size=260,
    )
    write_fresh(config, tokenizer, tmp_path / "init", seed=0)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "init")
    end = model.get_input_embeddings().weight[tokenizer.eos_token_id].detach().clone()
    assert end.norm() > 0
    training = TrainingConfig(batch_tokens=64, micro_batch_size=4, precision="float32")
    run = TrainingRun(
        title="x", init=tmp_path / "init", folder=tmp_path, training=training, learning_rate=0.1, steps=2,
        first_block=0, flops_per_token=1.0,
    )  # fmt: skip
    arguments = training_arguments(run, 16)
    trainer = block_trainer(
        arguments, model, Blocks(), context=16, penalty=None, callbacks=[], processing_class=tokenizer
    )
    trainer.train()
    trainer.save_pretrained_whole(tmp_path / "final")
    final = AutoModelForCausalLM.from_pretrained(tmp_path / "final")
    assert (final.config.pad_token_id, final.generation_config.pad_token_id) == (None, None)
    assert not torch.equal(final.get_input_embeddings().weight[tokenizer.eos_token_id], end)
    assert getattr(final.config, "n_ctx", 16) == 16
    assert hasattr(final.config, "n_ctx") is (family == "gpt2")
    saved = AutoTokenizer.from_pretrained(tmp_path / "final")
    assert saved.pad_token == saved.unk_token == tokenizer.eos_token
