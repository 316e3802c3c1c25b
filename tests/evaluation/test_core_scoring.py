"""Batched scores against one whole sequence at a time, over architectures, and the choice that follows from them."""

import random

import pytest
import torch
from core_reference import read_one, stock
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from hf_progressive.evaluation.core.forward import can_reuse_prefixes
from hf_progressive.evaluation.core.prompts import Request, Row, common_prefix
from hf_progressive.evaluation.core.scoring import RowScore, judge, score_requests

VOCABULARY = 48
LLAMA_LIKE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL_HEADS = {**LLAMA_LIKE, "num_key_value_heads": 1, "head_dim": 8}
ARCHITECTURES = {
    "gpt2": ("gpt2", {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 128}),
    "llama": ("llama", SMALL_HEADS),
    "nanochat, soft-capped logits": ("nanochat", {**LLAMA_LIKE, "num_key_value_heads": 2}),
    "mistral, sliding window": ("mistral", {**SMALL_HEADS, "sliding_window": 12}),
    "gemma2, alternating windows": ("gemma2", {**SMALL_HEADS, "sliding_window": 12, "query_pre_attn_scalar": 8}),
    "gpt_neox": ("gpt_neox", LLAMA_LIKE),
    "opt, learned positions": (
        "opt",
        {
            "hidden_size": 16,
            "ffn_dim": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "word_embed_proj_dim": 16,
        },
    ),
    "bloom, ALiBi": ("bloom", {"hidden_size": 16, "n_layer": 2, "n_head": 2}),
    "granite, scaled logits": ("granite", {**LLAMA_LIKE, "logits_scaling": 4.0}),
    "lfm2, attention and recurrent": ("lfm2", {**SMALL_HEADS, "layer_types": ["conv", "full_attention"]}),
    "mamba, recurrent": ("mamba", {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}),
}


def build_model(architecture):
    torch.manual_seed(0)
    model_type, fields = ARCHITECTURES[architecture]
    config = AutoConfig.for_model(
        model_type, vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0, pad_token_id=None, **fields
    )
    model = AutoModelForCausalLM.from_config(config).double().eval()
    # Embeddings as large as in a trained model, or every answer hangs on rounding.
    model.get_input_embeddings().weight.data.mul_(20)
    return model


def make_request(rng, options, context, scored):
    """Options of different lengths after one context; several scored tokens, some of them shared."""
    prefix = [rng.randrange(VOCABULARY) for _ in range(context)]
    rows = []
    for _ in range(options):
        continuation = [rng.randrange(VOCABULARY) for _ in range(rng.randint(1, scored))]
        rows.append(Row(tuple(prefix + continuation), rng.randint(max(context - 1, 1), context)))
    return Request(tuple(rows), gold=rng.randrange(options), truncated=False)


def varied_requests():
    rng = random.Random(3)
    requests = [make_request(rng, rng.choice([1, 2, 4]), rng.choice([1, 3, 17, 40, 42]), 6) for _ in range(12)]
    # Options that end differently only, twice the same option, and one that begins another.
    stem = tuple(rng.randrange(VOCABULARY) for _ in range(30))
    requests.append(Request((Row((*stem, 1), 30), Row((*stem, 2), 30), Row((*stem, 3), 30)), 2, False))
    requests.append(Request((Row((*stem, 1, 2), 30), Row((*stem, 1, 2), 30), Row((*stem, 3), 30)), 1, False))
    requests.append(Request((Row((*stem, 1), 30), Row((*stem, 1, 4), 30)), 1, False))
    return requests


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("batch_size", [1, 5])
def test_scores_are_those_of_whole_sequences(architecture, batch_size):
    model, requests = build_model(architecture), varied_requests()
    reuse = can_reuse_prefixes(model)
    assert reuse == ("recurrent" not in architecture)
    seen = []
    scores = score_requests(model, requests, batch_size=batch_size, reuse_prefixes=reuse, on_rows=seen.append)
    assert sum(seen) == sum(len(request.rows) for request in requests)
    for request, request_scores in zip(requests, scores, strict=True):
        for row, score in zip(request.rows, request_scores, strict=True):
            loss, greedy = read_one(stock(model), list(row.tokens), len(row.tokens) - row.start)
            assert score.loss == pytest.approx(loss, abs=1e-6)
            assert (score.greedy, score.tied) == (greedy, False)


