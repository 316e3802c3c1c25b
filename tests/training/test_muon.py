"""Muon beside AdamW: against a slow loop in float64, PyTorch's own Muon, and itself stopped and resumed."""

import copy
import dataclasses
import math

import pytest
import torch
from trainer_fixtures import Blocks, arguments, assert_same_weights, build_model, build_penalty, weights
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from hf_progressive.config import TrainingConfig
from hf_progressive.growth import grow_checkpoint
from hf_progressive.growth.hidden_matrices import Parts, hidden_matrices
from hf_progressive.growth.optimizer import read_optimizer_state
from hf_progressive.training import muon
from hf_progressive.training.moments import load_moments
from hf_progressive.training.muon import MuonWithAdamW, newton_schulz
from hf_progressive.training.trainer import ProgressiveTrainer
from hf_progressive.training.training_run import TrainingRun, training_arguments

MUON = {"muon_learning_rate": 2e-2, "weight_decay": 0.1, "adam_beta2": 0.95}


def llama(**changes):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    options = {**sizes, "num_key_value_heads": 2, "vocab_size": 40, "tie_word_embeddings": False, **changes}
    return LlamaForCausalLM(LlamaConfig(**options))


def slow_muon(matrix, gradients, *, lr, weight_decay):
    """The paper's loop, one matrix, one step after the other, products of lists."""

    def columns(rows):
        return [list(column) for column in zip(*rows, strict=True)]

    def product(one, other):
        return [[sum(a * b for a, b in zip(row, column, strict=True)) for column in columns(other)] for row in one]

    def combine(*terms):
        shape = range(len(terms[0][1])), range(len(terms[0][1][0]))
        return [[sum(factor * m[i][j] for factor, m in terms) for j in shape[1]] for i in shape[0]]

    w, momentum = matrix.tolist(), [[0.0] * matrix.shape[1] for _ in range(matrix.shape[0])]
    for gradient in gradients:
        g = gradient.tolist()
        momentum = combine((0.95, momentum), (0.05, g))
        x = combine((0.05, g), (0.95, momentum))
        norm = math.sqrt(sum(value**2 for row in x for value in row))
        x = combine((1 / norm, x))
        for _ in range(5):
            gram = product(x, columns(x))
            x = combine((3.4445, x), (-4.7750, product(gram, x)), (2.0315, product(product(gram, gram), x)))
        w = combine((1 - lr * weight_decay, w), (-lr * 0.2 * math.sqrt(max(matrix.shape)), x))
    return torch.tensor(w, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4)])
