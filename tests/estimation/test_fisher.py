"""The Fisher diagonal against a loop that backpropagates one sequence at a time through the stock class."""

import copy
import logging

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config
from transformers.modeling_outputs import CausalLMOutput
from transformers.models.nanochat import NanoChatConfig

from hf_progressive.estimation.fisher import estimate_fisher, fisher_flops
from hf_progressive.estimation.subspace import learn_subspace

GPT2 = {"n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 16, "vocab_size": 61}
LLAMA = {
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 16,
    "vocab_size": 61,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
CONFIGS = {
    "gpt2": GPT2Config(**GPT2),
    "gpt2-untied": GPT2Config(**GPT2, tie_word_embeddings=False),
    "llama": LlamaConfig(**LLAMA, tie_word_embeddings=False),
    "llama-tied-bias": LlamaConfig(**LLAMA, tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    "qwen2": Qwen2Config(**LLAMA, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**LLAMA, tie_word_embeddings=False),
    "mistral": MistralConfig(**LLAMA),
    "nanochat": NanoChatConfig(**(LLAMA | {"pad_token_id": 1})),
}


def from_config(config, dtype=torch.float64):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).to(dtype)
    with torch.no_grad():  # away from initial zeros and ones, where mistakes hide
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def build(name, dtype=torch.float64):
    return from_config(copy.deepcopy(CONFIGS[name]), dtype)


def random_ids(count=5, length=9, vocab=61):
    return torch.randint(vocab, (count, length), generator=torch.Generator().manual_seed(1))


def token_losses(model, ids, targets):
    """Nats of the targets of positions 0 … T−2 of one sequence, (T − 1,)."""
    logits = model(input_ids=ids[None]).logits[0, :-1]
    return -torch.log_softmax(logits, dim=-1)[torch.arange(len(targets)), targets]


def squared_gradients(model, loss):
    gradients = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True, allow_unused=True)
    named = zip(model.named_parameters(), gradients, strict=True)
    return {name: torch.zeros_like(p) if g is None else g**2 for (name, p), g in named}


def mean_of_squares(model, losses):
    """Σ (∇ loss)² / tokens, where each entry of `losses` is (weight, loss of whole sequence, tokens in it)."""
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for weight, loss, tokens in losses:
        for name, square in squared_gradients(model, loss).items():
            total[name] += weight * square / tokens
    return total


def slow_fisher(model, ids):
    """The sequence definition, term by term."""
    model.eval()
    tokens = len(ids) * (ids.shape[1] - 1)
    return mean_of_squares(model, ((1, token_losses(model, row, row[1:]).sum(), tokens) for row in ids))


def assert_same(actual, expected, rtol=1e-10):
    assert list(actual) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=rtol, atol=rtol * float(value.max()), msg=name)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("name", CONFIGS)
def test_equals_a_loop_over_sequences(name, batched, caplog):
    model, ids = build(name), random_ids()
    expected = slow_fisher(model, ids)
    batches = [ids[:2], {"input_ids": ids[2:]}]
    actual = estimate_fisher(model, batches, definition="sequence", batched=batched)
    assert_same(actual, expected)
    assert not caplog.records  # no falling back


def test_is_not_the_square_of_a_batch_mean():
    model, ids = build("gpt2").eval(), random_ids()
    losses = torch.stack([token_losses(model, row, row[1:]).sum() for row in ids])
    square_of_mean = squared_gradients(model, losses.mean())["transformer.wte.weight"].sum()
    mean_of_square = estimate_fisher(model, [ids], definition="sequence")["transformer.wte.weight"].sum() * (
        ids.shape[1] - 1
    )
    assert square_of_mean < 0.5 * mean_of_square


