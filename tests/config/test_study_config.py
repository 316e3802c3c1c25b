"""A study's configuration: its ladder, its recipes, and one line for every mistake."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from study_fixtures import study_config, study_mapping

from hf_progressive.config import load_study_config
from hf_progressive.config.renamed import RENAMED

OFF = {"phi.ewc_lambda": 0, "phi.gamma": 0, "phi.apply": "proximal"}


def write(folder: Path, mapping: dict[str, Any]) -> Path:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(mapping))
    return path


def test_plain_values_read_back_as_an_equal_configuration(corpus_file: Path, tmp_path: Path) -> None:
    recipe = {"name": "a", "set": {"phi.gamma": 1e-5, "growth.options": {"init_std": 1e-4}}, "rungs": ["l2w16"]}
    config = study_config(corpus_file, recipes=[recipe], learning_rates={"cold": [1e-3]})
    assert load_study_config(write(tmp_path, config.to_dict())) == config


def test_a_recipe_changes_the_ladder_under_its_dotted_keys(corpus_file: Path) -> None:
    overrides = {"phi.gamma": 1e-5, "growth.options": {"init_std": 1e-4}, "training.inherited_learning_rate": 1e-3}
    config = study_config(corpus_file, recipes=[{"name": "plain"}, {"name": "a", "set": overrides}])
    ladder = config.ladder_of(config.recipe("a"))
    assert ladder.phi.gamma == 1e-5
    assert ladder.growth.options == {"init_std": 1e-4}
    assert ladder.training.inherited_learning_rate == 1e-3
    assert config.ladder_of(config.recipe("plain")) == config.ladder


def test_a_study_gives_the_form_of_phi_in_its_ladder_and_the_weight_in_a_recipe(tmp_path: Path) -> None:
    recipes = [{"name": "free"}, {"name": "held", "set": {"phi.gamma": 0.1}}, {"name": "freed", "set": OFF}]
    forms = {"until": 0.1, "subspace": {"energy": 0.5}}
    ladder = {"rungs": ["d2", {"depth": 3, "phi": {"apply": "proximal"}}], "phi": forms}
    config = load_study_config(write(tmp_path, {"ladder": ladder, "recipes": recipes}))
    phi = config.ladder_of(config.recipe("held")).phi_of("d3")
    assert (phi.until, phi.gamma, phi.apply) == (0.1, 0.1, "proximal")


def test_a_ladder_stands_on_its_base_and_overrides_go_last(tmp_path: Path) -> None:
    mapping = {
        "ladder": {"base": "ladder_tiny", "cold": "none", "training": {"learning_rate": 5e-3}},
        "recipes": [{"name": "exact", "set": {"phi.ewc_lambda": 0.0}}],
    }
    config = load_study_config(write(tmp_path, mapping), ["ladder.phi.gamma=0.25", "seeds=[7]"])
    assert config.ladder.training.learning_rate == 5e-3
    assert config.ladder.training.batch_tokens == 512  # the base's
    assert config.ladder.phi.gamma == 0.25
    assert config.seeds == (7,)
    own = {"name": "mine", "rungs": ["d2", "d3"], "publish": {"repo_id": "org/x-{name}"}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(own))
    ladder = {"base": "mine.yaml", "publish": None}
    beside = load_study_config(write(tmp_path, {"ladder": ladder, "recipes": [{"name": "x"}]}))
    assert beside.ladder.name == "mine"
    assert beside.ladder.publish is None


def test_a_base_may_give_a_key_under_its_old_name_and_the_study_under_its_new_one(tmp_path: Path) -> None:
    old = {new: old for old, new in RENAMED.items()}
    base = {"name": "mine", "rungs": ["d2", "d3"], "training": {old["decay_fraction"]: 0.3}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(base))
    ladder = {"base": "mine.yaml", "training": {"decay_fraction": 0.25}}
    config = load_study_config(write(tmp_path, {"ladder": ladder, old["recipes"]: [{"name": "x"}]}))
    assert config.ladder.training.decay_fraction == 0.25
    both = {"ladder": ladder, "recipes": [{"name": "x"}], old["recipes"]: []}
    with pytest.raises(ValueError, match=r"\.yaml: .* is called recipes now, and is given under both names"):
        load_study_config(write(tmp_path, both))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seedz": [1]}, r"seedz: unknown key; did you mean 'seeds'\?"),
        ({"recipes": []}, "recipes: the list is empty; name at least one"),
        ({"recipes": [{"name": "a"}, {"name": "a"}]}, r"recipes.1.name: 'a' is given twice"),
        (
            {"recipes": [{"name": "a", "set": {"rungs": 1}}]},
            r"recipes.0.set.rungs: a recipe changes keys below growth",
        ),
        ({"recipes": [{"name": "a", "set": {"phi.lamda": 1}}]}, r"recipes.0.set.phi.lamda: unknown key"),
        (
            {"recipes": [{"name": "a", "set": {"phi": {"gamma": 1}}}]},
            r"recipes.0.set.phi: its keys are set one by one; write phi.gamma: 1$",
        ),
        ({"recipes": [{"name": "a", "set": {"phi.gamma.x": 1}}]}, r"override 'phi.gamma.x=1': phi.gamma is a single"),
        (
            {"recipes": [{"name": "a", "set": {"phi.apply": "proximal", "phi.fisher.kind": "ones"}}]},
            r"recipes.0.set.phi.apply, recipes.0.set.phi.fisher.kind: without effect, for neither ewc_lambda",
        ),
        (
            {"recipes": [{"name": "a", "set": {"phi.gamma": 1, "phi.fisher.kind": "ones"}}]},
            r"recipes.0.set.phi.fisher.kind: without effect, for ewc_lambda is not given; give it",
        ),
        (
            {"ladder": {"rungs": ["d2", "d3"], "phi": {"until": 0.1}}},
            r"ladder.phi.until: without effect, for neither ewc_lambda nor gamma is given; give one",
        ),
        ({"recipes": [{"name": "a", "seeds": [0, 0]}]}, "recipes.0.seeds: 0 is given twice; list each once"),
        ({"recipes": [{"name": "a", "rungs": ["l2w16", "l2w16"]}]}, "recipes.0.rungs: 'l2w16' is given twice"),
        ({"recipes": [{"name": "a", "parent_recipe": "a"}]}, "named 'a'; none stands above the first; leave it out"),
        ({"learning_rates": {"cold": [1e-3, 0.001]}}, r"learning_rates.cold: 0.001 is given twice; list each once"),
        ({"learning_rates": {"seeds": [0]}}, "learning_rates.seeds: no rates are tried on them; list `rates` too"),
        ({"learning_rates": {"recipes": ["exact"]}}, "learning_rates.recipes: no rates are tried on them"),
        (
            {"learning_rates": {"rates": [1.0], "recipes": []}},
            "learning_rates.recipes: the list is empty; leave it out",
        ),
        (
            {"recipes": [{"name": "a", "set": {"training.tokens_per_parameter": 1}}]},
            "tokens_per_parameter: it sizes the baseline too; change the ladder instead",
        ),
        (
            {"recipes": [{"name": "a", "set": {"training.optimizer": "muon"}}]},
            r"recipes.0.set.training.optimizer: the baseline trains by the ladder's optimizer.*; set ladder.training",
        ),
        ({"recipes": [{"name": "a", "parent_recipe": "b"}]}, r"recipes.0.parent_recipe: no recipe above is named 'b'"),
        (
            {"recipes": [{"name": "a", "rungs": ["l1w16"]}]},
            "recipes.0.rungs: 'l1w16' is no grown rung; did you",
        ),
        ({"recipes": [{"name": "a", "seeds": [5]}]}, r"recipes.0.seeds: 5 is none of the study's seeds, \[0\]"),
        ({"recipes": [{"name": "a", "set": {"training.warmup_fraction": 0.3}}]}, "lower training.warmup_fraction"),
        ({"cold_fractions": [0.5]}, "cold_fractions: 1.0 is missing, the budget that a child has to match"),
        ({"child_fractions": [0.5, 0.2]}, r"child_fractions: \[0.5, 0.2\] does not rise"),
        ({"child_fractions": [3.0]}, r"child_fractions\.0: expected above 0, at most 2, got 3\.0"),
        ({"seeds": [1, 1]}, "seeds: give distinct seeds"),
        ({"seeds": [-1]}, r"seeds\.0: expected 0 to 2,000,000, got -1"),
        ({"headline": "b"}, "headline: there is no recipe 'b'; known: exact"),
        (
            {"recipes": [{"name": "a", "set": {"phi.gamma": 1.0}}], "reference": "a"},
            "reference: the recipe 'a' has Φ on; name one without",
        ),
        (
            {"recipes": [{"name": "a", "set": {"phi.gamma": 1.0}}, {"name": "b", "reference": "a"}]},
            "recipes.1.reference: the recipe 'a' has Φ on; name one without",
        ),
        ({"recipes": [{"name": "a", "reference": "c"}]}, "recipes.0.reference: there is no recipe 'c'; known: a"),
        ({"learning_rates": {"cold": [0.0]}}, r"learning_rates\.cold\.0: expected above 0, at most 1,000, got 0\.0"),
        ({"learning_rates": {"rung": "x"}}, "learning_rates.rung: 'x' is no grown rung"),
        ({"ladder": {"rungs": ["d2"]}}, "ladder.rungs: a study needs two rungs or more"),
        (
            {"ladder": {"rungs": ["d2", "d3"], "publish": {"repo_id": "org/x-{name}"}}},
            "ladder.publish: without effect in a study, which publishes no model; leave it out, or write `publish:",
        ),
        (
            {"ladder": {"rungs": ["d2", "d3"], "core": {"bundle": "core"}}},
            "ladder.core: without effect in a study, which scores no model on CORE; leave it out, or write `core:",
        ),
        (
            {"ladder": {"base": "ladder_tiny"}},
            "ladder.cold: its names are without effect in a study, which trains every rung from scratch; leave it out,"
            " or write `cold: none` where",
        ),
        ({"ladder": {"base": "nothing_of_the_kind"}}, "nothing_of_the_kind: no such file"),
        (
            {"ladder": {"base": "study_tiny"}},
            "ladder.base: study_tiny is a study's configuration; name a ladder's",
        ),
        ({"ladder": {"base": 3}}, "ladder.base: expected the path or name of a ladder's configuration, got 3"),
    ],
)
def test_every_mistake_is_one_line_that_says_where(
    corpus_file: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = write(tmp_path, study_mapping(corpus_file, **changes))
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        load_study_config(path)
    assert "\n" not in str(error.value)