def test_steps_are_those_of_a_slow_loop(shape):
    generator = torch.Generator().manual_seed(0)
    matrix, *gradients = torch.randn((4, *shape), dtype=torch.float64, generator=generator)
    parameter = torch.nn.Parameter(matrix.clone())
    optimizer = MuonWithAdamW([], [(parameter, None)], lr=1.0, muon_lr=0.03, weight_decay=0.2)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    expected = slow_muon(matrix, gradients, lr=0.03, weight_decay=0.2)
    torch.testing.assert_close(parameter.detach(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dimension", [0, 1])
def test_the_parts_of_a_fused_weight_are_matrices_of_their_own(dimension):
    generator = torch.Generator().manual_seed(0)
    lengths = (6, 2, 2)
    pieces = [torch.randn(n, 4, dtype=torch.float64, generator=generator) for n in lengths]
    fused = torch.cat(pieces) if dimension == 0 else torch.cat(pieces).T.contiguous()
    parameter = torch.nn.Parameter(fused.clone())
    optimizer = MuonWithAdamW([], [(parameter, Parts(dimension, lengths))], lr=1.0, muon_lr=0.1)
    parameter.grad = fused.clone()
    optimizer.step()
    expected = torch.cat([slow_muon(piece, [piece], lr=0.1, weight_decay=0.0) for piece in pieces])
    torch.testing.assert_close(parameter.detach(), expected if dimension == 0 else expected.T, rtol=1e-12, atol=1e-12)


def test_singular_values_come_near_one_and_zeros_stay():
    matrices = torch.randn(3, 12, 20, generator=torch.Generator().manual_seed(0))
    matrices[2] = 0
    values = torch.linalg.svdvals(newton_schulz(matrices))
    assert values[:2].min() > 0.6
    assert values[:2].max() < 1.3
    assert torch.equal(newton_schulz(matrices)[2], matrices[2])


def test_a_model_s_steps_are_pytorch_s_muon_and_adamw(monkeypatch):
    monkeypatch.setattr(muon, "_dtype_of_products", lambda *_: torch.bfloat16)  # theirs, on any device
    model = llama()
    reference = copy.deepcopy(model)
    matrices = set(hidden_matrices(model))
    split = {
        m: [[p for n, p in m.named_parameters() if (n in matrices) is inside] for inside in (True, False)]
        for m in (model, reference)
    }
    options = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8}
    ours = MuonWithAdamW(
        [{"params": split[model][1], "weight_decay": 0.1}],
        [(p, None) for p in split[model][0]],
        muon_lr=2e-2,
        weight_decay=0.1,
        **options,
    )
    theirs = [
        torch.optim.Muon(split[reference][0], lr=2e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(split[reference][1], weight_decay=0.1, **options),
    ]
    start = weights(model)
    for step in range(3):
        tokens = torch.randint(40, (4, 12), generator=torch.Generator().manual_seed(step))
        reference.zero_grad()
        reference(tokens, labels=tokens).loss.backward()
        for p, q in zip(model.parameters(), reference.parameters(), strict=True):
            p.grad = q.grad.clone()  # the same for both, so that roundings do not add up
        for optimizer in (ours, *theirs):
            optimizer.step()
    for name, expected in reference.named_parameters():
        moved, by = dict(model.named_parameters())[name] - start[name], expected - start[name]
        if name in matrices:
            assert (moved - by).norm() < 0.01 * by.norm(), name
        else:
            torch.testing.assert_close(moved, by, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("config", "of_adamw", "fused"),
    [
        (
            GPT2Config(n_layer=1, n_embd=16, n_head=2, n_positions=8, vocab_size=40),
            {"transformer.wte.weight", "transformer.wpe.weight"},
            {"transformer.h.0.attn.c_attn.weight": Parts(1, (16, 16, 16))},
        ),
        (llama(num_hidden_layers=1).config, {"model.embed_tokens.weight", "lm_head.weight"}, {}),
        (llama(num_hidden_layers=1, tie_word_embeddings=True).config, {"model.embed_tokens.weight"}, {}),
        (
            AutoConfig.for_model(
                "nanochat", num_hidden_layers=1, hidden_size=16, num_attention_heads=2, num_key_value_heads=2,
                intermediate_size=64, vocab_size=40, tie_word_embeddings=False,
            ),
            {"model.embed_tokens.weight", "lm_head.weight"},
            {},
        ),
    ],
    ids=["gpt2", "llama", "llama tied", "nanochat"],
)  # fmt: skip
def test_which_parameters_go_where(config, of_adamw, fused, tmp_path):
    model = AutoModelForCausalLM.from_config(config)
    names = {id(p): name for name, p in model.named_parameters()}
    trainer = ProgressiveTrainer(model, arguments(tmp_path, **MUON), train_dataset=Blocks())
    decayed, others, hidden = (
        [names[id(p)] for p in group["params"]] for group in trainer.create_optimizer().param_groups
    )
    assert set(decayed) == of_adamw
    assert all(p.ndim == 1 for name, p in model.named_parameters() if name in others)
    assert set(hidden) == {name for name, p in model.named_parameters() if p.ndim == 2} - of_adamw
    assert len(decayed + others + hidden) == len(names)
    assert {name: parts for name, parts in hidden_matrices(model).items() if parts is not None} == fused
    groups = trainer.optimizer.param_groups
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(1e-2, 0.1), (1e-2, 0.0), (2e-2, 0.1)]
    assert [group["use_muon"] for group in groups] == [False, False, True]


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
    def trainer(**changes):
        model = build_model(0.1)
        options = {"lr_scheduler_type": "cosine", "save_strategy": "steps", "save_steps": 3} | MUON | changes
        args = arguments(tmp_path, **options)
        return ProgressiveTrainer(model, args, train_dataset=Blocks(), penalty=build_penalty(model))

    whole = trainer()
    whole.train()
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert_same_weights(weights(whole.model), weights(resumed.model))
    first, second = whole.optimizer.state_dict()["state"], resumed.optimizer.state_dict()["state"]
    kept = {key for entry in first.values() for key in entry}
    assert kept == {"step", "exp_avg", "exp_avg_sq", "momentum_buffer"}
    for index, entry in first.items():
        assert all(torch.equal(value, second[index][key]) for key, value in entry.items())


def test_a_grown_checkpoint_goes_on_with_the_momentum(tmp_path):
    args = arguments(tmp_path / "parent", save_strategy="steps", save_steps=6, **MUON)
    parent = ProgressiveTrainer(build_model(), args, train_dataset=Blocks())
    parent.train()
    checkpoint, wider = tmp_path / "parent" / "checkpoint-6", {"n_embd": 24, "n_head": 3, "n_layer": 3}
    grow_checkpoint(checkpoint, tmp_path / "child", wider, optimizer=checkpoint / "optimizer.pt")

    model = GPT2LMHeadModel.from_pretrained(tmp_path / "child")
    child = ProgressiveTrainer(model, arguments(tmp_path, **MUON), train_dataset=Blocks())
    state = read_optimizer_state(tmp_path / "child" / "optimizer.pt")
    load_moments(model, child.create_optimizer(), state)
    assert [group["lr"] for group in child.optimizer.param_groups] == [1e-2, 1e-2, 2e-2]
    name = "h.0.attn.c_attn.weight"  # q, k and v of 16 stand now at the beginnings of q, k and v of 24
    before, after = (
        trainer.optimizer.state[trainer.model.transformer.get_parameter(name)]["momentum_buffer"]
        for trainer in (parent, child)
    )
    scales = [after[:16, 24 * i : 24 * i + 16] / before[:, 16 * i : 16 * i + 16] for i in range(3)]
    assert all(torch.allclose(scale, scale[:, :1].expand_as(scale), rtol=1e-4) for scale in scales)
    assert all(after[:, 24 * i + 16 : 24 * (i + 1)].count_nonzero() == 0 for i in range(3))
    child.train()

    adamw = ProgressiveTrainer(model, arguments(tmp_path), train_dataset=Blocks()).create_optimizer()
    with pytest.raises(ValueError, match=r"the moments are Muon's, and this run trains with AdamW; train with"):
        load_moments(model, adamw, state)


def test_a_run_s_own_peak_moves_muon_s_in_proportion(tmp_path):
    training = {"batch_tokens": 32, "learning_rate": 1e-3, "optimizer": "muon", "muon_learning_rate": 3e-3}
    run = TrainingRun(
        title="run", init=tmp_path, folder=tmp_path, training=TrainingConfig(**training), learning_rate=2e-3, steps=4,
        first_block=0, flops_per_token=1.0,
    )  # fmt: skip
    args = training_arguments(run, 16)
    assert (args.learning_rate, args.muon_learning_rate) == (2e-3, pytest.approx(6e-3))
    same = dataclasses.replace(run, training=TrainingConfig(**{**training, "muon_learning_rate": None}))
    assert training_arguments(same, 16).muon_learning_rate == 2e-3
    without = dataclasses.replace(run, training=TrainingConfig(batch_tokens=32))
    assert training_arguments(without, 16).muon_learning_rate is None


def test_a_schedule_moves_both_rates(tmp_path):
    args = arguments(tmp_path, lr_scheduler_type="linear", **MUON)
    trainer = ProgressiveTrainer(build_model(), args, train_dataset=Blocks())
    trainer.train()
    assert [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry] == [
        pytest.approx(1e-2 * (6 - step) / 6) for step in range(6)
    ]
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [0.0, 0.0, 0.0]


def test_what_does_not_fit_muon_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"muon_learning_rate is 0\.0; it must be above 0"):
        arguments(tmp_path, muon_learning_rate=0.0)
    with pytest.raises(ValueError, match=r"Muon trains beside PyTorch's AdamW, not 'adafactor'; leave out optim"):
        arguments(tmp_path, muon_learning_rate=1e-2, optim="adafactor")
    model = build_model()
    own = (torch.optim.SGD(model.parameters(), 1e-2), None)
    with pytest.raises(ValueError, match="muon_learning_rate: the optimizer that was passed trains all weights"):
        ProgressiveTrainer(model, arguments(tmp_path, **MUON), optimizers=own)
    with pytest.raises(ValueError, match=r"Muon trains matrices; a parameter of shape \(3,\) with None is none"):
        MuonWithAdamW([], [(torch.nn.Parameter(torch.ones(3)), None)], lr=1.0, muon_lr=1.0)


@pytest.mark.parametrize("engine", ["is_deepspeed_enabled", "is_fsdp_enabled"])
def test_engines_that_flatten_matrices_are_refused(engine, tmp_path):
    class Launched(ProgressiveTrainer):
        def create_accelerator_and_postprocess(self):
            super().create_accelerator_and_postprocess()
            setattr(self, engine, True)

    Launched(build_model(), arguments(tmp_path))
    with pytest.raises(ValueError, match=r"muon_learning_rate: Muon needs whole matrices, and DeepSpeed and FSDP 1"):
        Launched(build_model(), arguments(tmp_path, **MUON))