@pytest.mark.parametrize("kind", ["empirical", "true"])
@pytest.mark.parametrize("definition", ["sequence", "token"])
def test_batching_and_padding_change_nothing(kind, definition):
    model, ids = build("llama"), random_ids(count=3, length=8)
    options = {"kind": kind, "definition": definition, "seed": 5}
    one_by_one = estimate_fisher(model, [ids[:1, :6], ids[1:2], ids[2:, :7]], **options)
    mask = torch.tensor([[1] * 6 + [0] * 2, [1] * 8, [1] * 7 + [0]])
    padded = {"input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask}
    assert_same(estimate_fisher(model, [padded], **options), one_by_one)
    whole = {"input_ids": ids, "labels": ids.clone()}
    expected = estimate_fisher(model, [ids[:1], ids[1:]], **options)
    assert_same(estimate_fisher(model, [whole], **options), expected)
    assert_same(estimate_fisher(model, [whole], **options, batched=False), expected)


def test_ignored_labels_are_no_targets():
    model, ids = build("gpt2").eval(), random_ids(count=2)
    labels = ids.clone()
    labels[:, :4] = -100
    losses = [(1, token_losses(model, row, row[1:])[3:].sum(), 2 * 5) for row in ids]
    batch = {"input_ids": ids, "labels": labels}
    assert_same(estimate_fisher(model, [batch], definition="sequence"), mean_of_squares(model, losses))


TINY = GPT2Config(n_layer=1, n_embd=4, n_head=1, n_positions=4, vocab_size=5)


@pytest.mark.parametrize(("kind", "definition"), [("true", "sequence"), ("true", "token"), ("empirical", "token")])
def test_random_estimates_have_the_stated_expectation(kind, definition):
    model, ids = from_config(TINY).eval(), torch.tensor([3, 0, 4])
    if kind == "true":  # the mean over every pair of targets, each at its probability
        probabilities = model(input_ids=ids[None]).logits[0].softmax(-1).detach()
        pairs = torch.cartesian_prod(torch.arange(5), torch.arange(5))
        exact = mean_of_squares(
            model, ((probabilities[[0, 1], p].prod(), token_losses(model, ids, p).sum(), 2) for p in pairs)
        )
    else:  # the sum over single tokens
        exact = mean_of_squares(model, ((1, loss, 2) for loss in token_losses(model, ids, ids[1:])))
    copies = ids.expand(4000, -1)
    estimate = estimate_fisher(model, copies.split(500), kind=kind, definition=definition)
    flat_estimate, flat_exact = (torch.cat([v.flatten() for v in f.values()]) for f in (estimate, exact))
    assert (flat_estimate - flat_exact).norm() < 0.05 * flat_exact.norm()


def test_sampled_targets_make_both_definitions_one():
    # Scores of independently sampled targets are uncorrelated, so the information of a sequence is that of its tokens.
    model, ids = from_config(TINY).eval(), torch.tensor([3, 0, 4])
    probabilities = model(input_ids=ids[None]).logits[0].softmax(-1).detach()
    pairs = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    weights = [probabilities[[0, 1], pair].prod() for pair in pairs]
    losses = [token_losses(model, ids, pair) for pair in pairs]
    sequence = mean_of_squares(model, ((w, loss.sum(), 2) for w, loss in zip(weights, losses, strict=True)))
    token = mean_of_squares(model, ((w, t, 2) for w, loss in zip(weights, losses, strict=True) for t in loss))
    assert_same(sequence, token)


def test_the_model_is_left_as_it_was():
    model, ids = build("gpt2"), random_ids()
    model.train()
    model.transformer.h[0].eval()
    model.transformer.wpe.weight.requires_grad_(False)
    model.lm_head.weight.grad = torch.ones_like(model.lm_head.weight)
    modes = [module.training for module in model.modules()]
    first, second = (estimate_fisher(model, [ids], batched=b) for b in (True, False))
    assert_same(first, second)  # with dropout on they would differ
    assert first["transformer.wpe.weight"].any()
    assert [module.training for module in model.modules()] == modes
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["transformer.wpe.weight"]
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["transformer.wte.weight"]
    assert (model.lm_head.weight.grad == 1).all()


class ScaledBlock(nn.Module):
    """A layer with a parameter no closed form is known for."""

    def __init__(self, width):
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, width))

    def forward(self, x):
        return torch.tanh(x * self.scale).cumsum(-1)


class UnusualModel(nn.Module):
    """A causal language model of pieces whose sequences can, or cannot, be told apart."""

    def __init__(self, vocab=61, width=8, *, flatten=False, functional=False):
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        self.block, self.norm = ScaledBlock(width), nn.RMSNorm(width)
        self.twice = nn.Linear(width, width)
        self.head = nn.Linear(width, vocab, bias=False)
        self.unused = nn.Linear(2, 2)
        self.flatten, self.functional = flatten, functional

    def forward(self, input_ids, attention_mask=None, use_cache=False):
        x = self.norm(self.block(self.embed(input_ids)))
        x = x + self.twice(torch.tanh(self.twice(x)))
        if self.flatten:
            x = self.twice(x.flatten(0, 1)).view_as(x)
        logits = x @ self.embed.weight.T if self.functional else self.head(x)
        return CausalLMOutput(logits=logits)


@pytest.mark.parametrize("compiled", ["wrapped", "in place"])
def test_a_compiled_model_is_not_compiled_anew_for_its_hooks(compiled):
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    plain, ids = build("gpt2"), random_ids()
    model = copy.deepcopy(plain)
    if compiled == "wrapped":
        model = torch.compile(model, backend=backend)
    else:
        model.compile(backend=backend)
    fisher = estimate_fisher(model, [ids], definition="sequence")
    learn_subspace(model, [ids], source="gradients")
    learn_subspace(model, [ids], source="activations")
    assert not graphs
    assert_same({name.removeprefix("_orig_mod."): value for name, value in fisher.items()}, slow_fisher(plain, ids))
    model(input_ids=ids)
    assert graphs  # and afterwards it is compiled as ever


