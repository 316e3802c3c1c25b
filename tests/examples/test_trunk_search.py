"""The search trains what the stock classes are, and grows as the package grows."""

import json
import math

import analyse
import measured
import numpy as np
import plans
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import search
import torch
from architectures import CONTEXT, VOCABULARY, Architecture, Parts, initial, named
from network import Execution, Network
from packed_corpus import from_ten_bits, to_ten_bits, unpack
from stacked_growth import grow
from stacked_training import StackedTraining, adamw, reading_of, step_table
from transformers import AutoModelForCausalLM
from trunks import Group, Stage, Trunk

from hf_progressive.growth import grow_model

CPU = torch.device("cpu")
FAMILIES = ("llama", "gpt2")


@torch.no_grad()
def stock(architecture, weights, index, norm_eps=None):
    """The stock class with one of the models' weights."""
    model = AutoModelForCausalLM.from_config(architecture.config(norm_eps)).eval()
    top = named(weights.top[index], architecture.top)
    layers = [named(layer[index], architecture.layer) for layer in weights.layers]
    if architecture.family == "llama":
        model.model.embed_tokens.weight.copy_(top["embedding"])
        model.model.norm.weight.copy_(top["final_gain"])
        for block, layer in zip(model.model.layers, layers, strict=True):
            for name, value in zip("qkv", layer["qkv"].chunk(3), strict=True):
                getattr(block.self_attn, f"{name}_proj").weight.copy_(value)
            for name, value in zip(("gate", "up"), layer["mlp_in"].chunk(2), strict=True):
                getattr(block.mlp, f"{name}_proj").weight.copy_(value)
            block.self_attn.o_proj.weight.copy_(layer["attention_out"])
            block.mlp.down_proj.weight.copy_(layer["mlp_out"])
            block.input_layernorm.weight.copy_(layer["gain_1"])
            block.post_attention_layernorm.weight.copy_(layer["gain_2"])
        return model
    body = model.transformer
    body.wte.weight.copy_(top["embedding"])
    body.wpe.weight.copy_(top["positions"])
    body.ln_f.weight.copy_(top["final_gain"])
    body.ln_f.bias.copy_(top["final_shift"])
    for block, layer in zip(body.h, layers, strict=True):
        for module, name in (
            (block.attn.c_attn, "qkv"), (block.attn.c_proj, "attention_out"), (block.mlp.c_fc, "mlp_in"),
            (block.mlp.c_proj, "mlp_out"),
        ):  # fmt: skip
            module.weight.copy_(layer[name].T)
            module.bias.copy_(layer[f"{name}_bias"])
        for module, number in ((block.ln_1, 1), (block.ln_2, 2)):
            module.weight.copy_(layer[f"gain_{number}"])
            module.bias.copy_(layer[f"shift_{number}"])
    return model


def disturbed(architecture, seeds):
    """Models whose gains and biases are not as they begin; equal seeds, equal models."""
    weights = initial(architecture, seeds)
    for index, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(seed)
        for part, axis in zip(weights, (0, 1), strict=True):
            model = part.select(axis, index)
            model += 0.05 * torch.randn(model.shape, generator=generator)
    return weights


def tokens(count, seed=0):
    return torch.randint(VOCABULARY, (count, CONTEXT), generator=torch.Generator().manual_seed(seed))


