"""Low logits for new tokens: a direction as a dense calculation finds it, old logits untouched, a loss far lower."""

import json
import math

import pytest
import torch
from growth_checkpoints import save
from growth_models import build, config_of, norms_in_full_precision
from transformers import AutoConfig, AutoModelForCausalLM

from hf_progressive import cli
from hf_progressive.data import train_tokenizer
from hf_progressive.growth import (
    Family,
    WeightRule,
    families,
    grow_checkpoint,
    linear,
    norm,
    reads,
    register_family,
    writes,
)
from hf_progressive.growth.llama import LLAMA
from hf_progressive.growth.low_logits import direction, split_text
from hf_progressive.growth.verify import tokens_of

WORDS = "the rung grows from the rung below and what it knows it keeps while a word more or less is new to it"
TEXT = " ".join(WORDS.split()[i * i % 23] for i in range(200))
VOCABULARY, LENGTH, ROWS = 270, 16, 40
WIDER = {
    "gpt_neox": {"hidden_size": 24, "num_attention_heads": 3},
    "gpt2": {"n_embd": 24, "n_head": 3},
    "granite": {"hidden_size": 24, "num_attention_heads": 3, "num_key_value_heads": 3},
}


def source_of(folder, model_type, *, tied, width=16, mean=1.0, **fields):
    """A parent in float64 whose hidden states have a mean, as those of trained models do, and its tokenizer."""
    config = config_of(model_type, width=width, heads=2, kv_heads=2, vocab=VOCABULARY, positions=LENGTH,
                       tie_word_embeddings=tied, **fields)  # fmt: skip
    model = build(config)
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(mean * torch.linspace(-1, 1, width))
    save(model, folder)
    train_tokenizer([WORDS], vocab_size=VOCABULARY, training_bytes=1000).save_pretrained(folder)
    return folder


