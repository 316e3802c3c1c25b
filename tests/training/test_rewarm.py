"""Re-warming the entries that a growth added, and the optimizer's state that a run starts from and leaves."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ladder_fixtures import write_corpus
from safetensors.torch import load_file
from sharded_rewarm import build_optimizer
from transformers import AutoModelForCausalLM, GPT2Config, TrainerCallback

from hf_progressive.config import DataConfig, TokenizerConfig, TrainingConfig
from hf_progressive.data import Corpus, prepare_corpus
from hf_progressive.growth import grow_checkpoint
from hf_progressive.growth.grow import OPTIMIZER_NAME
from hf_progressive.growth.optimizer import parameter_groups, read_optimizer_state
from hf_progressive.training.checkpoints import write_fresh
from hf_progressive.training.training_run import TrainingRun, train_run

CONTEXT, STEPS, REWARM, RATE = 16, 6, 4, 1e-3
TRAINING = TrainingConfig(
    batch_tokens=4 * CONTEXT, micro_batch_size=2, evaluations=1, checkpoints=3, decay_fraction=0.0, max_grad_norm=0.0
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    data = DataConfig(
        source="json",
        files=(str(write_corpus(folder)),),
        validation_fraction=0.1,
        max_validation_tokens=128,
        tokenizer=TokenizerConfig(vocab_size=300, training_bytes=50_000),
    )
    return prepare_corpus(data, CONTEXT, folder / "data")


@pytest.fixture(scope="module")
def parent(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained parent's weights from before its decay, with the optimizer's state beside them."""
    folder = tmp_path_factory.mktemp("parent")
    config = GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=300, n_positions=CONTEXT, resid_pdrop=0.0,
                        embd_pdrop=0.0, attn_pdrop=0.0)  # fmt: skip
    write_fresh(config, corpus.tokenizer, folder / "init", seed=0)
    run = training_run(folder / "init", folder, decay_steps=2, stable=folder / "stable", stable_moments=True)
    train_run(run, corpus)
    return folder