@settings(max_examples=15)
@given(seed=st.integers(0, 2**32), batch_size=st.integers(1, 9))
def test_neither_batches_nor_shared_prefixes_change_a_score(seed, batch_size):
    rng = random.Random(seed)
    model = build_model("gpt2")
    requests = [make_request(rng, rng.randint(1, 4), rng.randint(1, 60), 8) for _ in range(rng.randint(1, 12))]
    alone = [score_requests(model, [request], batch_size=1, reuse_prefixes=False)[0] for request in requests]
    batched = score_requests(model, requests, batch_size=batch_size, reuse_prefixes=True)
    for expected, got in zip(alone, batched, strict=True):
        assert [score.loss for score in got] == pytest.approx([score.loss for score in expected], abs=1e-9)
        assert [score.greedy for score in got] == [score.greedy for score in expected]


def test_float32_answers_do_not_depend_on_the_batch():
    model, requests = build_model("llama").float(), varied_requests()
    answers = [
        [*map(judge, requests, score_requests(model, requests, batch_size=size, reuse_prefixes=reuse))]
        for size, reuse in [(1, False), (1, True), (7, True), (64, False)]
    ]
    assert all(other == answers[0] for other in answers[1:])


def count_tokens(model):
    """Record the shape of what the embedding and the output head are given."""
    shapes = {"read": [], "logits": []}
    model.get_input_embeddings().register_forward_pre_hook(lambda _, args: shapes["read"].append(args[0].numel()))
    model.get_output_embeddings().register_forward_hook(
        lambda _, args, out: shapes["logits"].append(out.numel() // VOCABULARY)
    )
    return shapes


def test_a_shared_context_is_read_once_and_logits_are_for_scored_tokens_only():
    model = build_model("gpt2")
    rng = random.Random(0)
    stem = tuple(rng.randrange(VOCABULARY) for _ in range(100))
    options = [tuple(rng.randrange(VOCABULARY) for _ in range(3)) for _ in range(4)]
    request = Request(tuple(Row(stem + option, 100) for option in options), 0, False)
    assert common_prefix([row.tokens for row in request.rows]) == 100
    shapes = count_tokens(model)
    score_requests(model, [request] * 2, batch_size=8, reuse_prefixes=True)
    # 99 tokens once per example; then the context's last token and all but the last of each option.
    assert shapes["read"] == [2 * 99, 2 * 4 * 3]
    assert sum(shapes["logits"]) == 2 * 4 * 3

    shapes = count_tokens(model)
    letters = Request(tuple(Row((*stem, letter), 100) for letter in range(4)), 0, False)
    score_requests(model, [letters], batch_size=8, reuse_prefixes=True)
    assert shapes["read"] == [99, 1]
    assert shapes["logits"] == [4]


def test_padding_is_kept_small_and_batches_full():
    model = build_model("gpt2")
    rng = random.Random(0)
    requests = [make_request(rng, 1, context, 1) for context in [20] * 8 + [100] * 8]
    shapes = count_tokens(model)
    score_requests(model, requests, batch_size=8, reuse_prefixes=False)
    assert shapes["read"] == [800, 160]


def test_the_last_layer_reads_no_shared_context():
    model = build_model("llama")
    layers = [[], []]
    for layer, read in zip(model.model.layers, layers, strict=True):
        layer.mlp.register_forward_pre_hook(lambda _, args, read=read: read.append(args[0].shape[:2].numel()))
    rng = random.Random(0)
    score_requests(model, [make_request(rng, 1, 100, 1) for _ in range(3)], reuse_prefixes=True)
    assert [sum(read) for read in layers] == [3 * 100, sum(layers[1])]
    assert sum(layers[1]) <= 3 * 2


def test_what_does_not_fit_into_memory_is_halved(monkeypatch):
    model, requests = build_model("llama"), varied_requests()
    expected = score_requests(model, requests, reuse_prefixes=True)
    forward, sizes = model.model.forward, []

    def in_little_memory(input_ids, **arguments):
        sizes.append(len(input_ids))
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError
        return forward(input_ids=input_ids, **arguments)

    monkeypatch.setattr(model.model, "forward", in_little_memory)
    seen = []
    halved = score_requests(model, requests, reuse_prefixes=True, on_rows=seen.append)
    assert max(sizes) > 2
    assert sum(seen) == sum(len(request.rows) for request in requests)
    for one, other in zip(expected, halved, strict=True):
        assert [score.loss for score in one] == pytest.approx([score.loss for score in other], abs=1e-9)


def test_a_head_that_is_not_a_module_is_scored_all_the_same():
    model = build_model("gpt2")
    expected = score_requests(model, varied_requests(), batch_size=4, reuse_prefixes=True)
    model.get_output_embeddings = lambda: None
    scored = score_requests(model, varied_requests(), batch_size=4, reuse_prefixes=True)
    for one, other in zip(expected, scored, strict=True):  # the last bit of a product depends on how it is cut, too
        assert [score.loss for score in one] == pytest.approx([score.loss for score in other], abs=1e-9)
        assert [(score.greedy, score.tied) for score in one] == [(score.greedy, score.tied) for score in other]


def test_under_autocast_the_head_alone_keeps_float32():
    model = build_model("llama").float()
    seen = []
    model.lm_head.register_forward_hook(lambda module, args, out: seen.append((args[0].dtype, out.dtype)))
    model.model.layers[0].mlp.gate_proj.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        score_requests(model, varied_requests(), reuse_prefixes=True)
        assert torch.is_autocast_enabled("cpu")
    assert set(seen) == {torch.bfloat16, (torch.float32, torch.float32)}


def test_the_model_is_left_as_it_was():
    model = build_model("gpt2")
    score_requests(model, varied_requests(), batch_size=4, reuse_prefixes=True)
    assert not model.lm_head._forward_pre_hooks
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()


def test_a_broken_model_is_refused():
    model = build_model("gpt2")
    model.transformer.ln_f.weight.data[0] = float("nan")
    with pytest.raises(ValueError, match="the model's loss is not a number; its weights are damaged"):
        score_requests(model, varied_requests(), batch_size=4, reuse_prefixes=True)


def test_a_config_by_which_every_loss_is_nan_is_named():
    model = build_model("granite, scaled logits")
    model.config.logits_scaling = 0.0
    with pytest.raises(
        ValueError, match="is not a number; logits_scaling: expected a finite number other than 0, got"
    ):
        score_requests(model, varied_requests(), batch_size=4, reuse_prefixes=True)


def test_float64_is_only_used_on_the_host(monkeypatch):
    """MPS has none."""
    model, requests, calls = build_model("gpt2"), varied_requests(), []

    def recorded(name, stock):
        return lambda tensor, *args: calls.append(name) or stock(tensor, *args)

    for name in ("cpu", "double"):
        monkeypatch.setattr(torch.Tensor, name, recorded(name, getattr(torch.Tensor, name)))
    score_requests(model, requests, reuse_prefixes=False)
    assert calls.index("cpu") < calls.index("double")


LOW, HIGH = RowScore(1.0, False, False), RowScore(2.0, True, False)


@pytest.mark.parametrize(
    ("scores", "gold", "correct", "tied"),
    [
        ([HIGH, LOW], 1, True, False),
        ([HIGH, LOW], 0, False, False),
        ([HIGH, LOW, LOW], 1, True, True),
        ([HIGH, LOW, LOW], 2, False, True),
        ([LOW, HIGH, HIGH], 0, True, False),
        ([HIGH], 0, True, False),
        ([LOW], 0, False, False),
        ([RowScore(1.0, True, True)], 0, True, True),
    ],
)
def test_the_first_of_the_lowest_is_chosen(scores, gold, correct, tied):
    request = Request(tuple(Row((0, 1), 1) for _ in scores), gold, truncated=True)
    answer = judge(request, scores)
    assert (answer.correct, answer.tied, answer.truncated) == (correct, tied, True)
