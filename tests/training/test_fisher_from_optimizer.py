"""Ω read from an optimizer: its scale against a loop over tokens, where it is found, what is refused."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional
from trainer_fixtures import Blocks, arguments, build_model
from transformers import Adafactor

from hf_progressive.training.fisher_from_optimizer import fisher_from_optimizer
from hf_progressive.training.trainer import ProgressiveTrainer

TOKENS = 16 * 15
"""Targets of a step: 16 blocks of 16 tokens."""


def bigram_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(6, 4), nn.Tanh(), nn.Linear(4, 6)).double()


def squares_token_by_token(model, inputs, targets):
    """Return the mean over tokens of each token's squared gradient, one backward pass after the other."""
    totals = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    for one, target in zip(inputs, targets, strict=True):
        loss = functional.cross_entropy(model(one[None]), target[None])
        for total, gradient in zip(totals.values(), torch.autograd.grad(loss, list(model.parameters())), strict=True):
            total += gradient.square()
    return {name: total / len(inputs) for name, total in totals.items()}


def test_at_a_stationary_point_it_is_the_mean_square_of_single_tokens():
    model, generator = bigram_model(), torch.Generator().manual_seed(1)
    steps, batch, accumulated = 400, 32, 2
    inputs = torch.randint(6, (steps, batch), generator=generator)
    with torch.no_grad():  # targets of the model's own: the mean gradient is 0
        chances = model(inputs.flatten()).softmax(-1)
        targets = torch.multinomial(chances, 1, generator=generator).view(steps, batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.995))
    for step_inputs, step_targets in zip(inputs, targets, strict=True):
        for part, wanted in zip(step_inputs.chunk(accumulated), step_targets.chunk(accumulated), strict=True):
            (functional.cross_entropy(model(part), wanted) / accumulated).backward()
        optimizer.step()
        optimizer.zero_grad()
    fisher = fisher_from_optimizer(optimizer, model, batch_tokens=batch)
    exact = squares_token_by_token(model, inputs.flatten()[-1500:], targets.flatten()[-1500:])
    assert list(fisher) == list(exact)
    found, wanted = (torch.cat([value.flatten() for value in each.values()]) for each in (fisher, exact))
    assert float(found.sum()) == pytest.approx(float(wanted.sum()), rel=0.05)
    assert torch.corrcoef(torch.stack([found, wanted]))[0, 1] > 0.98


def one_gradient(optimizer_of, *, steps=3, norm=None, dtype=torch.float32):
    """Give an optimizer the same gradient (3, 4) in every step, clipped to a norm; return it and its model."""
    model = nn.Linear(2, 1, bias=False, dtype=dtype)
    optimizer = optimizer_of(model.parameters())
    for _ in range(steps):
        model.weight.grad = torch.tensor([[3.0, 4.0]], dtype=dtype)
        if norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), norm)
        optimizer.step()
    return optimizer, model


KINDS = {
    "foreach": lambda p: torch.optim.AdamW(p, foreach=True),
    "fused": lambda p: torch.optim.AdamW(p, fused=True),
    "amsgrad": lambda p: torch.optim.AdamW(p, amsgrad=True, betas=(0.8, 0.95)),
    "adam": lambda p: torch.optim.Adam(p),
}


@pytest.mark.parametrize("kind", KINDS)
def test_bias_correction_makes_a_constant_gradient_its_square_in_every_implementation(kind):
    optimizer, model = one_gradient(KINDS[kind])
    fisher = fisher_from_optimizer(optimizer, model, batch_tokens=10)
    torch.testing.assert_close(fisher["weight"], torch.tensor([[90.0, 160.0]]), rtol=1e-4, atol=0)


def test_a_bfloat16_state_becomes_float32():
    optimizer, model = one_gradient(torch.optim.AdamW, steps=1, dtype=torch.bfloat16)
    fisher = fisher_from_optimizer(optimizer, model, batch_tokens=1)["weight"]
    assert fisher.dtype == torch.float32
    torch.testing.assert_close(fisher, torch.tensor([[9.0, 16.0]]), rtol=1e-2, atol=0)


