"""What waits for the device is seen, and nothing else; between two logs a ladder's training waits for nothing."""

from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from host_reads import host_reads
from ladder_fixtures import write_corpus
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, TrainerCallback

from hf_progressive.config import DataConfig, TokenizerConfig, TrainingConfig
from hf_progressive.data import Corpus, prepare_corpus
from hf_progressive.growth import grow_checkpoint
from hf_progressive.penalty import InheritancePenalty
from hf_progressive.training import callbacks
from hf_progressive.training.checkpoints import write_fresh
from hf_progressive.training.training_run import TrainingRun, train_run

CPU, CONTEXT, STEPS, LOGS = torch.device("cpu"), 16, 12, 4

READS = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x.sum()),
    "if": lambda x: bool(x.sum() > 0),
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "cpu": lambda x: x.cpu(),
    "to": lambda x: x.to("cpu"),
    "equal": lambda x: torch.equal(x, x),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0),
    "masked_select": lambda x: x.masked_select(x > 0),
    "mask": lambda x: x[x > 0],
    "unique": lambda x: x.unique(),
    "repeats": lambda x: x.repeat_interleave(torch.tensor([1, 2, 1])),
}
WORK = {
    "sums": lambda x: (x * 2).softmax(0).sum(),
    "where of three": lambda x: torch.where(x > 0, x, 0.0),
    "fill": lambda x: x.clone().masked_fill_(x > 0, 0.0),
    "integers": lambda x: x[torch.tensor([0, 2])],
    "clip": lambda x: torch.nn.utils.clip_grad_norm_([torch.nn.Parameter(x)], 1.0),
    "dtype": lambda x: x.to(torch.bfloat16),
    "repeats of known size": lambda x: x.repeat_interleave(torch.tensor([1, 2, 1]), output_size=4),
}


@pytest.mark.parametrize("name", READS)
def test_a_read_is_counted_where_it_is_made(name):
    with host_reads(CPU) as reads:
        READS[name](torch.tensor([1.0, -2.0, 3.0]))
    assert reads.total() == 1
    assert next(iter(reads)).startswith(f"{__file__}:")


@pytest.mark.parametrize("name", WORK)
def test_work_on_the_device_is_not(name):
    with host_reads(CPU) as reads:
        WORK[name](torch.tensor([1.0, -2.0, 3.0]))
    assert not reads


def test_reads_in_the_backward_pass_are_seen_and_the_host_s_own_memory_is_not():
    weight = torch.nn.Parameter(torch.ones(3))
    weight.register_hook(lambda gradient: gradient * gradient.sum().item())
    optimizer = torch.optim.AdamW([weight], foreach=False)  # reads its step counter, which lies on the host
    with host_reads(CPU) as reads:
        for batch in DataLoader([{"n": i} for i in range(2)], collate_fn=lambda items: torch.tensor([2.0]) * 2):
            (weight * batch).sum().backward()
            optimizer.step()
    assert reads.total() == 2
    assert all(place.endswith("<lambda>") for place in reads)


class BetweenLogs(TrainerCallback):
    """Counts from each log to the step before the next."""

    def __init__(self) -> None:
        self.reads: Counter[str] = Counter()
        self.stretches = 0
        self.open = ExitStack()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in logs and state.global_step < state.max_steps:
            self.open.callback(self.reads.update, self.open.enter_context(host_reads(CPU)))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if control.should_log and state.global_step > STEPS // LOGS:
            self.open.close()
            self.stretches += 1


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("reads")
    data = DataConfig(
        source="json",
        files=[str(write_corpus(folder))],
        validation_fraction=0.1,
        max_validation_tokens=128,
        tokenizer=TokenizerConfig(vocab_size=300, training_bytes=50_000),
    )
    return prepare_corpus(data, CONTEXT, folder / "data")


@pytest.fixture(scope="module")
def init(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "init"
    config = GPT2Config(
        n_layer=2, n_embd=16, n_head=2, vocab_size=300, n_positions=CONTEXT, resid_pdrop=0.0, attn_pdrop=0.0
    )
    write_fresh(config, corpus.tokenizer, folder, seed=0)
    assert len(AutoTokenizer.from_pretrained(folder)) <= 300
    return folder


def full_penalty(init: Path, kind: str) -> InheritancePenalty:
    anchor = {name: p.detach() for name, p in AutoModelForCausalLM.from_pretrained(init).named_parameters()}
    fisher = {name: torch.ones_like(tensor) for name, tensor in anchor.items()}
    bases = {"transformer.h.0.mlp.c_fc.weight": torch.eye(64, 5), "transformer.wte.weight": torch.eye(16, 3)}
    apply = "proximal" if kind == "proximal" else "gradient"
    return InheritancePenalty(anchor, fisher, bases, ewc_lambda=0.1, gamma=0.1, apply=apply)


@pytest.mark.parametrize("micro_batch", [4, 1], ids=["whole", "accumulated"])
@pytest.mark.parametrize("kind", ["plain", "Φ", "proximal", "re-warm", "Muon"])
def test_between_two_logs_a_ladder_s_training_reads_nothing(
    corpus: Corpus, init: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, micro_batch: int, kind: str
) -> None:
    with_phi = kind in ("Φ", "proximal")
    if kind == "re-warm":
        grow_checkpoint(init, tmp_path / "init", {"n_layer": 3, "n_embd": 24, "n_head": 3})
        init = tmp_path / "init"
    monkeypatch.setattr(callbacks, "LOGS_PER_RUN", LOGS)
    run = TrainingRun(
        title="reads",
        init=init,
        folder=tmp_path,
        training=TrainingConfig(
            batch_tokens=4 * CONTEXT,
            micro_batch_size=micro_batch,
            evaluations=1,
            checkpoints=1,
            optimizer="muon" if kind == "Muon" else "adamw",
        ),
        learning_rate=1e-3,
        steps=STEPS,
        first_block=0,
        flops_per_token=1.0,
        phi_schedule="linear",
        warmup_steps=STEPS - 2 if kind == "re-warm" else None,
        rewarm_new=kind == "re-warm",
    )
    between = BetweenLogs()
    result, _ = train_run(run, corpus, full_penalty(init, kind) if with_phi else None, callbacks=[between])
    assert between.stretches == LOGS - 1
    assert dict(between.reads) == {}
    assert (result.training_log[-1].get("phi/ewc", 0.0) > 0) == with_phi
