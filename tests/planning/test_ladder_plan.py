"""Ladders that can be planned, and what is told of those that cannot."""

from pathlib import Path

import pytest
import yaml
from ladder_fixtures import ladder_mapping, write_corpus

from hf_progressive.config import LadderConfig, load_ladder_config, strict_yaml
from hf_progressive.planning.ladder_plan import plan_ladder
from hf_progressive.planning.sizing import DIAL_FIELDS

ROOT = Path(__file__).parents[2]


def test_all_failures_are_reported_at_once(tmp_path: Path) -> None:
    mapping = ladder_mapping(write_corpus(tmp_path))
    path = tmp_path / "ladder.yaml"
    path.write_text(yaml.safe_dump(mapping))
    config = load_ladder_config(path, ["rungs.1.n_head=3", "rungs.2.n_head=5"])
    with pytest.raises(ValueError, match=r"rung l2w16: .*; rung l2w24: "):
        plan_ladder(config)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("[!s]*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_ladder_can_be_planned(path: Path) -> None:  # studies, study_*.yaml, have their own tests
    plan = plan_ladder(load_ladder_config(path))
    ratios = [a.size.flops / b.size.flops for a, b in zip(plan.rungs, plan.rungs[1:], strict=False)]
    if path.stem != "ladder_tiny":
        assert all(0.6 < ratio < 0.8 for ratio in ratios)
    assert plan.table().count("\n") >= len(plan.rungs)


@pytest.mark.parametrize("family", sorted(DIAL_FIELDS))
def test_a_ladder_of_every_family_can_be_planned(family: str) -> None:
    mapping = {"model": {"family": family, "context": 32}, "rungs": ["d1", "d2"], "training": {"batch_tokens": 256}}
    plan = plan_ladder(strict_yaml.build(LadderConfig, mapping))
    assert plan.rungs[1].growth.preserves_function
    assert plan.rungs[1].config.num_hidden_layers == 2
