"""Shrink, pad, perturb: the old matrices shrunk, zeros around them, a new model's noise on all."""

import pytest
import torch
from growth_checkpoints import gpt2, save
from growth_models import (
    FIRST_FAMILIES,
    build,
    config_of,
    fields_of,
    generator,
    grow,
    produce,
    relative_difference,
    tokens_for,
)

from hf_progressive.growth import grow_checkpoint
from hf_progressive.growth.growth_plan import plan_growth
from hf_progressive.storage import read_json

SMALL = {"width": 64, "heads": 8, "kv_heads": 8, "mlp": 96}
LARGE = {"width": 96, "heads": 12, "kv_heads": 12, "mlp": 150, "layers": 3}
families = pytest.mark.parametrize("model_type", FIRST_FAMILIES)


def padded(value, shape, fused, shrink):
    """Zeros with a shrunk matrix in the first rows and columns; a fused dimension is three parts in a row."""
    out = torch.zeros(shape, dtype=value.dtype)
    if not fused:
        out[tuple(slice(size) for size in value.shape)] = shrink * value
        return out
    parts = zip(out.chunk(3, -1), value.chunk(3, -1), strict=True)
    for place, part in parts:
        place[tuple(slice(size) for size in part.shape)] = shrink * part
    return out


@pytest.mark.parametrize(
    ("model_type", "tied"),
    [(name, tied) for name in FIRST_FAMILIES for tied in (True, False) if not (tied and name == "nanochat")],
)
def test_without_noise_it_is_zeros_around_shrunk_matrices(model_type, tied):
    parent = build(config_of(model_type, tie_word_embeddings=tied, **SMALL))
    child, plan = grow(parent, fields_of(model_type, **LARGE), method="shrink_pad_perturb", perturb=0.0)
    old = dict(parent.named_parameters())
    for name, value in child.named_parameters():
        source = name.replace(".2.", ".1.")  # the third layer is a copy of the last
        silent = source != name and plan.tensor(name).sources == ()
        if value.ndim == 2:
            dense = padded(old[source].data, value.shape, "c_attn" in name, 0.0 if silent else 0.4)
            assert torch.equal(value, dense), name
        elif not silent and "c_attn" not in name and "q_" not in name:
            units = slice(old[source].shape[0])
            torch.testing.assert_close(value[units], old[source], msg=name)
            if "norm" in name or "ln_" in name:
                mean = old[source].mean().item() if name.endswith("weight") else 0.0
                torch.testing.assert_close(value[64:], torch.full_like(value[64:], mean))


@families
def test_noise_is_that_of_a_new_model_on_old_entries_and_new_ones(model_type):
    parent = build(config_of(model_type, tie_word_embeddings=False, positions=64, vocab=64, **SMALL))
    target = fields_of(model_type, **LARGE)
    quiet = plan_growth(parent.config, target, method="shrink_pad_perturb", perturb=0.0)
    noisy = plan_growth(parent.config, target, method="shrink_pad_perturb", perturb=0.5)
    new = plan_growth(parent.config, target, method="random")  # whose distribution is checked with the stock class's
    without = produce(quiet, parent)
    for name, value in produce(noisy, parent).items():
        noise, drawn = value - without[name], new.tensor(name).fresh
        if value.ndim == 1:
            assert torch.equal(value, without[name]), name
            continue
        inherited = noisy.inherited_mask(name)
        for part in (noise[inherited], noise[~inherited]):
            if len(part):
                assert part.std().item() == pytest.approx(0.5 * drawn.std, rel=0.1), name
                assert part.mean().item() == pytest.approx(0.0, abs=0.05 * drawn.std), name


def test_defaults_are_the_methods_and_options_go_with_any_method():
    parent = build(config_of("llama", **SMALL))
    plan = plan_growth(parent.config, fields_of("llama", **LARGE), method="shrink_pad_perturb")
    assert plan.changes == (
        "the method 'shrink_pad_perturb' does not keep the function when it changes hidden_size, num_attention_heads,"
        " num_key_value_heads, intermediate_size",
        "old matrices are multiplied by 0.4",
        "matrices carry noise of 1 of a new model's",
    )
    assert plan.target_config.rms_norm_eps == parent.config.rms_norm_eps
    units = plan_growth(parent.config, {"intermediate_size": 150}, method="shrink_pad_perturb")
    assert units.changes[0].endswith("does not keep the function when it changes intermediate_size")
    same_size, plan = grow(parent, {}, method="exact", shrink=0.5, perturb=0.0)
    assert plan.changes == ("old matrices are multiplied by 0.5",)
    for name, value in same_size.named_parameters():
        expected = dict(parent.named_parameters())[name] * (0.5 if value.ndim == 2 else 1.0)
        assert torch.equal(value, expected)
    undone, plan = grow(parent, {"num_hidden_layers": 3}, method="shrink_pad_perturb", shrink=1.0, perturb=0.0)
    assert plan.preserves_function
    assert relative_difference(parent, undone, tokens_for(parent.config)) < 1e-12


def test_a_tensor_can_still_be_made_alone():
    parent = build(config_of("gpt2"))
    plan = plan_growth(parent.config, {"n_embd": 24, "n_head": 3, "n_layer": 3}, method="shrink_pad_perturb")
    weights, forward = dict(parent.named_parameters()), produce(plan, parent)
    for tensor in reversed(plan.tensors):
        assert torch.equal(tensor.produce(weights.__getitem__, generator(tensor.name, 0)), forward[tensor.name])


def test_a_checkpoints_report_and_record_say_what_changed_and_by_how_much(tmp_path):
    save(gpt2(), tmp_path / "parent")
    target = {"n_embd": 40, "n_head": 5, "n_layer": 3}
    report = grow_checkpoint(tmp_path / "parent", tmp_path / "child", target, method="shrink_pad_perturb", shrink=0.8)
    record = read_json(tmp_path / "child" / "growth.json")
    assert not report.preserves_function
    assert report.changes[1] == "old matrices are multiplied by 0.8"
    assert record["plan"]["changes"] == list(report.changes)
    assert record["options"]["shrink"] == 0.8
    assert record["verification"]["kl"] == report.verification.kl > 1e-3
    again = plan_growth(gpt2().config, target, method=record["method"], **record["options"])
    assert again.summary() == record["plan"]