def logits_of(network, weights, ids):
    return network.logits(weights, ids[None].expand(weights.top.shape[0], -1, -1))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_model_is_the_stock_class(family):
    architecture = Architecture(family=family, layers=2, width=24)
    weights, network, ids = disturbed(architecture, [0, 1]), Network(architecture, CPU), tokens(2)
    found = logits_of(network, weights, ids)
    losses = []
    for index in range(2):
        model = stock(architecture, weights, index)
        assert sum(parameter.numel() for parameter in model.parameters()) == architecture.parameters
        with torch.no_grad():
            output = model(input_ids=ids, labels=ids)
        torch.testing.assert_close(found[index], output.logits, rtol=1e-4, atol=1e-5)
        losses.append(output.loss.item())
    assert network.loss(weights, ids[None].expand(2, -1, -1)).item() == pytest.approx(sum(losses), rel=1e-5)
    bits = network.bits_per_byte(weights, ids, torch.full((VOCABULARY,), 2.0))
    assert bits == pytest.approx([loss / math.log(2) / 2 for loss in losses], rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_products_in_bfloat16_round_and_no_more(family):
    weights = disturbed(Architecture(family=family, layers=2, width=32), [0, 1])
    ids = tokens(4).view(2, 2, CONTEXT)
    found = {}
    for low in (False, True):
        execution = Execution(bfloat16_products=low)
        network = Network(Architecture(family=family, layers=2, width=32), CPU, execution)
        leaves = Parts(*(part.clone().requires_grad_() for part in weights))
        loss = network.loss(leaves, ids)
        found[low] = loss.item(), torch.cat([part.flatten() for part in torch.autograd.grad(loss, leaves)])
    (exact, gradient), (rounded, low_gradient) = found.values()
    assert 0 < abs(rounded - exact) < 2**-8 * exact
    assert torch.cosine_similarity(gradient, low_gradient, dim=0) > 0.999
    assert low_gradient.dtype == torch.float32


@pytest.mark.parametrize("family", FAMILIES)
def test_five_steps_are_those_of_adamw_and_clipping(family):
    architecture, seeds, rates = Architecture(family=family, layers=2, width=16), [0, 1, 1], [3e-3, 1e-2, 3e-2]
    stages = (Stage(1, 2, 16),)
    group = Group(trunk=Trunk(family=family, stages=stages, batch=2), rates=tuple(rates), seeds=(0,))
    weights = Parts(*(3 * part for part in initial(architecture, seeds)))  # large, so that gradients are clipped
    reading = reading_of(tokens(40).to(torch.int16), seeds, 10)
    table = step_table(group, 0, 0, 5, finished_at=5, decay_steps=3, grown_at=None)
    copies = Parts(*(part.clone() for part in weights))
    training = StackedTraining(Network(architecture, CPU), copies, reading, batch=2, longest=5)
    for _ in training.run(table):
        pass
    ids, norms = tokens(2, seed=9), []
    for index, seed in enumerate(seeds):
        model = stock(architecture, weights, index).train()
        groups = [
            {"params": [p for p in model.parameters() if p.ndim == 2], "weight_decay": 0.1},
            {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95))
        warmup = round(0.02 * group.trunk.steps)
        for step in range(5):
            for entry in optimizer.param_groups:
                entry["lr"] = rates[index] * min(1, (step + 1) / warmup) * min(1, (5 - step) / 3)
            read = reading.blocks[reading.orders[seed, 2 * step : 2 * step + 2]].long()
            model(input_ids=read, labels=read).loss.backward()
            norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            expected = model.eval()(input_ids=ids).logits
        found = logits_of(training.network, training.weights, ids)[index]
        assert (found - expected).abs().max() < 2e-3 * expected.abs().max()
    assert max(norms) > 1


def test_new_entries_step_at_their_own_rate():
    draws = torch.Generator().manual_seed(0)
    start, gradient = (torch.randn(1, 6, generator=draws) for _ in range(2))
    is_new = torch.tensor([[0.0, 0, 1, 1, 0, 1]])
    rates = (1e-2, 3e-2)

    def stepped(separate, *pair):
        value, moments = start.clone(), [torch.zeros_like(start), torch.zeros_like(start)]
        row = torch.tensor([[*pair, 1 / (1 - 0.9), 1 / math.sqrt(1 - 0.95)]])
        adamw(value, *moments, gradient, row, torch.full((1, 6), 0.1), is_new, torch.ones(1, 1), separate)
        return value

    expected = torch.where(is_new == 1, stepped(False, rates[1], 0.0), stepped(False, rates[0], 0.0))
    torch.testing.assert_close(stepped(True, *rates), expected)


GROWTHS = [
    ((2, 16), (3, 24), "exact", "insert", "exact"),
    ((2, 16), (4, 16), "exact", "llama_pro", "llama_pro"),
    ((2, 24), (2, 32), "split", "insert", "exact"),
    ((2, 16), (4, 16), "exact", "stack", "stack"),
    ((2, 16), (4, 24), "exact", "stack", "stack"),
    ((2, 16), (4, 16), "exact", "interleave", "interleave"),
]
"""From, to, the search's width and depth, and a method of the package whose grown model gives the same logits."""


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("old", "new", "width", "depth", "method"), GROWTHS)
def test_growth_is_the_packages(family, old, new, width, depth, method):
    before, after = (Architecture(family=family, layers=layers, width=w) for layers, w in (old, new))
    trunk = Trunk(family=family, stages=(Stage(0.5, *old), Stage(1, *new)), width=width, depth=depth, moments="grown")
    weights, ids, seeds = disturbed(before, [0, 1, 0]), tokens(2), [0, 1, 0]
    network = Network(before, CPU)

    def gradients(net, parts):
        leaves = Parts(*(part.clone().requires_grad_() for part in parts))
        found = torch.autograd.grad(net.loss(leaves, ids[None].expand(3, -1, -1)), leaves)
        return Parts(*found)

    means = gradients(network, weights)
    squares = Parts(*(part.square() for part in means))
    grown = grow(network, after, trunk, weights, means, squares, seeds=seeds, salt=0)
    found = logits_of(grown.network, grown.weights, ids)
    for index in range(2):
        child = grow_model(stock(before, weights, index), after.config(), method=method)
        with torch.no_grad():
            expected = child(input_ids=ids).logits
        torch.testing.assert_close(found[index], expected, rtol=1e-4, atol=2e-5 * float(expected.abs().max()))
    torch.testing.assert_close(found[0], found[2])
    with torch.no_grad():
        again = stock(after, grown.weights, 0, grown.network.norm_eps)(input_ids=ids).logits
    torch.testing.assert_close(found[0], again, rtol=1e-4, atol=2e-5 * float(again.abs().max()))

    inherited = after.parameters - sum(int(part.sum()) for part in grown.new)
    assert inherited == before.parameters or width == "split"
    averages = family == "gpt2" and new[1] > old[1]  # new channels hold the mean of the old, whose gradient they share
    if method in ("exact", "llama_pro") and width == "exact" and not averages:  # gradients map to gradients
        child_gradients = gradients(grown.network, grown.weights)
        for mean, square, expected, is_new in zip(
            grown.first_moments, grown.second_moments, child_gradients, grown.new, strict=True
        ):
            scale = float(expected.abs().max())
            old_entries = 1 - is_new
            torch.testing.assert_close(mean * old_entries, expected * old_entries, rtol=1e-3, atol=1e-4 * scale)
            torch.testing.assert_close(
                square * old_entries, expected.square() * old_entries, rtol=1e-3, atol=1e-4 * scale**2
            )


