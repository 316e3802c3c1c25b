"""Ladders that can be planned, and what is told of those that cannot."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from ladder_fixtures import ladder_mapping, write_corpus

from hf_progressive.config import LadderConfig, load_ladder_config, strict_yaml
from hf_progressive.growth.families import FAMILIES
from hf_progressive.planning import sizing
from hf_progressive.planning.ladder_plan import plan_ladder

ROOT = Path(__file__).parents[2]


def test_all_failures_are_reported_at_once(tmp_path: Path) -> None:
    mapping = ladder_mapping(write_corpus(tmp_path))
    path = tmp_path / "ladder.yaml"
    path.write_text(yaml.safe_dump(mapping))
    config = load_ladder_config(path, ["rungs.1.n_head=3", "rungs.2.n_head=5"])
    with pytest.raises(ValueError, match=r"rung l2w16: .*; rung l2w24: "):
        plan_ladder(config)


@pytest.mark.parametrize(
    ("field", "fault"),
    [
        ("resid_pdrop=2.0", "resid_pdrop: expected 0 to 1, got 2.0"),
        ("n_inner=x", "Field 'n_inner' with value 'x' doesn't match any type in (int, NoneType)"),
        ("vocab_size=0", "vocab_size is 0; give a whole number of 1 or more"),
        (
            "activation_function=nope",
            "not valid (KeyError: 'nope'); the stock class cannot be built with its fields; correct them",
        ),
    ],
)
def test_a_fault_that_rungs_share_is_told_once(field: str, fault: str) -> None:
    with pytest.raises(ValueError, match=r"^rungs? ") as raised:
        plan_ladder(load_ladder_config("ladder_tiny", [f"model.fields.{field}"]))
    assert str(raised.value) == f"rungs l2w32, l3w32, l3w48: {fault}"
    with pytest.raises(ValueError, match=r"^rungs? ") as raised:
        plan_ladder(load_ladder_config("ladder_tiny", [f"rungs.1.{field}", "rungs.2.n_head=5"]))
    assert str(raised.value) == (
        f"rung l3w32: {fault}; rung l3w48: n_head 5 does not divide n_embd 48; make the width a multiple of the heads"
    )


def test_an_embedding_has_a_row_for_every_token(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"rungs l2w32, .*: vocab_size 100 is below the tokenizer's 320 entries"):
        plan_ladder(load_ladder_config("ladder_tiny", ["model.fields.vocab_size=100"]))
    gaps = SimpleNamespace(get_vocab=lambda: {"a": 0, "b": 999})
    monkeypatch.setattr(sizing, "load_tokenizer", lambda config, texts: gaps)
    plan = plan_ladder(load_ladder_config("ladder_tiny", ["data.tokenizer={name: gaps}"]))
    assert plan.rungs[0].config.vocab_size == 1000


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("[!s]*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_ladder_can_be_planned(path: Path) -> None:  # studies, study_*.yaml, have their own tests
    config = load_ladder_config(path)
    plan = plan_ladder(config)
    ratios = [a.size.flops / b.size.flops for a, b in zip(plan.rungs, plan.rungs[1:], strict=False)]
    if path.stem != "ladder_tiny" and config.schedule == "chain":
        assert all(0.6 < ratio < 0.8 for ratio in ratios)
    assert plan.table().count("\n") >= len(plan.rungs)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_ladder_of_every_family_can_be_planned(family: str) -> None:
    # A norm over all key heads asks that they stay as many.
    fields = {"num_key_value_heads": 1} if FAMILIES[family].normed_queries == "all_heads" else {}
    mapping = {
        "model": {"family": family, "context": 32, "fields": fields},
        "rungs": ["d1", "d2"],
        "training": {"batch_tokens": 256},
    }
    plan = plan_ladder(strict_yaml.build(LadderConfig, mapping))
    assert plan.rungs[1].growth.preserves_function
    assert plan.rungs[1].config.num_hidden_layers == 2


def test_rungs_may_differ_in_batch_rate_growth_and_penalty() -> None:
    narrow = {"name": "narrow", "n_layer": 1, "n_embd": 16, "n_head": 2}
    wide = {"name": "wide", "n_layer": 1, "n_embd": 64, "n_head": 8}
    own = {"training": {"batch_tokens": 512, "learning_rate": 1e-2}, "growth": {"method": "tile", "parent": "stable"}}
    own["phi"] = {"gamma": 1e-3}
    mapping = {
        "model": {"context": 32},
        "rungs": [narrow, {**wide, "n_layer": 2, "name": "middle", **own}, {**wide, "n_layer": 3}],
        "training": {"batch_tokens": 256, "learning_rate": 3e-3, "inherited_learning_rate": 2e-3,
                     "learning_rate_by_width": -0.5},
    }  # fmt: skip
    plan = plan_ladder(strict_yaml.build(LadderConfig, mapping))
    first, middle, last = plan.rungs
    assert [rung.size.batch_tokens for rung in plan.rungs] == [256, 512, 256]
    assert first.learning_rate == first.cold_learning_rate == pytest.approx(3e-3 * (16 / 64) ** -0.5)
    assert (middle.learning_rate, middle.cold_learning_rate) == (2e-3, 1e-2)
    assert (last.learning_rate, last.cold_learning_rate) == (2e-3, 3e-3)
    assert middle.growth is not None
    assert last.growth is not None
    assert (middle.growth.method, last.growth.method) == ("tile", "exact")
    assert [(rung.hands_on, rung.keeps_stable) for rung in plan.rungs] == [
        ("stable", True), ("final", False), ("final", False)
    ]  # fmt: skip
    assert [plan.next_phi(rung).gamma for rung in plan.rungs] == [1e-3, 0.0, 0.0]


@pytest.mark.parametrize("batches", [(256, 256, 256), (128, 512, 256)])
def test_a_trunk_divides_the_last_rung_s_tokens(batches: tuple[int, int, int]) -> None:
    sizes = [(1, 0.25), (2, 0.55), (4, None)]
    rungs = [
        {"name": f"l{layers}", "n_layer": layers, "n_embd": 32, "n_head": 4, "training": {"batch_tokens": batch}}
        | ({} if until is None else {"until": until})
        for (layers, until), batch in zip(sizes, batches, strict=True)
    ]
    mapping = {
        "schedule": "trunk",
        "model": {"context": 32},
        "rungs": rungs,
        "trunk": {"rewarm_fraction": 0.02, "member_decay_fraction": 0.1},
        "training": {"warmup_fraction": 0.05, "decay_fraction": 0.4},
    }
    plan = plan_ladder(strict_yaml.build(LadderConfig, mapping))
    whole = plan.rungs[-1].size.tokens
    read = 0
    for rung, batch, until in zip(plan.rungs, batches, (0.25, 0.55, 1.0), strict=True):
        part = rung.trunk
        assert part is not None
        assert rung.first_block * 32 == read
        read += part.steps * batch
        assert abs(read - until * whole) <= batch / 2
        assert part.warmup_steps == math.ceil((0.05 if rung.index == 0 else 0.02) * whole / batch)
        if until < 1:
            assert part.decay_steps == rung.steps - part.steps == math.ceil(0.1 * read / batch)
        else:
            assert (rung.steps, part.decay_steps) == (part.steps, math.ceil(0.4 * whole / batch))
    blocks = [rung.first_block + rung.tokens // 32 for rung in plan.rungs]
    assert plan.corpus_blocks == max(*blocks, *(r.first_block + r.size.tokens // 32 for r in plan.rungs[1:]))
    flops, per_token = plan.to_dict()["flops"], [rung.size.flops_per_token for rung in plan.rungs]
    lineage = sum(rung.trunk.steps * b * f for rung, b, f in zip(plan.rungs[:-1], batches, per_token, strict=False))
    assert flops["last_lineage"] == lineage
    assert flops["last_grown"] == lineage + plan.rungs[-1].flops
    branches = sum(
        (rung.steps - rung.trunk.steps) * b * f for rung, b, f in zip(plan.rungs, batches, per_token, strict=True)
    )
    assert flops["all_inherited"] == flops["last_grown"] + branches
    table = plan.table()
    assert f"{flops['last_grown'] / flops['last_alone']:.2f} of it alone, as planned" in table
    assert table.splitlines()[0].split()[:2] == ["rung", "until"]
    assert [line.split()[1] for line in table.splitlines()[1:4]] == ["0.25", "0.55", "1"]


@pytest.mark.parametrize(
    ("untils", "decay", "message"),
    [
        ((0.3, 0.30001), 0.5, r"l3w32 trains from 0\.296 to 0\.30001 of the last rung's tokens, less than a step"),
        ((0.3, 0.30001), 0.5, r"less than a step of 512; set until further apart, or raise training\.tokens_per_p"),
        ((0.3, 1.0), 0.0, r"l3w48 trains from 1 to 1 of the last rung's tokens, less than a step of 512"),
    ],
)
def test_a_trunk_s_rung_without_a_step_is_refused(untils: tuple[float, float], decay: float, message: str) -> None:
    changes = [f"rungs.{index}.until={until}" for index, until in enumerate(untils)]
    config = load_ladder_config("ladder_tiny", ["schedule=trunk", f"training.decay_fraction={decay}", *changes])
    with pytest.raises(ValueError, match=message):
        plan_ladder(config)
