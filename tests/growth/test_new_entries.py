"""Which entries are new: by the plan, by the checkpoint's record, whole or for a shard."""

import json

import pytest
import torch
from growth_checkpoints import WIDER, gpt2, save
from growth_models import EVERY_FAMILY, build, config_of, fields_of, growth_pairs, produce
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from hf_progressive.growth import grow_checkpoint, new_entries, new_entry_masks, plan_growth
from hf_progressive.growth.new_entries import NewEntries

ALL_AXES = {"width": 24, "layers": 4, "heads": 3, "kv_heads": 3, "mlp": 31, "vocab": 37, "positions": 20}


@pytest.mark.parametrize("method", ["exact", "split"])
@pytest.mark.parametrize("model_type", EVERY_FAMILY)
def test_the_plan_knows_them_as_the_complement_of_what_is_inherited(model_type, method):
    @settings(
        max_examples=10,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(growth_pairs(model_type, method))
    def check(pair):
        plan = plan_growth(pair.source, pair.target, **pair.options)
        described = plan.new_entries()
        assert list(described) == [tensor.name for tensor in plan.tensors]
        for name, entries in described.items():
            assert entries.shape == plan.tensor(name).shape
            assert torch.equal(entries.mask(), ~plan.inherited_mask(name)), name
            assert entries.count == int(entries.mask().sum())

    check()


@pytest.mark.parametrize("method", ["exact", "stack", "random"])
@pytest.mark.parametrize(("model_type", "tied"), [("gpt2", True), ("llama", True), ("qwen3", False)])
def test_what_a_parent_of_nan_would_not_reach_is_new(model_type, tied, method):
    # The weights themselves as the witness: NaN spreads over all that comes from the parent, and nowhere else. A mere
    # copy of a layer comes from the parent too, and yet inherits nothing.
    parent = build(config_of(model_type, tie_word_embeddings=tied))
    for parameter in parent.parameters():
        parameter.data.fill_(torch.nan)
    plan = plan_growth(parent.config, fields_of(model_type, **ALL_AXES | {"vocab": 29}), method=method)
    copies = [layer.source is not None and not layer.heir for layer in plan.layers]
    for name, tensor in produce(plan, parent).items():
        index = next((int(part) for part in name.split(".") if part.isdigit()), None)
        mask = plan.new_entries()[name].mask()
        if index is not None and copies[index]:
            assert mask.all()
        elif tensor.ndim == 2 and name.endswith(("wte.weight", "wpe.weight", "c_proj.weight")) and method != "random":
            assert tensor[~mask].isnan().all()  # new channels of a LayerNorm model hold a mean of old ones
        elif tensor.ndim == 2:
            assert torch.equal(mask, ~tensor.isnan()), name


def test_a_checkpoints_record_says_what_its_plan_knows(tmp_path):
    model = gpt2()
    save(model, tmp_path / "parent")
    target = WIDER | {"n_inner": 150, "vocab_size": 100, "n_positions": 40}
    for method, options in {"exact": {"depth_position": [-1]}, "stack": {}, "split": {}, "random": {}}.items():
        folder = tmp_path / method
        grow_checkpoint(tmp_path / "parent", folder, target, method=method, verify=False, **options)
        plan = plan_growth(model.config, target, method=method, **options)
        assert new_entries(folder) == plan.new_entries()
        masks = new_entry_masks(folder)
        assert {name: mask.dtype for name, mask in masks.items()} == dict.fromkeys(masks, torch.bool)
        assert all(torch.equal(mask, ~plan.inherited_mask(name)) for name, mask in masks.items())


def test_a_family_of_grouped_heads_is_told_from_its_record_too(tmp_path):
    parent = build(config_of("llama", heads=4, kv_heads=2, tie_word_embeddings=False), dtype=torch.float32)
    save(parent, tmp_path / "parent")
    target = {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 16, "hidden_size": 24}
    grow_checkpoint(tmp_path / "parent", tmp_path / "child", target, verify=False)
    found, plan = new_entry_masks(tmp_path / "child"), plan_growth(parent.config, target)
    assert found
    assert all(torch.equal(mask, ~plan.inherited_mask(name)) for name, mask in found.items())


@st.composite
def entries_of_any_shape(draw):
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))

    def runs(size):
        cuts = sorted(draw(st.sets(st.integers(0, size), max_size=4)))
        return tuple(zip(cuts[::2], cuts[1::2], strict=False))

    return NewEntries(shape, tuple(runs(size) for size in shape), draw(st.booleans()))


@given(entries_of_any_shape(), st.data())
def test_a_mask_is_a_loop_over_entries_and_a_shards_is_its_part(entries, data):
    expected = torch.zeros(entries.shape, dtype=torch.bool)
    for place in torch.cartesian_prod(*map(torch.arange, entries.shape)).view(-1, len(entries.shape)).tolist():
        found = zip(place, entries.ranges, strict=True)
        expected[tuple(place)] = entries.whole or any(a <= at < b for at, runs in found for a, b in runs)
    assert torch.equal(entries.mask(), expected)
    assert entries.count == int(expected.sum())
    size = expected.numel()
    start = data.draw(st.integers(0, size))
    length = data.draw(st.integers(0, size - start))
    assert torch.equal(entries.of_shard(start, length), expected.flatten()[start : start + length])


def test_a_shard_beyond_the_tensor_is_refused():
    with pytest.raises(ValueError, match=r"a shard of 3 elements from 4 is not within a tensor of 6"):
        NewEntries((2, 3), ((), ())).of_shard(4, 3)


def test_a_checkpoint_that_was_not_grown_or_by_an_earlier_version_is_refused(parent, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no growth.json, so it was not grown"):
        new_entries(parent)
    grow_checkpoint(parent, tmp_path / "child", {"n_layer": 3}, verify=False)
    record = json.loads((tmp_path / "child" / "growth.json").read_text())
    del record["plan"]["new_units"]
    (tmp_path / "child" / "growth.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"does not say which units are new, as later versions do; grow the check"):
        new_entries(tmp_path / "child")