def test_ways_that_change_the_function_draw_what_they_say():
    before, after = Architecture(family="llama", layers=1, width=16), Architecture(family="llama", layers=2, width=24)
    stages = (Stage(0.5, 1, 16), Stage(1, 2, 24))
    weights = initial(before, [0, 1])
    empty = Parts(*(torch.zeros_like(part) for part in weights))
    grown = {}
    for depth in ("insert", "random"):
        trunk = Trunk(family="llama", stages=stages, width="scaled", new_scale=0.5, depth=depth)
        made = grow(Network(before, CPU), after, trunk, weights, empty, empty, seeds=[0, 1], salt=0)
        grown[depth] = named(made.weights.layers, after.layer)
    rms = named(weights.layers, before.layer)["qkv"][0, 0].square().mean().sqrt()
    added = grown["insert"]["qkv"][0, 0][:, 16:]
    assert float(added.square().mean().sqrt()) == pytest.approx(0.5 * float(rms), rel=0.1)
    gain = grown["insert"]["gain_1"][0, 0]
    torch.testing.assert_close(gain, torch.full((24,), math.sqrt((16 + 0.25 * 8) / 24)))
    assert float(grown["insert"]["mlp_out"][1].abs().max()) == 0
    assert float(grown["random"]["mlp_out"][1].std()) == pytest.approx(0.02, rel=0.1)


def test_the_rate_rises_again_and_falls_as_the_trunk_says():
    stages = (Stage(0.5, 1, 16), Stage(1, 4, 16))
    trunk = Trunk(family="llama", stages=stages, moments="grown", rewarm="new", rewarm_fraction=0.1, new_rate=2.0,
                  new_rate_fraction=0.2, learning_rate_by_depth=-0.5)  # fmt: skip
    total = trunk.steps
    group = Group(trunk=trunk, rates=(1e-3,), seeds=(0,))
    half, ramp = round(0.5 * total), round(0.1 * total)
    first = step_table(group, 0, 0, half, finished_at=None, decay_steps=1, grown_at=None)[:, 0]
    assert first[-1, 0].item() == pytest.approx(2e-3)  # a quarter of the layers, to the power of −½
    assert first[0, 0].item() == pytest.approx(2e-3 / round(0.02 * total))
    second = step_table(group, 1, half, total, finished_at=total, decay_steps=round(0.4 * total), grown_at=half)[:, 0]
    assert second[0].tolist() == pytest.approx([1e-3, 2e-3 / ramp, 1, 1], rel=1e-5)
    assert second[ramp - 1, :2].tolist() == pytest.approx([1e-3, 2e-3], rel=1e-5)
    assert second[-1, :2].tolist() == pytest.approx([1e-3 / round(0.4 * total)] * 2, rel=1e-5)