@pytest.fixture(scope="module")
def child(parent: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("child") / "init"
    optimizer = parent / "stable" / OPTIMIZER_NAME
    grow_checkpoint(parent / "stable", folder, {"n_layer": 2, "n_embd": 24, "n_head": 3}, optimizer=optimizer)
    return folder


def training_run(init: Path, folder: Path, **changes: object) -> TrainingRun:
    return TrainingRun(
        title="run", init=init, folder=folder, training=TRAINING, learning_rate=RATE, steps=STEPS, first_block=3,
        flops_per_token=1.0, **changes,
    )  # fmt: skip


def test_the_state_before_the_decay_is_that_of_a_run_that_ends_there(
    corpus: Corpus, parent: Path, tmp_path: Path
) -> None:
    shorter = {"steps": STEPS - 2, "decay_steps": 0, "stable": tmp_path / "stable", "stable_moments": True}
    train_run(dataclasses.replace(training_run(parent / "init", tmp_path), **shorter), corpus)
    ours, theirs = (read_optimizer_state(folder / "stable" / OPTIMIZER_NAME) for folder in (tmp_path, parent))
    assert ours["state"].keys() == theirs["state"].keys()
    for number, entry in ours["state"].items():
        assert all(torch.equal(value, theirs["state"][number][key]) for key, value in entry.items())
    saved = torch.load(tmp_path / "checkpoints" / f"checkpoint-{STEPS - 2}" / "optimizer.pt", weights_only=True)
    assert torch.equal(saved["state"][0]["exp_avg"], ours["state"][0]["exp_avg"])


def by_hand(corpus: Corpus, child: Path, *, with_moments: bool) -> dict[str, torch.Tensor]:
    """AdamW with a rate for every entry, written out (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2)."""
    model = AutoModelForCausalLM.from_pretrained(child, dtype=torch.float32).train()
    decayed, others = parameter_groups(model.config)
    is_new = {name: torch.ones_like(p, dtype=torch.bool) for name, p in model.named_parameters()}
    # Of width 16 → 24, 2 → 3 heads of 8, MLP 64 → 96, and a first layer that is the parent's.
    kept = {"wte": (300, 16), "wpe": (16, 16), "ln_f": (16,), "h.0.ln": (16,), "h.0.mlp.c_fc.weight": (16, 64)}
    kept |= {"h.0.mlp.c_fc.bias": (64,), "h.0.mlp.c_proj.weight": (64, 16), "h.0.mlp.c_proj.bias": (16,)}
    kept |= {"h.0.attn.c_proj.weight": (16, 16), "h.0.attn.c_proj.bias": (16,)}
    for name, mask in is_new.items():
        key = name.removeprefix("transformer.")
        for part, shape in kept.items():
            if key.startswith(part):
                mask[tuple(slice(size) for size in shape)] = False
        if key.startswith("h.0.attn.c_attn"):  # q, k and v stand side by side, each with a new head behind
            for start in (0, 24, 48):
                mask[..., start : start + 16][:16] = False
    first = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    second = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    count = dict.fromkeys(first, 0)
    if with_moments:
        state = torch.load(child / OPTIMIZER_NAME, weights_only=True)["state"]
        for number, name in enumerate([*decayed, *others]):
            first[name], second[name] = state[number]["exp_avg"], state[number]["exp_avg_sq"]
            count[name] = int(state[number]["step"])
    for step in range(STEPS):
        rows = torch.stack([corpus.train[3 + 4 * step + row]["input_ids"] for row in range(4)])
        model(rows, labels=rows).loss.backward()
        for name, p in model.named_parameters():
            rate = torch.where(is_new[name], RATE * min(step / REWARM, 1.0), RATE)
            count[name] += 1
            with torch.no_grad():
                first[name] = 0.9 * first[name] + 0.1 * p.grad
                second[name] = 0.95 * second[name] + 0.05 * p.grad**2
                if name in decayed:
                    p -= rate * 0.1 * p
                root = (second[name] / (1 - 0.95 ** count[name])).sqrt()
                p -= rate * (first[name] / (1 - 0.9 ** count[name])) / (root + 1e-8)
            p.grad = None
    return {name: p.detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize("with_moments", [False, True], ids=["fresh", "grown"])
def test_new_entries_learn_at_their_own_rate_and_old_ones_at_the_full_one(
    corpus: Corpus, child: Path, tmp_path: Path, with_moments: bool
) -> None:
    moments = child / OPTIMIZER_NAME if with_moments else None
    run = training_run(child, tmp_path, warmup_steps=REWARM, rewarm_new=True, optimizer=moments)
    _, trainer = train_run(run, corpus)
    found = dict(trainer.model.named_parameters())
    start = dict(AutoModelForCausalLM.from_pretrained(child, dtype=torch.float32).named_parameters())
    for name, expected in by_hand(corpus, child, with_moments=with_moments).items():
        moved = (expected - start[name]).norm()
        assert (found[name] - expected).norm() <= 2e-3 * moved, name


class _Interruption(TrainerCallback):
    def on_step_begin(self, args: object, state: object, control: object, **kwargs: object) -> None:
        if state.global_step == REWARM - 1:
            raise KeyboardInterrupt


def test_a_run_interrupted_in_its_re_warm_ends_with_the_same_bits(corpus: Corpus, child: Path, tmp_path: Path) -> None:
    ended = []
    for name, stops in (("whole", ()), ("interrupted", (_Interruption(),))):
        run = training_run(
            child, tmp_path / name, warmup_steps=REWARM, rewarm_new=True, optimizer=child / OPTIMIZER_NAME
        )
        if stops:
            with pytest.raises(KeyboardInterrupt):
                train_run(run, corpus, callbacks=stops)
            assert (tmp_path / name / "checkpoints" / "checkpoint-2").is_dir()
        _, trainer = train_run(run, corpus)
        trainer.save_pretrained_whole(tmp_path / name / "final")
        ended.append(load_file(tmp_path / name / "final" / "model.safetensors"))
    assert all(torch.equal(value, ended[1][name]) for name, value in ended[0].items())


def with_moments_of_muon(child: Path, folder: Path) -> Path:
    """Copy a checkpoint, with the state after a step of Muon on fixed gradients."""
    shutil.copytree(child, folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    optimizer = build_optimizer(model, muon=True)
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    torch.save(optimizer.state_dict(), folder / OPTIMIZER_NAME)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_in_shards_the_same_entries_are_slowed_and_the_same_moments_go_on(
    child: Path, tmp_path: Path, optimizer: str
) -> None:
    init = child if optimizer == "adamw" else with_moments_of_muon(child, tmp_path / "init")
    script = Path(__file__).parent / "sharded_rewarm.py"
    results = []
    for processes in (1, 2):
        output = tmp_path / f"{processes}.safetensors"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        subprocess.run([*command, str(script), str(init), str(output), optimizer], check=True)
        results.append(load_file(output))
        state = json.loads(output.with_suffix(".json").read_text())
        assert state["named"] == (processes > 1)
    for name, whole in results[0].items():
        torch.testing.assert_close(results[1][name], whole, rtol=1e-5, atol=1e-6, msg=name)
