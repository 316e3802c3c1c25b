"""Trunks in a ladder's configuration, and keys that a rung has for itself."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from hf_progressive.config import LadderConfig, RungConfig, StudyConfig, load_ladder_config, strict_yaml

RUNGS: list[dict[str, Any]] = [
    {"name": "a", "n_layer": 1, "n_embd": 8, "n_head": 1, "until": 0.3},
    {"name": "b", "n_layer": 2, "n_embd": 8, "n_head": 1, "until": 0.6},
    {"name": "c", "n_layer": 4, "n_embd": 8, "n_head": 1},
]


def trunk(**changes: Any) -> LadderConfig:
    settings = {"schedule": "trunk", "rungs": RUNGS, "training": {"decay_fraction": 0.4}, **changes}
    return strict_yaml.build(LadderConfig, settings)


def changed(index: int, **keys: Any) -> list[dict[str, Any]]:
    return [{**rung, **keys} if i == index else rung for i, rung in enumerate(RUNGS)]


def test_a_trunk_is_read_and_written_back_equal(tmp_path: Path) -> None:
    config = trunk(trunk={"rewarm": "new", "moments": "grown"}, rungs=changed(1, training={"learning_rate": 3e-3}))
    file = tmp_path / "trunk.yaml"
    file.write_text(yaml.safe_dump(config.to_dict()))
    assert load_ladder_config(file) == config
    assert [rung.until for rung in config.rungs] == [0.3, 0.6, None]


def test_a_rung_changes_keys_for_itself_alone() -> None:
    own = {"training": {"learning_rate": 3e-3}, "growth": {"options": {"x": 1}}, "phi": {"fisher": {"sequences": 4}}}
    config = trunk(rungs=changed(1, **own), training={"decay_fraction": 0.4, "learning_rate": 1e-3})
    assert [config.training_of(name).learning_rate for name in "abc"] == [1e-3, 3e-3, 1e-3]
    assert config.training_of("b").decay_fraction == 0.4
    assert config.growth_of("b").options == {"x": 1}
    assert config.growth_of("c") is config.growth
    assert (config.phi_of("b").fisher.sequences, config.phi_of("b").fisher.kind) == (4, "empirical")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rungs": changed(0, until=None)}, r"rungs\.0\.until: is missing"),
        ({"rungs": changed(1, until=0.3)}, r"rungs\.1\.until: 0\.3 does not rise above 0\.3, the rung's before"),
        ({"rungs": changed(1, until=0.7)}, r"0\.7 lies in the last rung's decay, which begins at 0\.6"),
        ({"rungs": changed(2, until=0.9)}, r"rungs\.2\.until: c is the last"),
        ({"rungs": changed(0, until=1.5)}, r"rungs\.0\.until: expected above 0, at most 1, got 1\.5"),
        ({"schedule": "chain"}, r"rungs\.0\.until, rungs\.1\.until: only a trunk's rungs have one"),
        ({"schedule": "bough"}, r"schedule: 'bough' is not one of chain, trunk"),
        ({"trunk": {"member": "none", "average_of": 1}}, r"trunk\.average_of: expected 2 to 100, got 1"),
        ({"rungs": changed(1, training={"learning_rates": 1})}, r"rungs\.1\.training\.learning_rates: unknown key"),
        ({"rungs": changed(1, training={"batch_tokens": 100})}, r"rungs\.1\.training\.batch_tokens: 100 is not a mul"),
        ({"rungs": changed(0, phi={"gamma": 1.0})}, r"a grows from nothing"),
        ({"rungs": changed(1, training=3)}, r"rungs\.1\.training: expected a mapping"),
        (
            {"training": {"decay_fraction": 0.4, "inherited_fraction": 0.5}},
            r"training\.inherited_fraction: without effect in a trunk",
        ),
        (
            {"growth": {"parent": "stable"}},
            r"growth\.parent: without effect in a trunk, which always grows from the w",
        ),
        (
            {"rungs": changed(1, training={"inherited_fraction": 0.65})},
            r"rungs\.1\.training\.inherited_fraction: without effect in a trunk",
        ),
        (
            {"rungs": changed(1, training={"decay_fraction": 0.4})},
            r"rungs\.1\.training\.decay_fraction: without effect on the trunk.*trunk\.member_decay_fraction",
        ),
        ({"rungs": changed(1, growth={"parent": "final"})}, r"rungs\.1\.growth\.parent: without effect in a trunk"),
    ],
)
def test_what_a_trunk_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trunk(**changes)


def test_a_chain_refuses_what_only_a_trunk_has() -> None:
    plain = [{key: value for key, value in rung.items() if key != "until"} for rung in RUNGS]
    with pytest.raises(ValueError, match="trunk: without effect in a chain"):
        strict_yaml.build(LadderConfig, {"rungs": plain, "trunk": {"rewarm": "new"}})
    rungs = [{"name": "a", "source": "somewhere", "until": 0.5}, plain[1]]
    with pytest.raises(ValueError, match="leave out the source of a"):
        strict_yaml.build(LadderConfig, {"schedule": "trunk", "rungs": rungs})


def test_the_last_rung_of_a_trunk_has_a_decay_of_its_own() -> None:
    assert trunk(rungs=changed(2, training={"decay_fraction": 0.35})).training_of("c").decay_fraction == 0.35


def test_a_study_of_chains_and_trunks_may_say_what_its_chains_need(tmp_path: Path) -> None:
    plain = [{key: value for key, value in rung.items() if key != "until"} for rung in RUNGS]
    ladder = {
        "rungs": plain[1:],
        "cold": "none",
        "growth": {"parent": "stable"},
        "training": {"decay_fraction": 0.4, "inherited_fraction": 0.4},
    }
    recipe = {"name": "trunk", "trunk": [RUNGS[0]], "child_fractions": [1.0]}
    recipes = [{"name": "chain", "parent_fraction": 0.5}, recipe]
    study = strict_yaml.build(StudyConfig, {"ladder": ladder, "recipes": recipes})
    assert study.trunk_of(study.recipe("trunk"), "c").growth.parent == "final"
    recipe["set"] = {"growth.parent": "stable"}
    with pytest.raises(ValueError, match=r"recipes\.1: growth\.parent: without effect in a trunk"):
        strict_yaml.build(StudyConfig, {"ladder": ladder, "recipes": recipes})


def test_a_rung_is_written_with_its_own_sections_only() -> None:
    rung = RungConfig.from_yaml(RUNGS[0], "rungs.0")
    assert rung.to_dict() == RUNGS[0]