def test_layers_without_a_closed_form(caplog):
    torch.manual_seed(0)
    model, ids = UnusualModel().double(), random_ids()
    assert_same(estimate_fisher(model, [ids[:3], ids[3:]], definition="sequence"), slow_fisher(model, ids))
    assert not caplog.records


@pytest.mark.parametrize("oddity", ["flatten", "functional"])
def test_a_model_that_cannot_be_batched_is_taken_one_by_one(oddity, caplog):
    torch.manual_seed(0)
    model, ids = UnusualModel(**{oddity: True}).double(), random_ids()
    with caplog.at_level(logging.WARNING):
        actual = estimate_fisher(model, [ids[:3], ids[3:]], definition="sequence")
    assert_same(actual, slow_fisher(model, ids))
    assert "one by one" in caplog.text


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
def test_values_are_float32_whatever_the_model(dtype, rtol):
    model, ids = build("qwen3", dtype), random_ids()
    actual = estimate_fisher(model, [ids], definition="sequence")
    assert {value.dtype for value in actual.values()} == {torch.float32}
    expected = slow_fisher(model.double(), ids)
    total = sum(value.sum() for value in expected.values())
    assert abs(sum(value.double().sum() for value in actual.values()) - total) < rtol * total


def test_normalized_entries_average_one():
    model, ids = build("gpt2"), random_ids()
    raw, normalized = (estimate_fisher(model, [ids], normalize=n) for n in (None, "mean"))
    flat = torch.cat([value.flatten() for value in normalized.values()])
    torch.testing.assert_close(flat.mean(), torch.ones_like(flat[0]))
    scale = raw["transformer.ln_f.bias"][0] / normalized["transformer.ln_f.bias"][0]
    assert_same(raw, {name: scale * value for name, value in normalized.items()})


def test_costs_the_flops_stated():
    model, ids = build("llama", torch.float32), random_ids(count=4, length=16)
    with FlopCounterMode(display=False) as training:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    with FlopCounterMode(display=False) as fisher:
        estimate_fisher(model, [ids])
    assert fisher.get_total_flops() == pytest.approx(training.get_total_flops(), rel=0.02)
    parameters = model.num_parameters()
    stated = fisher_flops(
        tokens=ids.numel(),
        sequences=len(ids),
        parameters=parameters,
        training_flops_per_token=training.get_total_flops() / ids.numel(),
    )
    assert stated == pytest.approx(training.get_total_flops() + 2 * parameters * len(ids))


def test_a_damaged_model_is_named():
    model = build("gpt2")
    with torch.no_grad():
        model.transformer.ln_f.bias[3] = float("nan")
    with pytest.raises(ValueError, match="transformer.wte.weight is not finite"):
        estimate_fisher(model, [random_ids()])


@pytest.mark.parametrize(
    ("batches", "options", "message"),
    [
        ([], {}, "no target token; give at least one sequence of two tokens"),
        ([torch.zeros(3, 1, dtype=torch.long)], {}, "no target token"),
        ([torch.zeros(3, dtype=torch.long)], {}, r"input_ids has shape \(3,\); token ids of shape \(B, T\)"),
        ({"input_ids": torch.zeros(1, 3, dtype=torch.long)}, {}, r"a batch is the text 'input_ids'; give a list of"),
        ([{"labels": torch.zeros(1, 3, dtype=torch.long)}], {}, r"keys \['labels'\], but no input_ids"),
        (
            [{"input_ids": torch.zeros(1, 3, dtype=torch.long), "labels": torch.zeros(1, 2, dtype=torch.long)}],
            {},
            r"labels has shape \(1, 2\), input_ids \(1, 3\)",
        ),
        ([{"input_ids": [[1, 2, 3]]}], {}, r"input_ids is a list of numbers; give a tensor, .* return_tensors='pt'"),
        ([{"input_ids": [1, 2, 3]}], {}, "and a DataLoader with a data collator of a dataset's examples"),
        ([{"input_ids": torch.ones(3).long()}], {}, "are needed; a DataLoader makes batches of a dataset's examples"),
        ([{"input_ids": torch.ones(1, 3).numpy()}], {}, "input_ids is an ndarray of numbers; give a tensor"),
        ([torch.zeros(1, 20, dtype=torch.long)], {}, "sequences have 20 tokens, .* learned positions; cut them to"),
        ([torch.full((1, 3), 70)], {}, "sequences hold the token id 70, .*; take the model's own tokenizer"),
        ([], {"kind": "real"}, "kind is 'real'; it must be one of 'empirical', 'true'"),
        ([], {"definition": "batch"}, "definition is 'batch'; it must be one of 'sequence', 'token'"),
        ([], {"normalize": "max"}, "normalize is 'max'; it must be one of None, 'mean'"),
    ],
)
def test_mistakes_are_named(batches, options, message):
    with pytest.raises(ValueError, match=message):
        estimate_fisher(build("gpt2"), batches, **options)