def test_plans_have_their_baselines_and_bad_shares_are_refused():
    groups = [group for name, plan in plans.PLANS.items() if name != "tiny" for group in plan()]
    scratch = {group.trunk for group in groups if group.trunk.from_scratch}
    assert all(group.trunk.baseline in scratch for group in groups)
    for group in groups:
        assert Trunk.from_dict(json.loads(json.dumps(group.trunk.to_dict()))) == group.trunk
    with pytest.raises(ValueError, match="must rise"):
        Trunk(family="llama", stages=(Stage(0.5, 1, 16), Stage(0.4, 2, 16)))
    with pytest.raises(ValueError, match="none but the last decay before 0.6"):
        plans.group((0.6, 4, 64), fractions=(0.7, 1.0))


def test_a_tiny_search_from_text_to_table(tmp_path, capsys):
    draw = np.random.default_rng(0)
    words = ["".join(draw.choice(list("abcdefghiklmnopqrstuvwxyz"), draw.integers(3, 9))) for _ in range(600)]
    documents = [" ".join(draw.choice(words, 300)) for _ in range(60)]
    pq.write_table(pa.table({"text": documents}), tmp_path / "text.parquet")
    pq.write_table(pa.table({"text": [f"{text} end" for text in documents[:5]]}), tmp_path / "held_out.parquet")
    packed, lines, kept = tmp_path / "text.npz", tmp_path / "run.jsonl", tmp_path / "measured.json"
    files = ["--files", str(tmp_path / "text.parquet"), "--validation-files", str(tmp_path / "held_out.parquet")]
    search.main(["pack", *files, "--out", str(packed)])
    blocks = unpack(packed, CPU)
    assert blocks.train.shape[1] == CONTEXT
    assert 0 <= int(blocks.train.min()) < int(blocks.train.max()) < VOCABULARY
    run = ["run", "--packed", str(packed), "--plan", "tiny", "--out", str(lines), "--device", "cpu", "--minutes", "2"]
    search.main(run)
    search.main(["collect", str(lines), "--out", str(kept)])
    found = measured.read(kept)
    assert [len(models) for models in found.models.values()] == [8, 8, 4]
    [stacked] = [trunk for trunk in found.models if trunk.depth == "stack"]
    small, large = (Architecture(family="llama", layers=layers, width=24).flops_per_token for layers in (1, 2))
    whole = [model for model in found.models[stacked] if model.fraction == 1]
    grown_at = round(0.4 * stacked.steps)
    cost = (grown_at * small + (stacked.steps - grown_at) * large) / (stacked.steps * large)
    assert [model.cost for model in whole] == pytest.approx([cost] * 4, abs=1e-5)
    assert all(model.bits_per_byte is not None and len(model.growths) == 1 for model in whole)
    untrained = max(model.growths[0][0] for model in whole)
    assert all(model.bits_per_byte < untrained for model in whole)
    analysis = analyse.analyse(found)
    [outcomes] = analysis.outcomes.values()
    assert len(outcomes) == 3
    for outcome in outcomes:
        curve = analysis.baselines[outcome.trunk.baseline].curves
        assert outcome.cost / outcome.equivalent == pytest.approx(outcome.interval.mean, rel=0.5)
        assert set(outcome.by_seed) == set(curve) == {0, 1}
    capsys.readouterr()
    for too_slow in (["--minutes", "0"], ["--pace", "1e3"]):
        search.main([*run, *too_slow])
        assert capsys.readouterr().err.count("left out") == 3
    [shortened, *_] = plans.tiny()
    search.main([*run, "--shortened", "0.1", "--products", "bfloat16"])
    told = capsys.readouterr().err
    assert told.count("a pace of ") == 3
    assert "0.02 tokens per parameter" in told
    assert shortened.shortened(0.1).trunk.steps < shortened.trunk.steps


def test_ten_bits_hold_a_token():
    drawn = np.random.default_rng(0).integers(0, VOCABULARY, 400).astype(np.uint16)
    packed = to_ten_bits(drawn)
    assert packed.nbytes == 500
    assert (from_ten_bits(packed) == drawn).all()