def loaded(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()


@torch.no_grad()
def states_and_logits(model, blocks):
    """What the stock class's base model hands to the head, and the logits, token by token."""
    with norms_in_full_precision(model):
        pairs = [(model.base_model(block[None])[0][0], model(block[None]).logits[0]) for block in blocks]
    states, logits = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return states, logits


def test_the_direction_is_the_solution_of_the_dense_system():
    torch.manual_seed(0)
    for count, width in ((40, 7), (5, 7), (1, 7)):
        states = torch.randn(count, width, dtype=torch.float64) + 2
        mean = states.mean(0)
        covariance = sum(torch.outer(h - mean, h - mean) for h in states) / count
        ridge = covariance.trace() / width + (count == 1)
        expected = torch.linalg.inv(covariance + ridge * torch.eye(width, dtype=torch.float64)) @ mean
        torch.testing.assert_close(direction(states), expected / (expected @ mean), rtol=1e-9, atol=1e-12)
    states = torch.randn(400, 7, dtype=torch.float64) * torch.tensor([5, 1, 1, 1, 1, 1, 1]) + 2
    along_mean = states @ states.mean(0) / states.mean(0).square().sum()
    assert (states @ direction(states)).var() < 0.6 * along_mean.var()


@pytest.mark.parametrize(
    ("model_type", "tied", "fields"),
    [
        ("gpt2", True, {}),
        ("granite", False, {"logits_scaling": 4.0}),
        pytest.param("gpt_neox", False, {}, marks=pytest.mark.slow),  # whose head has another name in files
    ],
)
def test_new_logits_fall_by_what_is_asked_in_the_mean_and_nothing_else_changes(model_type, tied, fields, tmp_path):
    source = source_of(tmp_path / "source", model_type, tied=tied, **fields)
    target = WIDER[model_type] | {"vocab_size": VOCABULARY + ROWS}
    options = {"init_std": 0.0, "text": TEXT, "progress": False}  # no noise on the rows
    grow_checkpoint(source, tmp_path / "plain", target, **options)
    report = grow_checkpoint(source, tmp_path / "low", target, low_logits=8, **options)
    parent, plain, low = (loaded(tmp_path / name) for name in ("source", "plain", "low"))

    measured, fitted = split_text(tokens_of(source, TEXT), 4, LENGTH)
    blocks = fitted.split(LENGTH)
    states, _ = states_and_logits(parent, blocks)
    _, before = states_and_logits(plain, blocks)
    _, after = states_and_logits(low, blocks)
    assert torch.equal(before[:, :VOCABULARY], after[:, :VOCABULARY])
    fall = before[:, VOCABULARY:] - after[:, VOCABULARY:]  # (T, new)
    expected = 8 * states @ direction(states)
    torch.testing.assert_close(fall, expected[:, None].expand_as(fall), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(fall.mean(0), torch.full((ROWS,), 8.0, dtype=torch.float64), rtol=1e-8, atol=0)
    head = low.get_output_embeddings().weight
    for name, tensor in low.state_dict().items():
        same = tensor == plain.state_dict()[name]
        assert same.all() or (tensor.shape == head.shape and same[:VOCABULARY].all()), name

    losses = []
    for model in (plain, low):
        _, logits = states_and_logits(model, measured.split(LENGTH))
        losses.append((logits.logsumexp(-1) - logits[:, :VOCABULARY].logsumexp(-1)).mean().item())
    check = report.verification
    assert check.preserved
    assert check.text_tokens == len(measured)
    assert [check.new_token_loss_at_mean, check.new_token_loss] == pytest.approx(losses, rel=1e-6)
    assert losses[1] < losses[0] / 300
    told = f"old predictions lose {losses[1]:.2g} nat a token to new tokens ({losses[0]:.2g} before their logits were"
    assert told in check.describe()
    record = json.loads((tmp_path / "low" / "growth.json").read_text())
    assert record["low_logits"] == 8
    assert any("new logits lowered by 8 nat" in rule for rule in record["plan"]["rules"])


def test_noise_of_new_rows_moves_their_logits_by_no_more_than_about_a_nat(tmp_path):
    source = source_of(tmp_path / "source", "llama", tied=False)
    options = {"init_std": 2.0, "progress": False, "seed": 3}
    target = {"vocab_size": VOCABULARY + ROWS}
    grow_checkpoint(source, tmp_path / "plain", target, verify=False, **options)
    report = grow_checkpoint(source, tmp_path / "low", target, text=TEXT, low_logits=8, **options)
    plain, low = (loaded(tmp_path / name).lm_head.weight.detach() for name in ("plain", "low"))
    states, logits = states_and_logits(loaded(tmp_path / "low"), tokens_of(source, TEXT)[-64:].split(LENGTH))
    assert 0.5 < logits[:, VOCABULARY:].std(1).mean() < 1.5
    noise = plain[VOCABULARY:] - plain[:VOCABULARY].mean(0)
    kept = low[VOCABULARY:] - low[VOCABULARY:].mean(0)
    share = (kept.norm() / (noise - noise.mean(0)).norm()).item()
    torch.testing.assert_close(kept, share * (noise - noise.mean(0)), rtol=1e-6, atol=1e-9)
    assert share < 0.3
    assert report.verification.new_token_loss < report.verification.new_token_loss_at_mean / 300


def test_lower_logits_that_cost_more_than_they_save_are_warned_of(tmp_path, caplog):
    target = {"vocab_size": VOCABULARY + ROWS}
    for mean, told in ((1.0, False), (0.0, True)):
        source = source_of(tmp_path / f"of {mean}", "llama", tied=False, mean=mean)
        grow_checkpoint(source, tmp_path / f"plain {mean}", target, verify=False)
        grow_checkpoint(source, tmp_path / f"low {mean}", target, text=TEXT, low_logits=10, progress=False)
        measured = split_text(tokens_of(source, TEXT), 4, LENGTH)[0].split(LENGTH)
        before, plain, low = (
            states_and_logits(loaded(tmp_path / f"{name} {mean}"), measured)[1].logsumexp(-1)
            for name in ("of", "plain", "low")
        )
        saved = (plain - low).mean().item()
        assert (saved < 0) == told
        assert (f"low_logits=10: old predictions lose {(low - before).mean():.2g} nat a token" in caplog.text) == told
        assert (f"{(plain - before).mean():.2g} without it: the text's states have too little" in caplog.text) == told


def phi():
    """The table of Phi, whose output head has a bias."""
    layer, embedding = "model.layers.{layer}.", "model.embed_tokens.weight"
    return Family(
        model_type="phi",
        size_fields={**LLAMA.size_fields, "kv_heads": "num_key_value_heads"},
        rules=(
            WeightRule(embedding, (reads("vocab"), writes("embedding"))),
            *(rule for name, axis in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"))
              for rule in linear(f"{layer}self_attn.{name}", writes(axis), reads("normed"))),
            *linear(layer + "self_attn.dense", writes("residual"), reads("context"), closes=True),
            *linear(layer + "mlp.fc1", writes("mlp"), reads("normed")),
            *linear(layer + "mlp.fc2", writes("residual"), reads("mlp"), closes=True),
            *norm(layer + "input_layernorm", "gain", "shift"),
            *norm("model.final_layernorm", "final_gain", "final_shift"),
            WeightRule("lm_head.weight", (writes("vocab"), reads("final")), tied_to=embedding),
            WeightRule("lm_head.bias", (writes("vocab"),), "zeros"),
        ),
        norm="layer",
        eps_field="layer_norm_eps",
        prefix="model.",
        neutral_fields=frozenset({"resid_pdrop", "embd_pdrop"}),
        rotary=True,
        partial_rotary=True,
        gated=False,
        unsupported={"qk_layernorm": "its table has no such norms"},
    )  # fmt: skip


def test_a_bias_of_the_head_is_lowered_for_every_state_without_a_text(tmp_path, monkeypatch):
    monkeypatch.setattr(families, "FAMILIES", dict(families.FAMILIES))
    register_family(phi())
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = AutoConfig.for_model("phi", **sizes, vocab_size=40, max_position_embeddings=8)
    source = save(build(config), tmp_path / "source")
    grow_checkpoint(source, tmp_path / "plain", {"vocab_size": 48}, verify=False)
    report = grow_checkpoint(source, tmp_path / "low", {"vocab_size": 48}, low_logits=8)
    plain, low = (loaded(tmp_path / name) for name in ("plain", "low"))
    assert torch.equal(plain.lm_head.weight, low.lm_head.weight)
    torch.testing.assert_close(plain.lm_head.bias[40:] - low.lm_head.bias[40:], torch.full((8,), 8.0).double())
    check = report.verification
    assert check.preserved
    assert check.text_tokens == 0
    assert check.new_token_loss < check.new_token_loss_at_mean / 1000


def test_what_cannot_be_lowered_is_refused_in_one_line(tmp_path, capsys):
    source = source_of(tmp_path / "source", "gpt2", tied=True)
    (tmp_path / "text.txt").write_text(TEXT)
    text, more = ["--text", str(tmp_path / "text.txt")], ["--set", f"vocab_size={VOCABULARY + 3}"]
    grow = ["grow", str(source), str(tmp_path / "child"), "--low-logits", "8"]
    for words, said in (
        ([*grow, *more], "low_logits=8: the output head has no bias, and only on a text"),
        ([*grow, *text, "--set", "n_layer=3"], "low_logits=8: the vocabulary does not grow"),
        ([*grow, *text, *more, "--method", "random"], "low_logits=8: 'random' inherits no output head"),
    ):
        assert cli.main(words) == cli.EXIT_BAD_INPUT
        assert said in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"low_logits=nan: expected a number > 0"):
        grow_checkpoint(source, tmp_path / "child", {"vocab_size": 300}, text=TEXT, low_logits=math.nan)
    assert cli.main([*grow, *text, *more, "--no-verify"]) == 0
    assert cli.main(["verify", str(source), str(tmp_path / "child"), *text]) == 0