def test_clipping_is_undone_by_the_norms_that_were_logged(caplog):
    optimizer, model = one_gradient(torch.optim.AdamW, norm=1.0)
    norms = {1: 5.0, 3: 5.0, 99: 1000.0}  # the last is of a step not taken yet
    wanted = torch.tensor([[9.0, 16.0]])
    whole = fisher_from_optimizer(optimizer, model, batch_tokens=1, max_grad_norm=1.0, gradient_norms=norms)
    torch.testing.assert_close(whole["weight"], wanted, rtol=1e-4, atol=0)
    clipped = fisher_from_optimizer(optimizer, model, batch_tokens=1, max_grad_norm=1.0)
    torch.testing.assert_close(clipped["weight"], wanted / 25, rtol=1e-4, atol=0)
    assert "no norm of the gradient was logged" in caplog.text


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short training that clips, with its checkpoint and its trainer."""
    folder = tmp_path_factory.mktemp("trained")
    settings = arguments(
        folder, max_steps=4, save_strategy="steps", save_steps=4, gradient_accumulation_steps=2, max_grad_norm=0.2
    )
    trainer = ProgressiveTrainer(build_model(), settings, train_dataset=Blocks())
    trainer.train()
    return folder / "checkpoint-4", trainer


def test_a_checkpoint_tells_what_the_optimizer_knows(trained):
    checkpoint, trainer = trained
    log = trainer.state.log_history
    norms = {entry["step"]: entry["grad_norm"] for entry in log if "grad_norm" in entry}
    options = {"batch_tokens": TOKENS, "max_grad_norm": 0.2}
    of_folder = fisher_from_optimizer(checkpoint, **options)
    of_file = fisher_from_optimizer(checkpoint / "optimizer.pt", trainer.model, **options)
    of_optimizer = fisher_from_optimizer(trainer.optimizer, trainer.model, **options, gradient_norms=norms)
    weights = 0.999 ** torch.arange(3, -1, -1.0)
    clipping = sum(w * norms[n + 1] ** 2 for n, w in enumerate(weights)) / (weights.sum() * 0.2**2)
    for name, parameter in trainer.model.named_parameters():
        state = trainer.optimizer.state[parameter]
        wanted = TOKENS * clipping * state["exp_avg_sq"] / (1 - 0.999**4)
        for found in (of_folder, of_file, of_optimizer):
            torch.testing.assert_close(found[name], wanted, rtol=1e-4, atol=0)
    assert of_folder.keys() == of_optimizer.keys()


def test_muons_matrices_have_none_and_are_named(trained, tmp_path):
    settings = arguments(tmp_path, max_steps=1, muon_learning_rate=1e-3)
    trainer = ProgressiveTrainer(build_model(), settings, train_dataset=Blocks())
    trainer.train()
    with pytest.raises(ValueError, match=r"no second moment of 8 parameters \(transformer\.h\.0\.attn\.c_attn"):
        fisher_from_optimizer(trainer.optimizer, trainer.model, batch_tokens=8)
    found = fisher_from_optimizer(trainer.optimizer, trainer.model, batch_tokens=8, partial=True)
    assert {name for name, _ in trainer.model.named_parameters()} - set(found) == {
        f"transformer.h.{n}.{of}.weight"
        for n in range(2)
        for of in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }


def test_other_optimizers_are_refused():
    for optimizer_of, words in (
        (lambda p: Adafactor(p, lr=1e-3, scale_parameter=False, relative_step=False), "keeps RMS, exp_avg_sq_col"),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), "keeps momentum_buffer of weight"),
    ):
        optimizer, model = one_gradient(optimizer_of, steps=1)
        with pytest.raises(ValueError, match=words):
            fisher_from_optimizer(optimizer, model, batch_tokens=1)
    optimizer, model = one_gradient(torch.optim.AdamW, steps=1)
    eight_bit = {"state1": torch.zeros(2), "state2": torch.zeros(2), "step": 1}
    optimizer.state[model.weight] = eight_bit
    with pytest.raises(ValueError, match="keeps state1, state2 of weight.*8-bit"):
        fisher_from_optimizer(optimizer, model, batch_tokens=1)
    with pytest.raises(ValueError, match="holds none of the model's parameters"):
        fisher_from_optimizer(optimizer, nn.Linear(2, 2), batch_tokens=1)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("optimizer_0/.metadata", "in FSDP's shards; save it with FULL_STATE_DICT"),
        ("global_step3/states.pt", "DeepSpeed's flattened parts"),
    ],
)
def test_states_that_carry_no_names_are_refused_in_one_line(tmp_path, name, words):
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=words) as caught:
        fisher_from_optimizer(tmp_path, batch_tokens=1)
    assert "\n" not in str(caught.value)


def test_what_is_not_there_is_said(tmp_path, trained):
    checkpoint, trainer = trained
    with pytest.raises(FileNotFoundError, match=r"holds no optimizer\.pt"):
        fisher_from_optimizer(tmp_path, batch_tokens=1)
    (tmp_path / "optimizer.pt").write_bytes((checkpoint / "optimizer.pt").read_bytes())
    with pytest.raises(ValueError, match="pass the model"):
        fisher_from_optimizer(tmp_path, batch_tokens=1)
    with pytest.raises(ValueError, match="pass the model that it trains"):
        fisher_from_optimizer(trainer.optimizer, batch_tokens=1)
    smaller = json.loads((checkpoint / "config.json").read_text()) | {"n_layer": 1}
    (tmp_path / "config.json").write_text(json.dumps(smaller))
    with pytest.raises(ValueError, match="the optimizer's groups hold"):
        fisher_from_optimizer(tmp_path, batch_tokens=1)
